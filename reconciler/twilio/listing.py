"""A listing of calls or recordings: the request for its pages, and the test whether an answer belongs to it; no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, Final
from urllib.parse import urlencode, urlsplit

from reconciler.errors import TwilioAnswerError
from reconciler.model import CALL_SID, RECORDING_SID, Observation, Page, Status
from reconciler.times import midnight
from reconciler.twilio.recording_records import decode_recording, decode_recordings
from reconciler.twilio.records import decode_call, decode_page

# Calls older than 13 months leave the API (https://www.twilio.com/docs/voice/api/archived-calls); error 20004 names
# 400 days.
RETENTION: Final = timedelta(days=400)
PAGE_SIZE: Final = 1000  # Twilio's largest page

API_PATH: Final = "/2010-04-01/Accounts"
ALERTS_PATH: Final = "/v1/Alerts"  # on another host, and of the account of the credentials

_ONE_DAY: Final = timedelta(days=1)
_ONE_SECOND: Final = timedelta(seconds=1)
_PAGE_SIZE: Final = re.compile(r"(?<=[?&]PageSize=)[1-9][0-9]{0,3}(?=&|$)")
_PAGE: Final = re.compile(r"(?<=[?&]Page=)[0-9]{1,9}(?=&|$)")
_TOKEN: Final = re.compile(r"[?&]PageToken=([^&]+)")
_DELETED_TOO: Final = "IncludeSoftDeleted"


@dataclass(frozen=True, slots=True)
class Listing:
    """The calls of an account that started in `[since, until)`, that ended since `ended_since`, or that have a status.

    - Twilio may read bounds as instants or as whole UTC days, and `<` may include its own midnight or not. `until` must
      be a midnight after the last needed call: "before some hour of a day" may leave out that whole day.
    - The caller must filter the calls itself. `holds` only tests whether an answer can belong to this listing.
    - A listing by `ended_since` has no open calls.
    """

    records: ClassVar[str] = "Calls"

    account_sid: str
    since: datetime | None = None
    until: datetime | None = None
    status: Status | None = None
    ended_since: datetime | None = None
    page_size: int = PAGE_SIZE
    is_exact: bool = False  # Twilio counts the times of the bounds, as `Session.counts_time` proved

    @property
    def path(self) -> str:
        """The path and query of the first page."""
        params: list[tuple[str, str]] = []
        if self.status is not None:
            params.append(("Status", self.status.value))
        params += _bounds("StartTime", self.since, self.until) + _bounds("EndTime", self.ended_since, None)
        params.append(("PageSize", str(self.page_size)))
        return f"{self._resource}?{urlencode(params)}"

    def path_of(self, sid: str) -> str:
        """Return the path of one record."""
        return f"{self._resource.removesuffix('.json')}/{sid}.json"

    def decode(self, body: bytes, *, observed_at: datetime) -> Page:
        """Decode one page of the listing; see `decode_page`."""
        return decode_page(body, observed_at=observed_at)

    def decode_one(self, body: bytes, sid: str, *, observed_at: datetime) -> Page:
        """Decode the record of `sid` into a page; see `decode_call`.

        Raises:
            TwilioAnswerError: this is another record.

        """
        return _only(decode_call(body, observed_at=observed_at), sid)

    def next_path(self, uri: str, *, after: str) -> str:
        """Return the path and query of the page that `uri` names, for our own host.

        Raises:
            TwilioAnswerError: `uri` leads to another resource, or back to the page `after` that it came with.

        """
        return own_path(uri, resource=self._resource, after=after)

    def holds(self, page: Page) -> bool:
        """Whether `page` can belong to this listing: within whole days of the bounds, or mostly its status."""
        observations = page.observations
        if self.status is not None:
            others = sum(observation.status != self.status for observation in observations)
            return others * 2 <= len(observations)
        if self.ended_since is not None:
            day = midnight(self.ended_since)
            return all(observation.end_time is None or observation.end_time >= day for observation in observations)
        return self._are_within(observation.start_time for observation in observations)

    def shows_whole_days(self, observations: list[Observation]) -> bool:
        """Whether `observations` prove that Twilio read `ended_since` as a whole day."""
        first = self.ended_since and self.ended_since.replace(microsecond=0)
        return first is not None and any(o.end_time is not None and o.end_time < first for o in observations)

    def _are_within(self, times: Iterable[datetime | None]) -> bool:
        """Whether all `times` lie within the bounds, or on the same UTC days unless the times of the bounds count."""
        oldest, newest = self.since, self.until and self.until + _ONE_SECOND  # `<` may include its instant
        if not self.is_exact:
            oldest, newest = oldest and midnight(oldest), self.until and midnight(self.until) + 2 * _ONE_DAY
        return all(
            (oldest is None or time >= oldest) and (newest is None or time < newest)
            for time in times
            if time is not None
        )

    @property
    def _resource(self) -> str:
        return f"{API_PATH}/{self.account_sid}/{self.records}.json"


@dataclass(frozen=True, slots=True)
class RecordingListing(Listing):
    """The recordings of an account that were created in `[since, until)`, or those of a call; deleted ones included.

    Twilio shows a deleted recording for 40 days (OpenAPI `ListRecording`, IncludeSoftDeleted). The bounds mean what
    those of a listing of calls mean.
    """

    records: ClassVar[str] = "Recordings"

    call_sid: str | None = None

    @property
    def path(self) -> str:
        """The path and query of the first page."""
        params = _bounds("DateCreated", self.since, self.until)
        if self.call_sid is not None:
            params.append(("CallSid", self.call_sid))
        params += [(_DELETED_TOO, "true"), ("PageSize", str(self.page_size))]
        return f"{self._resource}?{urlencode(params)}"

    def path_of(self, sid: str) -> str:
        """Return the path of one record."""
        return f"{self._resource.removesuffix('.json')}/{sid}.json?{_DELETED_TOO}=true"

    def decode(self, body: bytes, *, observed_at: datetime) -> Page:
        """Decode one page of the listing; see `decode_recordings`."""
        return decode_recordings(body, observed_at=observed_at)

    def decode_one(self, body: bytes, sid: str, *, observed_at: datetime) -> Page:
        """Decode the record of `sid` into a page; see `decode_recording`.

        Raises:
            TwilioAnswerError: this is another record.

        """
        return _only(decode_recording(body, observed_at=observed_at), sid)

    def holds(self, page: Page) -> bool:
        """Whether `page` can belong to this listing: within whole days of the bounds, and of its call."""
        if self.call_sid is not None and any(recording.call_sid != self.call_sid for recording in page.recordings):
            return False
        return self._are_within(recording.date_created for recording in page.recordings)


def _only(page: Page, sid: str) -> Page:
    if any(found != sid for found in page.sids):
        raise TwilioAnswerError(f"Twilio answered with another record than {sid}")
    return page


def _bounds(name: str, since: datetime | None, until: datetime | None) -> list[tuple[str, str]]:
    """Return the parameters of a filter by time. The operator is part of the name: `StartTime>` is "on or after"."""
    bounds = ((f"{name}>", since), (f"{name}<", until))
    return [(bound, f"{time:%Y-%m-%dT%H:%M:%SZ}") for bound, time in bounds if time is not None]


def own_path(uri: str, *, resource: str, after: str) -> str:
    """Return the path and query of the next page of `resource` that `uri` names, for our own host.

    Raises:
        TwilioAnswerError: `uri` leads to another resource, or back to the page `after` that it came with.

    """
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise TwilioAnswerError("next_page_uri is not a URI") from None
    path = f"{parts.path}?{parts.query}"
    if not path.isascii():
        raise TwilioAnswerError("next_page_uri is not a URI")
    if parts.path != resource:
        raise TwilioAnswerError("next_page_uri leads to another resource than the listing it continues")
    if path == after:
        raise TwilioAnswerError("next_page_uri leads back to its own page")
    return path


def page_size_of(path: str) -> int | None:
    """Return the page size in `path`; None if there is none."""
    found = _PAGE_SIZE.search(path)
    return int(found[0]) if found else None


def resized(path: str, size: int) -> str:
    """Return `path` with pages of `size`, or of a size between its own and `size`, so that no record is left out.

    - Lists of calls have a token that names the record before the page (`PA` and its SID): any size is right.
    - Other lists have only the number `Page`. Smaller pages of the same number begin earlier, and repeat records.
    - Larger pages of such a list are used only if one of them begins at the same record; `Page` becomes its number.
    """
    own = page_size_of(path)
    if own is None or size == own:
        return path
    number = _PAGE.search(path)
    if size < own or number is None:
        return _PAGE_SIZE.sub(str(size), path)
    offset, grown = int(number[0]) * own, own
    while 2 * grown <= size and offset % (2 * grown) == 0:
        grown *= 2
    return _PAGE.sub(str(offset // grown), _PAGE_SIZE.sub(str(grown), path))


def sid_of_token(path: str) -> str | None:
    """Return the SID of the record after which the page of `path` continues; None if the token names none."""
    token = _TOKEN.search(path)
    sid = token[1].removeprefix("PA") if token else ""
    return sid if CALL_SID.fullmatch(sid) or RECORDING_SID.fullmatch(sid) else None
