"""The order in which the pages of several slices are asked for."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta

from reconciler.settings import Credentials
from reconciler.simulator import Fault
from reconciler.sync.fetch import Fetched, Inline, fetch
from reconciler.sync.order import Order
from reconciler.sync.slices import slice_of_days
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.concurrency import Pacer
from tests.harness.names import NOW, TOKEN

DAY = timedelta(days=1)
TODAY = datetime(NOW.year, NOW.month, NOW.day, tzinfo=UTC)


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

    credentials = Credentials(account_sid=account.sid, username=account.sid, secret=TOKEN, base_url=twilio.base_url)
    with closing(TwilioClient(credentials, pacer=Pacer(2), page_size=20)) as client:
        for _ in fetch(
            client.session(), Order([slice_of_days(account.sid, *day) for day in days]), cut=lambda *_: (),
            on_arrived=lambda _: None, handle=handle, handlers=Inline(), make_executor=ThreadPoolExecutor,
            stop=threading.Event(),
        ):  # fmt: skip
            pass
    first_of_second_pages = next(request for request in twilio.requests if request.param("Page") == "1")
    assert first_of_second_pages.param("StartTime>") == f"{days[2][0]:%FT%TZ}"
