"""The order in which the pages of several slices are asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta

from reconciler.settings import Credentials
from reconciler.simulator import Fault, SimulatedAccount
from reconciler.sync.fetch import Fetched, Handled, Inline, fetch
from reconciler.sync.order import Order
from reconciler.sync.slices import slice_of_days, slice_of_recordings
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.concurrency import Pacer
from tests.harness.names import NOW, TOKEN

DAY = timedelta(days=1)
TODAY = datetime(NOW.year, NOW.month, NOW.day, tzinfo=UTC)


def read(account: SimulatedAccount, url: str, order: Order, handle: Callable[[Fetched], None], *, page_size: int,
         make_executor: Callable[[int], Executor] = ThreadPoolExecutor,
         stop: threading.Event | None = None) -> list[Fetched]:  # fmt: skip
    """Read slices of few calls, two pages at once; return the pages."""
    credentials = Credentials(account_sid=account.sid, username=account.sid, secret=TOKEN, base_url=url)
    with closing(TwilioClient(credentials, pacer=Pacer(2), page_size=page_size)) as client:
        found = fetch(
            client.session(), order, cut=lambda *_: (), on_arrived=lambda _: None, handle=handle, handlers=Inline(),
            make_executor=make_executor, stop=stop or threading.Event(),
        )  # fmt: skip
        return [handled.item for handled in found if isinstance(handled, Handled)]


def test_the_slice_with_the_most_pages_left_is_read_on_first(account, twilio):
    """So all slices end at about the same time. Else the longest would be read alone at the end.

    Two pages are asked for at once. As long as the second day hangs, the others take turns.
    """
    days = [(TODAY - number * DAY, TODAY - (number - 1) * DAY) for number in (1, 2, 3)]
    for day, calls in zip(days, (30, 30, 70), strict=True):
        account.generate(calls, *day)
    hanging = f"{days[1][0]:%FT%TZ}"
    twilio.faults.when(lambda request: request.param("StartTime>") == hanging, Fault.hang())

    def handle(item: Fetched) -> None:
        if not item.is_first:
            twilio.faults.clear()
            twilio.faults.release()

    read(account, twilio.base_url, Order([slice_of_days(account.sid, *day) for day in days]), handle, page_size=20)
    first_of_second_pages = next(request for request in twilio.requests if request.param("Page") == "1")
    assert first_of_second_pages.param("StartTime>") == f"{days[2][0]:%FT%TZ}"


def test_few_pages_are_asked_for_ahead_of_their_turn(account, twilio):
    """Recordings wait in memory for the calls, however many slices they have and however long the calls take."""
    account.generate(100, TODAY - DAY, TODAY)
    hours = [TODAY - number * timedelta(hours=1) for number in range(40)]
    recordings = [slice_of_recordings(account.sid, hour - timedelta(hours=1), hour) for hour in hours]
    order = Order([slice_of_days(account.sid, TODAY - DAY, TODAY)], last=recordings)
    ahead = []

    def handle(item: Fetched) -> None:
        if not item.slice.is_of_recordings and item.next_uri is None:
            ahead.append(twilio.requests.count(path_contains="Recordings"))

    pages = read(account, twilio.base_url, order, handle, page_size=5, make_executor=lambda _: Inline())
    assert 0 < ahead[0] <= 2 + 2 // 2  # half as many as come at once wait, and as many as come at once are under way
    assert {slice_.name for slice_ in recordings} <= {page.slice.name for page in pages}


def test_recordings_wait_for_calls_that_a_stop_leaves_unread(account, twilio):
    """Their URLs belong into the rows of those calls. The next run asks for the recordings again."""
    account.generate(100, TODAY - DAY, TODAY)
    days = [slice_of_days(account.sid, TODAY - DAY, TODAY)]
    order, stop = Order(days, last=[slice_of_recordings(account.sid, TODAY - DAY, TODAY)]), threading.Event()
    pages = read(account, twilio.base_url, order, lambda _: stop.set(), page_size=50, make_executor=lambda _: Inline(),
                 stop=stop)  # fmt: skip
    assert twilio.requests.count(path_contains="Recordings") == 1
    assert [(page.slice, page.next_uri is None) for page in pages] == [(days[0], False)]
