"""`reconcile check` on Twilio: the rights of the credentials, the volume of calls, and the clock."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from reconciler.database.webhook_evidence import EndpointFault
from reconciler.errors import NotPermitted, ReconcilerError
from reconciler.masking import mask
from reconciler.model import Page
from reconciler.settings import Settings
from reconciler.status.check_line import Check, compare_clocks, failed, ok, warn
from reconciler.sync.endpoint_faults import find_faults, host_of
from reconciler.times import format_duration
from reconciler.twilio.accounts import find_accounts, named_accounts
from reconciler.twilio.client import Session, TwilioClient
from reconciler.twilio.concurrency import Pacer
from reconciler.twilio.listing import PAGE_SIZE, Listing
from reconciler.twilio.permissions import read_if_permitted
from reconciler.twilio.webhook_listings import list_alerts, list_endpoints
from reconciler.twilio.webhook_records import ENDPOINT_LISTS, Endpoint
from reconciler.wording import counted

# A run waits minutes for Twilio to come back. A person who runs a check wants to know at once that it is away.
PATIENCE: Final = timedelta(seconds=10)
SAMPLE: Final = 200  # calls from which the volume is estimated
FEW: Final = 5  # endpoints at fault that are named
A_PAGE_TAKES: Final = timedelta(seconds=1)  # a generous time to fetch and merge a page


def check_twilio(settings: Settings) -> Generator[Check, None, None]:
    """Yield the lines about Twilio, from a few requests.

    Raises:
        ReconcilerError: the credentials are not set, or the account's calls cannot be read.

    """
    credentials = settings.credentials()
    main = credentials.account_sid
    patience = threading.Event()
    timer = threading.Timer(PATIENCE.total_seconds(), patience.set)
    timer.start()
    client = TwilioClient(credentials, pacer=Pacer(1))
    source = client.session(patience)
    try:
        before = datetime.now(UTC)
        page = source.page(Listing(main, page_size=SAMPLE))
        after = datetime.now(UTC)
        said_at = client.server_clock.told
        yield ok("Twilio", f"the calls of {main} can be read")
        yield from _accounts(settings, source, main)
        yield _usage(source, main)
        yield _alerts(source, main)
        yield _endpoints(source, named_accounts(settings, main).sids)
        yield _volume(page, settings, now=after)
        yield _clock(said_at, before, after)
    finally:
        timer.cancel()
        client.close()


def _accounts(settings: Settings, source: Session, main: str) -> Iterator[Check]:
    """Check that all accounts of RECONCILER_ACCOUNTS can be read; `this` account has been checked before."""
    match settings.accounts:
        case ("this",):
            return
        case ("all",):
            try:
                found = find_accounts(source, main)
            except ReconcilerError as exc:
                yield failed("accounts", exc)
            else:
                yield ok("accounts", f"{counted(len(found.sids), 'account')} can be read: this one and its subaccounts")
        case _:
            sids = named_accounts(settings, main).sids
            can_all = True
            for sid in sids:
                try:
                    source.page(Listing(sid, page_size=1))
                except ReconcilerError as exc:
                    can_all = False
                    yield failed("accounts", exc)._replace(detail=f"{sid}: {exc}")
            if can_all:
                yield ok("accounts", f"the {len(sids):,} in RECONCILER_ACCOUNTS can be read")


def _usage(source: Session, main: str) -> Check:
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    try:
        read_if_permitted(source, main, partial(source.usage, main, yesterday, yesterday))
    except NotPermitted as exc:
        hint = "allow the key in TWILIO_API_KEY to read usage records" if source.client.has_key else str(exc)
        return warn("usage records", "cannot be read: days are proven without them", hint)
    except ReconcilerError as exc:
        return failed("usage records", exc)
    return ok("usage records", "can be read")


def _alerts(source: Session, main: str) -> Check:
    now = datetime.now(UTC)

    def read() -> object:
        return next(list_alerts(source, now - timedelta(hours=1), now), None)

    try:
        read_if_permitted(source, main, read)
    except NotPermitted:
        return ok("alerts", "cannot be read with these credentials: `reconcile why` explains without them")
    except ReconcilerError as exc:
        return failed("alerts", exc)
    return ok("alerts", "can be read")


def _endpoints(source: Session, accounts: Sequence[str]) -> Check:
    """Whether numbers, SIP domains and TwiML apps tell how their calls end, and all of them to one host."""
    what, endpoints, faults = "numbers, SIP domains and TwiML apps", 0, list[EndpointFault]()
    for account_sid in accounts:

        def read(account_sid: str = account_sid) -> list[Endpoint]:
            return [each for kind in ENDPOINT_LISTS for each in list_endpoints(source, account_sid, kind)]

        try:
            found = read_if_permitted(source, account_sid, read)
        except NotPermitted:
            return ok("webhooks", f"{what} cannot be read with these credentials: their status callbacks are unknown")
        except ReconcilerError as exc:
            return failed("webhooks", exc)
        endpoints += len(found)
        faults += find_faults(found)
    if not faults:
        return ok("webhooks", f"{counted(endpoints, 'endpoint')} ({what}), each with a status callback on one host")
    lines = [f"{fault}: {_named(those)}" for fault, those in _by_fault(faults).items()]
    hint = "set their status callback as the others have it; `reconcile why` shows the calls that this lost"
    return warn("webhooks", "; ".join(lines), hint)


def _by_fault(faults: Sequence[EndpointFault]) -> dict[str, list[str]]:
    words = {"no_callback": "without a status callback", "other_host": "with one on another host than the rest"}
    found: dict[str, list[str]] = {}
    for fault in faults:
        at = f" ({host_of(fault.url)})" if fault.url else ""
        found.setdefault(words[fault.fault], []).append(f"{mask(fault.address)}{at}")
    return found


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - FEW:,} more" if len(names) > FEW else ""
    return f"{', '.join(names[:FEW])}{more}"


def _volume(page: Page, settings: Settings, *, now: datetime) -> Check:
    """Estimate from the newest calls how many pages a run of hot must read."""
    calls = sorted(call.date_created for call in page.observations if call.date_created is not None)
    if not calls:
        return ok("volume", "no call yet")
    a_minute = len(calls) / max((now - calls[0]) / timedelta(minutes=1), 1 / 60)
    minutes = (settings.hot_interval + settings.overlap) / timedelta(minutes=1)
    pages = int(a_minute * minutes / PAGE_SIZE) + 1
    every = format_duration(settings.hot_interval)
    detail = f"about {a_minute:,.1f} calls a minute: hot reads {pages:,} page{'s' * (pages > 1)} every {every}"
    if pages * A_PAGE_TAKES <= settings.hot_interval:
        return ok("volume", detail)
    return warn("volume", detail, "set RECONCILER_HOT_INTERVAL higher, or RECONCILER_OVERLAP lower")


def _clock(said_at: datetime | None, before: datetime, after: datetime) -> Check:
    if said_at is None:
        detail = "cannot be compared with Twilio's: its answer came without a Date header"
        return warn("clock", detail, "look for a proxy on the way to Twilio that drops it")
    # `Date` has whole seconds, so the true time lies in [Date, Date + 1 s).
    return compare_clocks("clock", "Twilio's", before - said_at - timedelta(seconds=1), said_at - after)
