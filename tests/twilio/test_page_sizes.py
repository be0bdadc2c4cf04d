"""Large pages that Twilio cannot answer are asked for again in smaller ones, and grow again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.errors import Unavailable
from reconciler.simulator import Fault
from reconciler.simulator.messages import Answer
from reconciler.twilio.listing import API_PATH, Listing, page_size_of, resized
from reconciler.twilio.page_sizes import MOST_PATIENCE, SMALLEST, PageSizes

NOON = datetime(2026, 6, 10, 12, tzinfo=UTC)
CALLS = "/2010-04-01/Accounts/AC/Calls.json"


@pytest.fixture
def busy(account):
    """2,530 calls."""
    account.generate(2_500, NOON - timedelta(days=2), NOON - timedelta(hours=1))
    return account


@pytest.fixture
def whole(account) -> Listing:
    """All calls, in pages as large as can be."""
    return Listing(account.sid)


def read(source, listing) -> list[str]:
    """The SIDs of a whole listing."""
    found, path = [], None
    while True:
        page = source.page(listing, path)
        found += [observation.call_sid for observation in page.observations]
        if (path := page.next_uri) is None:
            return found


def sizes(twilio) -> list[int]:
    """The page sizes that were asked for."""
    return [int(request.param("PageSize")) for request in twilio.requests]


def above(size: int):
    """Whether a request asks for a larger page."""
    return lambda request: int(request.param("PageSize") or 50) > size


@pytest.mark.parametrize("fault", [Fault.server_error(500), Fault.server_error(504, html=True), Fault.truncated_json()])
@pytest.mark.parametrize("allowed", [500, 100, 50])
def test_a_page_that_is_too_large_is_asked_for_in_halves(source, twilio, busy, plan, whole, allowed, fault):
    """Every call comes once. The next listing begins with the smaller size, and so does another run's session."""
    plan.when(above(allowed), fault)
    expected = [call.sid for call in busy.calls_at(NOON)]
    assert expected == read(source, whole)
    failed = [size for size in sizes(twilio) if size > allowed]
    assert [1000, 500, 250, 125, 62][: len(failed)] == failed or len(failed) <= 8
    assert source.retries == len(failed)
    twilio.requests.clear()
    session = source.client.session()
    assert expected == read(session, whole)
    assert sizes(twilio)[0] <= allowed
    assert session.retries <= 2


def test_a_timeout_of_a_large_page_is_one_too(make_source, twilio, busy, plan, whole):
    """Twilio gives up a large page after half a minute."""
    source = make_source(twilio.base_url, timeouts=(0.2, 5))
    plan.when(above(500), Fault.hang(), times=1)
    assert 2_530 == len(read(source, whole))
    assert [1000, 500] == sizes(twilio)[:2]


def test_what_says_nothing_of_the_size_makes_no_page_smaller(source, twilio, busy, plan, whole):
    """A reset of an idle connection, and too many requests at once."""
    plan.next(Fault.reset(), Fault.too_many_requests())
    read(source, whole)
    assert [1000] * 5 == sizes(twilio)


def test_one_account_learns_nothing_for_another(source, twilio, busy, plan, whole):
    """Each listing has a size of its own."""
    other = busy.add_subaccount(f"AC{9:032x}", "sub-token")
    plan.next(Fault.server_error(500))
    read(source, whole)
    twilio.requests.clear()
    source.page(Listing(other.sid))
    assert [1000] == sizes(twilio)


def test_pages_are_large_again_soon_after_an_outage(source, twilio, busy, plan, whole):
    """An outage fails at every size, so it says nothing of sizes: each answer doubles the page, within the listing."""
    first = source.page(whole)
    plan.next(*[Fault.server_error(503)] * 6)
    path, seen = first.next_uri, len(first.observations)
    twilio.requests.clear()
    while path is not None:
        page = source.page(whole, path)
        path, seen = page.next_uri, seen + len(page.observations)
    assert 2_530 == seen
    assert [1000, 500, 250, 125, 62, 50, 50, 100, 200, 400] == sizes(twilio)[:10]


def test_an_outage_ends_in_the_usual_error(source, twilio, plan, whole):
    """It ends after the usual number of attempts."""
    plan.always(Fault.server_error(503))
    with pytest.raises(Unavailable):
        source.page(whole)
    assert [1000, 500, 250, 125, 62, *[50] * 5] == sizes(twilio)


def test_usage_records_are_asked_for_as_many_as_days(source, account, twilio, plan):
    """Twilio fails at large pages of them, and at most 35 days are wanted."""
    plan.when(above(100), Fault.server_error(500))
    last = NOON.date()
    assert 35 == len(source.usage(account.sid, last - timedelta(days=34), last))
    assert ([35], 0) == (sizes(twilio), source.retries)


def test_usage_records_are_read_to_the_last_day_that_is_wanted(source, account, twilio, plan):
    """Twilio may make the pages small."""
    resource = f"{API_PATH}/{account.sid}/Usage/Records/Daily.json"
    query = {"Category": "calls", "StartDate": "2026-06-01", "EndDate": "2026-06-10", "IncludeSubaccounts": "false"}
    page = {
        "usage_records": [{"start_date": "2026-06-10", "count": "4"}],
        "next_page_uri": f"{resource}?{urlencode(query)}&PageSize=1&Page=1",
    }
    plan.next(Fault("instead", instead=Answer(payload=page)))
    counted = source.usage(account.sid, NOON.date() - timedelta(days=9), NOON.date())
    assert 10 == len(counted)
    assert counted[NOON.date()].calls == 4


def test_a_size_that_failed_is_tried_again_ever_more_rarely():
    """If an account never allows 1,000, one request in hundreds is lost."""
    learned, tried = PageSizes(), 0
    learned.failed(CALLS, 1000)
    for _ in range(10_000):
        if learned.limit(CALLS) == 1000:
            tried += 1
            learned.failed(CALLS, 1000)
        else:
            learned.answered(CALLS, 500)
    assert 500 == learned.limit(CALLS)
    assert 10_000 // MOST_PATIENCE <= tried <= 10_000 // MOST_PATIENCE + 7


def test_a_burst_of_failures_halves_once():
    """Six pages under way together and failed together are one sign."""
    learned = PageSizes()
    for _ in range(6):
        learned.failed(CALLS, 1000)
    assert 500 == learned.limit(CALLS)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 1000)), max_size=300))
def test_a_page_is_never_smaller_than_twilios_own(events):
    """Failures and answers come in every order."""
    learned = PageSizes()
    for is_answer, size in events:
        (learned.answered if is_answer else learned.failed)(CALLS, size)
        assert SMALLEST <= (learned.limit(CALLS) or SMALLEST) <= 1000


@given(st.integers(1, 1000), st.integers(0, 5_000), st.integers(1, 1000), st.booleans())
def test_a_resized_page_leaves_no_record_out(own, number, size, has_token):
    """Where `Page` alone counts, it begins at or before the record that the page begins at."""
    token = f"&PageToken=PACA{1:032x}" if has_token else ""
    path = resized(f"{CALLS}?Status=queued&PageSize={own}&Page={number}{token}", size)
    query = dict(part.split("=") for part in path.partition("?")[2].split("&"))
    assert int(query["PageSize"]) * int(query["Page"]) <= own * number
    assert int(query["PageSize"]) <= max(own, size)
    if size > own:
        assert int(query["PageSize"]) * int(query["Page"]) == own * number
    assert ("queued", has_token) == (query["Status"], "PageToken" in query)


@pytest.mark.parametrize("query", ["", "PageSize=x", "PageSize=0", "PageSize=99999", "MyPageSize=50"])
def test_a_path_without_a_page_size_stays(query):
    """There is nothing to replace."""
    assert page_size_of(f"{CALLS}?{query}") is None
    assert f"{CALLS}?{query}" == resized(f"{CALLS}?{query}", 500)
