"""The client of Twilio's REST API: listings in, pages of observations out. It knows nothing of the database.

Design rules
- Requests go through the official SDK's client, for its authentication, region, edge and identification. Only the raw
  body is used: the SDK's objects drop unknown keys, and its paging breaks on an added key.
- The meaning of a filter is contested, and Twilio ignores an unknown one in silence. Each page is therefore checked
  against the listing before anyone sees it.
- One page is the unit of retrying. After an error that can heal, the request is repeated with backoff; any other error
  is raised at once.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Final, TypeVar
from urllib.parse import urlencode

from twilio.rest import Client

from reconciler import __version__, metrics
from reconciler.errors import (
    ConnectionLost,
    FilterIgnored,
    NotFound,
    RateLimited,
    ReconcilerError,
    Refused,
    Retriable,
    TwilioAnswerError,
    Unavailable,
)
from reconciler.logs import get_logger
from reconciler.model import ACCOUNT_SID, Page
from reconciler.retry import retrying
from reconciler.settings import Credentials, Settings
from reconciler.twilio.account_records import Account, Usage, decode_accounts, decode_usage
from reconciler.twilio.answers import date_of, load_of, meaning, outcome
from reconciler.twilio.concurrency import Gate, Pacer
from reconciler.twilio.listing import (
    ALERTS_PATH,
    API_PATH,
    PAGE_SIZE,
    Listing,
    own_path,
    page_size_of,
    resized,
    sid_of_token,
)
from reconciler.twilio.outage import Outage
from reconciler.twilio.page_sizes import PageSizes
from reconciler.twilio.server_clock import ServerClock
from reconciler.twilio.time_filters import TimeFilters
from reconciler.twilio.transport import Answer, Transport

_API: Final = "https://api.twilio.com"
_MONITOR: Final = "https://monitor.twilio.com"

log = get_logger(__name__)

T = TypeVar("T")


class TwilioClient:
    """The part of the way to Twilio that all runs share: credentials, connections and concurrency.

    Safe to use from several threads. A run asks through a `Session` of its own.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        pacer: Pacer,
        transport: Transport | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        page_size: int = PAGE_SIZE,
    ) -> None:
        # The SDK's own rule turns region and edge into host names.
        named = _sdk_client(credentials, None).get_hostname
        self._base = credentials.base_url or named(_API)
        self._monitor = credentials.base_url or named(_MONITOR)
        self._transport = transport or Transport(self._base, self._monitor, connections=pacer.ceiling)
        self._sdk = _sdk_client(credentials, self._transport)
        self.pacer = pacer
        self.clock = clock
        self.page_size = page_size  # calls on the largest page to ask for
        self.account_sid = credentials.account_sid  # of the credentials
        self.has_key = credentials.username != credentials.account_sid  # an API key reads one account only
        self.page_sizes = PageSizes()
        self.server_clock = ServerClock(clock)
        self.outage = Outage()
        self._has_worked = threading.Event()
        self.time_filters = TimeFilters()

    @classmethod
    def from_settings(cls, settings: Settings) -> TwilioClient:
        """Return the client that the settings describe.

        Raises:
            ConfigError: credentials are missing.

        """
        return cls(settings.credentials(), pacer=Pacer(settings.max_concurrency))

    def session(
        self,
        stop: threading.Event | None = None,
        *,
        is_bulk: bool = False,
        on_progress: Callable[[], None] = lambda: None,
    ) -> Session:
        """Return a session for one run.

        - `stop` ends its waits.
        - `is_bulk`: the run leaves a share of the concurrency to other sessions.
        - `on_progress` is called before each request and after each answer.
        """
        return Session(self, stop or threading.Event(), is_bulk=is_bulk, on_progress=on_progress)

    @property
    def has_worked(self) -> bool:
        """Whether Twilio accepted these credentials at least once."""
        return self._has_worked.is_set()

    def close(self) -> None:
        """Close the connections to Twilio, and give back this process's share of the concurrency.

        A session that asks again opens new ones.
        """
        self.pacer.close()
        self._transport.close()

    def gate(self, path: str) -> Gate:
        """Return the gate of the account that `path` is about."""
        account_sid = path.removeprefix(f"{API_PATH}/").partition("/")[0]
        return self.pacer.gate(account_sid if ACCOUNT_SID.fullmatch(account_sid) else self.account_sid)

    def get(self, path: str) -> Answer:
        """Send one request, without repeats, and return the answer, whatever its status.

        Raises:
            Unavailable, TwilioAnswerError: as `Transport.request`.

        """
        base = self._monitor if path.startswith(ALERTS_PATH) else self._base
        answer = self._sdk.request("GET", base + path)
        assert isinstance(answer, Answer)
        return answer

    def accept(self) -> None:
        """Record that Twilio answered, and thereby accepted the credentials."""
        self._has_worked.set()
        self.outage.ended()

    def judge(self, answer: Answer, path: str) -> ReconcilerError | None:
        """Return the error that an answer means; it names the setting if a key can never read that account."""
        is_foreign = path.startswith(API_PATH) and not path.startswith(f"{API_PATH}/{self.account_sid}/")
        login = "TWILIO_API_KEY and TWILIO_API_SECRET" if self.has_key else "TWILIO_AUTH_TOKEN"
        error = meaning(answer, now=self.clock(), login=login, worked_before=self.has_worked, is_foreign=is_foreign)
        if is_foreign and self.has_key and error is not None and error.is_refusal:
            asked = "list accounts" if path.startswith(f"{API_PATH}.json") else "read another account than its own"
            return Refused(
                f"the key in TWILIO_API_KEY cannot {asked} (HTTP {answer.status_code}): set TWILIO_AUTH_TOKEN instead",
                hint="the auth token of the main account reads its subaccounts, an API key never does; with "
                "RECONCILER_ACCOUNTS=this its own account is enough",
            )
        return error

    def said_at(self, answer: Answer) -> datetime:
        """Return the time of an answer on Twilio's clock, as far as that clock is credible; see `ServerClock`."""
        return self.server_clock.read(date_of(answer))


class Session:
    """One run's way to Twilio, with counts of its own; safe to use from several threads.

    Raises, from every method:
        Refused: credentials or permissions do not suffice; as NotFound if the resource is not visible.
        Retriable: the request still fails after all repeats.
        OutsideRetention: the listing begins before Twilio's retention.
        TwilioAnswerError: the answer does not fit the request.

    """

    def __init__(
        self, client: TwilioClient, stop: threading.Event, *, is_bulk: bool, on_progress: Callable[[], None]
    ) -> None:
        self.client = client
        self.is_bulk = is_bulk
        self._on_progress = on_progress
        self._retrying = retrying(stop, before_sleep=self._announce)
        self._counts = threading.Lock()
        self.requests = 0
        self.retries = 0
        self.throttles = 0

    @property
    def concurrency(self) -> int:
        """The largest number of requests that are sent at once."""
        return self.client.pacer.ceiling

    @property
    def page_size(self) -> int:
        """The number of calls on the largest page to ask for."""
        return self.client.page_size

    def page(self, listing: Listing, path: str | None = None) -> Page:
        """Return the first page of `listing`, or the page that `path`, from the page before, names.

        Raises:
            TwilioAnswerError: the next page cannot be right, or the record in the page token is gone. Reading the
                listing again from its first page helps.

        """
        wanted = min(listing.page_size, self.page_size)

        def read(answer: Answer, sent: str) -> Page:
            page = listing.decode(answer.body, observed_at=self.client.said_at(answer))
            if not replace(listing, is_exact=False).holds(page):  # hours: at least the days around them
                raise FilterIgnored("Twilio's answer holds records that were not asked for: a filter was ignored")
            return page._replace(next_uri=listing.next_path(page.next_uri, after=sent)) if page.next_uri else page

        page = self._fetch(path or replace(listing, page_size=wanted).path, read, wanted=wanted)
        if listing.is_exact:
            self.client.time_filters.check(listing, page, self.page)
        if path is not None and page.is_empty and page.next_uri is None and not self._is_end(listing, path):
            raise TwilioAnswerError("a promised page came empty, and the record that it continues after is gone")
        return page

    def counts_time(self, account_sid: str, page: Page) -> bool:
        """Whether Twilio counts the time in StartTime filters; asks once for each account, if `page` can prove it."""
        return self.client.time_filters.count(account_sid, page, self.page)

    def _is_end(self, listing: Listing, path: str) -> bool:
        """Whether an empty page is the true end of its listing: Twilio promises a page after a full last page.

        The page's token names the record after which it continues. If Twilio still lists that record, the end is true.
        If the record is gone, its token may lead to an empty page.
        """
        sid = sid_of_token(path)
        if sid is None:
            return True
        found = self._find(listing, sid)
        return bool(found.dead_letters) or (bool(found.sids) and listing.holds(found))

    def call(self, account_sid: str, call_sid: str) -> Page:
        """Return a page with one call; an empty page if Twilio has no such call, or no longer.

        An empty page proves something only if Twilio has answered a listing of the account before. If the credentials
        may not see the account, every call is unknown (https://www.twilio.com/docs/api/errors/20404).
        """
        return self._find(Listing(account_sid), call_sid)

    def _find(self, listing: Listing, sid: str) -> Page:
        """Return a page with one record of the kind that `listing` lists; an empty page if Twilio has none."""

        def read(answer: Answer, _: str) -> Page:
            return listing.decode_one(answer.body, sid, observed_at=self.client.said_at(answer))

        try:
            return self._fetch(listing.path_of(sid), read)
        except NotFound:
            return Page([], [], None, self.client.clock())

    def usage(self, account_sid: str, first: date, last: date) -> dict[date, Usage]:
        """Return Twilio's usage records of calls by UTC day, `first` to `last`, without subaccounts.

        Twilio counts billed calls, by the day of their start (https://www.twilio.com/docs/usage/api/usage-record).
        Yesterday's may still grow. Calls of SIP trunks have records of their own.
        """
        days = (last - first).days + 1
        query = {
            "Category": "calls",
            "StartDate": first.isoformat(),
            "EndDate": last.isoformat(),
            "IncludeSubaccounts": "false",
            "PageSize": str(min(days, PAGE_SIZE)),  # one record a day
        }
        resource = f"{API_PATH}/{account_sid}/Usage/Records/Daily.json"
        records: dict[date, Usage] = {}
        path: str | None = f"{resource}?{urlencode(query)}"
        while path is not None and len(records) < days:
            found, next_uri = self._fetch(path, lambda answer, _: decode_usage(answer.body), wanted=days)
            records |= found
            path = own_path(next_uri, resource=resource, after=path) if next_uri and found else None
        return records

    def accounts(self) -> list[Account]:
        """Return the account of these credentials and its subaccounts, closed ones included.

        Only the auth token and a main API key may list accounts (https://www.twilio.com/docs/iam/api-keys).
        """
        found = self.records(f"{API_PATH}.json?PageSize={PAGE_SIZE}", decode_accounts)
        return list({account.sid: account for account in found}.values())

    def records(self, path: str, decode: Callable[[bytes], tuple[list[T], str | None]]) -> Iterator[T]:
        """What `decode` finds on each page of the list at `path`; it also gives the URI of the page after it.

        A page that was asked again in a smaller size may repeat some.
        """
        resource, page = path.partition("?")[0], path

        def read(answer: Answer, _: str) -> tuple[list[T], str | None]:
            self.client.said_at(answer)  # what the caller keeps, and for how long, goes by Twilio's clock
            return decode(answer.body)

        while True:
            found, next_uri = self._fetch(page, read, wanted=PAGE_SIZE)
            yield from found
            if not next_uri:
                return
            page = own_path(next_uri, resource=resource, after=page)

    def _fetch(self, path: str, read: Callable[[Answer, str], T], *, wanted: int | None = None) -> T:
        """Send the request, with repeats, until `read` accepts the answer; `read` also gets the path that was sent.

        A page of a listing has a `wanted` size. If Twilio fails at it, the request is repeated with a smaller page.
        """
        return self._retrying.copy()(lambda: self._ask(path, read, wanted))

    def _ask(self, path: str, read: Callable[[Answer, str], T], wanted: int | None) -> T:
        if wanted is None:
            return read(self._get(path), path)
        sizes, resource = self.client.page_sizes, path.partition("?")[0]
        if (limit := sizes.limit(resource)) is not None:
            path = resized(path, min(wanted, limit))
        size = page_size_of(path) or wanted
        try:
            result = read(self._get(path), path)
        except Unavailable as exc:
            # A peer may close an idle connection; the size of the page is not the reason.
            if not isinstance(exc, ConnectionLost):
                sizes.failed(resource, size)
            raise
        sizes.answered(resource, size)
        return result

    def _get(self, path: str) -> Answer:
        gate = self.client.gate(path)
        with gate.slot(is_bulk=self.is_bulk) as ticket:
            with self._counts:
                self.requests += 1
            started = time.monotonic()
            try:
                self._on_progress()
                answer = self.client.get(path)
            except ReconcilerError:
                metrics.requests.labels("failed").inc()
                raise
            self._on_progress()
            metrics.request_seconds.observe(time.monotonic() - started)
            error = self.client.judge(answer, path)
            if isinstance(error, RateLimited):
                with self._counts:
                    self.throttles += 1
                gate.throttled(ticket)
                metrics.requests.labels("throttled").inc()
                log.warning(
                    "twilio.throttled",
                    concurrency=gate.limit,
                    retry_after_seconds=None if error.retry_after is None else error.retry_after.total_seconds(),
                    twilio_request_id=answer.headers.get("Twilio-Request-Id"),
                )
            elif error is not None:
                metrics.requests.labels(outcome(error)).inc()
            if error is not None:
                raise error
            metrics.requests.labels("answered").inc()
            self.client.accept()
            gate.hear(ticket, load_of(answer))
            gate.succeeded(ticket)
            return answer

    def _announce(self, error: Retriable, attempt: int, wait: float) -> None:
        with self._counts:
            self.retries += 1
        metrics.retries.inc()
        if not isinstance(error, RateLimited):  # a Twilio that throttles is not away
            self.client.outage.failed(str(error), attempt=attempt, wait=wait)
        log.warning("twilio.retried", error=str(error), attempt=attempt, wait_seconds=round(wait, 3))


def _sdk_client(credentials: Credentials, transport: Transport | None) -> Client:
    return Client(
        credentials.username,
        credentials.secret,
        account_sid=credentials.account_sid,
        region=credentials.region,
        edge=credentials.edge,
        # If `environment` is empty, the SDK silently reads TWILIO_* from ours; this one is not empty.
        environment={"PATH": os.defpath},
        user_agent_extensions=[f"reconciler/{__version__}"],
        http_client=transport,
    )
