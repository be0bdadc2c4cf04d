"""A listing of calls: the request for its pages, and the test whether an answer can belong to it; no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import urlencode, urlsplit

from reconciler.errors import TwilioAnswerError
from reconciler.model import CALL_SID, Observation, Status
from reconciler.times import midnight

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


@dataclass(frozen=True, slots=True)
class Listing:
    """The calls of an account that started in `[since, until)`, that ended since `ended_since`, or that have a status.

    - Twilio may read bounds as instants or as whole UTC days, and `<` may include its own midnight or not. `until` must
      be a midnight after the last needed call: "before some hour of a day" may leave out that whole day.
    - The caller must filter the calls itself. `holds` only tests whether an answer can belong to this listing.
    - A listing by `ended_since` has no open calls.
    """

    account_sid: str
    since: datetime | None = None
    until: datetime | None = None
    status: Status | None = None
    ended_since: datetime | None = None
    page_size: int = PAGE_SIZE
    is_exact: bool = False  # Twilio counts the times of the bounds, as `Session.counts_time` proved

    @property
    def path(self) -> str:
        """The path and query of the first page. The operator is part of the name: `StartTime>` is "on or after"."""
        params: list[tuple[str, str]] = []
        if self.status is not None:
            params.append(("Status", self.status.value))
        if self.since is not None:
            params.append(("StartTime>", self.since.strftime("%Y-%m-%dT%H:%M:%SZ")))
        if self.until is not None:
            params.append(("StartTime<", self.until.strftime("%Y-%m-%dT%H:%M:%SZ")))
        if self.ended_since is not None:
            params.append(("EndTime>", self.ended_since.strftime("%Y-%m-%dT%H:%M:%SZ")))
        params.append(("PageSize", str(self.page_size)))
        return f"{self._resource}?{urlencode(params)}"

    def next_path(self, uri: str, *, after: str) -> str:
        """Return the path and query of the page that `uri` names, for our own host.

        Raises:
            TwilioAnswerError: `uri` leads to another resource, or back to the page `after` that it came with.

        """
        return own_path(uri, resource=self._resource, after=after)

    def holds(self, observations: list[Observation]) -> bool:
        """Whether `observations` can belong to this listing: within whole days of the bounds, or mostly its status."""
        if self.status is not None:
            others = sum(observation.status != self.status for observation in observations)
            return others * 2 <= len(observations)
        if self.ended_since is not None:
            day = midnight(self.ended_since)
            return all(observation.end_time is None or observation.end_time >= day for observation in observations)
        oldest, newest = self.since, self.until and self.until + _ONE_SECOND  # `<` may include its instant
        if not self.is_exact:
            oldest, newest = oldest and midnight(oldest), self.until and midnight(self.until) + 2 * _ONE_DAY
        return all(
            (oldest is None or observation.start_time >= oldest) and (newest is None or observation.start_time < newest)
            for observation in observations
            if observation.start_time is not None
        )

    def shows_whole_days(self, observations: list[Observation]) -> bool:
        """Whether `observations` prove that Twilio read `ended_since` as a whole day."""
        first = self.ended_since and self.ended_since.replace(microsecond=0)
        return first is not None and any(o.end_time is not None and o.end_time < first for o in observations)

    @property
    def _resource(self) -> str:
        return f"{API_PATH}/{self.account_sid}/Calls.json"


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


def call_of_token(path: str) -> str | None:
    """Return the SID of the call after which the page of `path` continues; None if the token names no call."""
    token = _TOKEN.search(path)
    call_sid = token[1].removeprefix("PA") if token else ""
    return call_sid if CALL_SID.fullmatch(call_sid) else None
