"""The list of calls: order, envelope, paging, filters, and the switches for contested points."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from reconciler.simulator import Switches

DATA = Path(__file__).parent.parent / "data"
NOON = datetime(2026, 6, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def test_every_page_shows_each_call_once_while_new_ones_arrive_at_the_head(serve, account):
    """A keyset cursor: calls that arrive while one pages do not shift the pages that follow."""
    account.generate(230, NOON - DAY, NOON - HOUR)
    _, client = serve()
    known = {call.sid for call in account.calls_at(NOON)}
    seen = []
    for page in client.pages(PageSize=50):
        seen += [call["sid"] for call in page["calls"]]
        account.call(NOON - timedelta(seconds=1))
    assert len(seen) == len(set(seen)) == len(known)
    assert set(seen) == known


def test_page_alone_is_not_stable(serve, account):
    """Page without PageToken counts from the head, so an arriving call shows the last one of a page again."""
    for minute in range(4):
        account.call(NOON - timedelta(minutes=10 - minute))
    _, client = serve()
    first = client.page(PageSize=2)
    account.call(NOON)
    second = client.page(PageSize=2, Page=1)
    assert first["calls"][1]["sid"] == second["calls"][0]["sid"]


def test_order_is_descending_date_created(serve, account):
    """Newest date_created first, whatever start_time says."""
    late = account.call(NOON - 3 * HOUR, queued_for=7200)
    early = account.call(NOON - 2 * HOUR)
    _, client = serve()
    assert [early.sid, late.sid] == client.sids()


def test_envelope_is_that_of_the_recorded_listing(serve, account):
    """The two recorded pages of 65 calls come out with the same envelope, key by key."""
    recorded = json.loads((DATA / "real_list_envelopes.json").read_text(encoding="utf-8"))["pages"]
    for number in range(65):
        account.call(NOON - timedelta(minutes=number), sid=f"CA{number + 1:032d}")
    _, client = serve()
    for page, expected in zip(client.pages(PageSize=50), recorded, strict=True):
        calls = page.pop("calls")
        assert (expected["calls_count"], expected["first_sid"], expected["last_sid"]) == (
            len(calls), calls[0]["sid"], calls[-1]["sid"],
        )  # fmt: skip
        assert expected["envelope"] == page


def test_headers_are_those_of_the_recorded_listing(serve, account):
    """Date comes from the simulated clock; the request id and the concurrency are there."""
    _, client = serve()
    headers = client.get(f"/Accounts/{account.sid}/Calls.json").headers
    assert headers["Date"] == "Wed, 10 Jun 2026 12:00:00 GMT"
    assert headers["Content-Type"] == "application/json;charset=utf-8"
    assert headers["Twilio-Concurrent-Requests"] == "1"
    assert headers["Twilio-Request-Id"].startswith("RQ")
    assert float(headers["Twilio-Request-Duration"]) >= 0


def test_previous_page_uri_leads_back(serve, account):
    """`PB` and the SID of the first record lead to the page in front."""
    account.generate(120, NOON - DAY, NOON - HOUR)
    _, client = serve()
    pages = list(client.pages(PageSize=40))
    assert pages[0]["calls"] == client.get(pages[1]["previous_page_uri"]).json()["calls"]


def test_full_last_page_leads_to_an_empty_one(serve, account):
    """No look-ahead: a page that is just full has a next page, which is empty and ends."""
    for minute in range(4):
        account.call(NOON - timedelta(minutes=minute))
    _, client = serve()
    last = list(client.pages(PageSize=2))[-1]
    assert (last["calls"], last["start"], last["end"], last["next_page_uri"]) == ([], 0, 0, None)


@pytest.mark.parametrize(("asked", "given"), [(None, 50), ("1", 1), ("1000", 1000), ("5000", 1000), ("0", 1)])
def test_page_size_is_50_unless_given_and_at_most_1000(serve, asked, given):
    """PageSize is clamped to 1 to 1000."""
    _, client = serve()
    assert given == client.page(**({} if asked is None else {"PageSize": asked}))["page_size"]


def test_unknown_and_misspelt_parameters_are_ignored(serve, account):
    """Names are exact and case-sensitive; anything else is no filter and no error."""
    account.call(NOON - DAY)
    _, client = serve()
    for name in ("StartTimeAfter", "starttime>", "StartTime>=", "status", "Direction"):
        params = {name: "2030-01-01"}
        assert len(client.get(f"/Accounts/{account.sid}/Calls.json", params=params).json()["calls"]) == 1


def test_filters_are_kept_in_next_page_uri(serve, account):
    """The next page is filtered like the first."""
    for minute in range(6):
        account.call(NOON - timedelta(minutes=10 + minute), status="busy" if minute % 2 else "completed")
    _, client = serve()
    pages = list(client.pages(PageSize=2, Status="busy", StartTime_after="2026-06-10"))
    assert "Status=busy" in pages[0]["next_page_uri"]
    assert "StartTime%3E=2026-06-10" in pages[0]["next_page_uri"]
    assert {"busy"} == {call["status"] for page in pages for call in page["calls"]}


def test_to_from_status_and_parent_filter(serve, account):
    """Each filter takes exactly the calls that have its value."""
    parent = account.call(NOON - HOUR, direction="inbound", from_="+14155550111", to="+12025550100")
    child = account.call(NOON - HOUR + timedelta(seconds=3), to="client:bob", parent_call_sid=parent.sid, status="busy")
    _, client = serve()
    assert [parent.sid] == client.sids(From="+14155550111")
    assert [child.sid] == client.sids(To="client:bob")
    assert [child.sid] == client.sids(ParentCallSid=parent.sid)
    assert [child.sid] == client.sids(Status="busy")
    assert client.sids(Status="cancelled") == []


@pytest.mark.parametrize("status", ["queued", "ringing", "in-progress"])
def test_status_of_the_living_finds_calls_of_any_age(serve, account, status):
    """A call that is stuck since last month is listed by its status."""
    stuck = account.call(
        NOON - 30 * DAY,
        queued_for=None if status == "queued" else 0,
        rings_for=None if status == "ringing" else 5,
        talks_for=None,
    )
    account.generate(300, NOON - 30 * DAY, NOON - 5 * DAY)
    _, client = serve()
    assert [stuck.sid] == client.sids(Status=status)


def test_instants_count_in_filters(serve, account):
    """With instants, an hour's window holds that hour's calls; `>` is inclusive and `<` is not."""
    calls = [account.call(NOON - 5 * HOUR + n * HOUR, rings_for=0) for n in range(4)]
    _, client = serve()
    hour = {"StartTime_after": "2026-06-10T08:00:00Z", "StartTime_before": "2026-06-10T09:00:00Z"}
    assert [calls[1].sid] == client.sids(**hour)


def test_only_dates_count_in_filters(serve, account):
    """With days, an hour's window is cut to dates: before today and not before today, so nothing."""
    yesterday = account.call(NOON - DAY, rings_for=0)
    today = account.call(NOON - 5 * HOUR, rings_for=0)
    _, client = serve(switches=Switches(time_filters="day"))
    assert client.sids(StartTime_after="2026-06-10T06:00:00Z", StartTime_before="2026-06-10T09:00:00Z") == []
    assert [today.sid] == client.sids(StartTime_after="2026-06-10T11:00:00Z")
    assert [yesterday.sid] == client.sids(StartTime_before="2026-06-10T11:00:00Z")


@pytest.mark.parametrize(
    ("switches", "before"),
    [
        (Switches(), ["last"]),
        (Switches(before_is_inclusive=True), ["midnight", "last"]),
        (Switches(time_filters="day"), ["last"]),
        (Switches(time_filters="day", before_is_inclusive=True), ["late", "midnight", "last"]),
    ],
)
def test_before_may_include_the_midnight_or_the_day(serve, account, switches, before):
    """What `StartTime<` of a date shows at the boundary is a switch."""
    midnight = datetime(2026, 6, 10, tzinfo=UTC)
    calls = {"last": midnight - timedelta(seconds=1), "midnight": midnight, "late": midnight + 11 * HOUR}
    sids = {name: account.call(at, rings_for=0).sid for name, at in calls.items()}
    _, client = serve(switches=switches)
    assert [sids[name] for name in before] == client.sids(StartTime_before="2026-06-10")


def test_equality_means_a_day_and_never_an_instant(serve, account):
    """`StartTime=<date>` is that UTC day; equality with an instant finds nothing; the same day twice is empty."""
    call = account.call(NOON - HOUR, rings_for=0)
    _, client = serve()
    assert [call.sid] == client.sids(StartTime="2026-06-10")
    assert client.sids(StartTime="2026-06-10T11:00:00Z") == []
    assert client.sids(StartTime_after="2026-06-10", StartTime_before="2026-06-10") == []


def test_end_time_filter_shows_only_calls_that_ended(serve, account):
    """A living call has no end_time and passes no filter on it."""
    ended = account.call(NOON - HOUR)
    account.call(NOON - HOUR, talks_for=None)
    _, client = serve()
    assert [ended.sid] == client.sids(EndTime_after="2026-06-10")


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        (Switches(), ["trunk"]),
        (Switches(time_filters="day"), ["evening", "trunk", "morning"]),
        (Switches(end_time_filters="day"), ["evening", "trunk", "morning"]),
        (Switches(time_filters="day", end_time_filters="instant"), ["trunk"]),
    ],
)
def test_end_time_counts_as_an_instant_or_as_its_day(serve, account, switches, expected):
    """By its end a trunk call of three hours is found; by days the whole day comes with it, yesterday does not."""
    calls = {
        "yesterday": account.call(NOON - DAY),
        "morning": account.call(NOON - 4 * HOUR),
        "trunk": account.call(NOON - 3 * HOUR, direction="trunking-terminating", talks_for=3 * 3600 - 60),
        "evening": account.call(NOON - 2 * HOUR),
    }
    _, client = serve(switches=switches)
    names = {call.sid: name for name, call in calls.items()}
    assert expected == [names[sid] for sid in client.sids(EndTime_after="2026-06-10T11:50:00Z")]


def test_time_filter_finds_a_call_that_waited_for_hours(serve, account):
    """start_time is what counts, not date_created: a call queued before midnight starts after it."""
    account.generate(50, NOON - 3 * DAY, NOON - 2 * DAY)
    queued = account.call(datetime(2026, 6, 9, 20, tzinfo=UTC), queued_for=6 * 3600)
    _, client = serve()
    assert [queued.sid] == client.sids(StartTime_after="2026-06-10")


def test_null_start_passes_time_filters_only_if_switched_on(serve, account):
    """A call that was never dialled has no start_time."""
    call = account.call(NOON - HOUR, status="canceled", never_dialled=True)
    twilio, client = serve()
    assert client.sids(StartTime_after="2026-06-01") == []
    twilio.switches = Switches(null_start_matches_filters=True)
    assert [call.sid] == client.sids(StartTime_after="2026-06-01")


def test_ignored_filters_return_the_whole_log(serve, account):
    """With ignore_filters every call comes back, whichever filter was sent."""
    account.generate(20, NOON - DAY, NOON - 5 * HOUR)
    _, client = serve(switches=Switches(ignore_filters=True))
    assert client.sids() == client.sids(StartTime_after="2026-06-11", Status="busy")


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_listing_may_contain_a_call_twice(serve, account, size, rate):
    """Duplicates hide nothing, paging still ends, and the same listing repeats them the same way."""
    account.generate(60, NOON - DAY, NOON - 5 * HOUR)
    twilio, client = serve()
    once = client.sids(PageSize=1000)
    twilio.switches = Switches(duplicates_in_listing=rate)
    twice = client.sids(PageSize=size)
    assert set(once) == set(twice)
    assert twice == client.sids(PageSize=size)
    assert size == 1 or len(twice) > len(once)


def test_next_page_uri_may_name_another_host(serve, account):
    """An absolute next_page_uri is what a client must not follow with credentials."""
    account.generate(3, NOON - DAY, NOON - 5 * HOUR)
    _, client = serve(switches=Switches(absolute_next_page_uri="https://elsewhere.example"))
    assert client.page(PageSize=1)["next_page_uri"].startswith("https://elsewhere.example/2010-04-01/")


def test_window_before_the_retention_is_refused(serve, account):
    """400/20004 when the window begins more than 400 days ago."""
    _, client = serve(switches=Switches(retention_days=400))
    refused = client.get(f"/Accounts/{account.sid}/Calls.json", params={"StartTime>": "2025-05-05"})
    assert (
        refused.status_code, refused.json()["code"], refused.headers["X-Twilio-Error-Code"],
    ) == (400, 20004, "20004")  # fmt: skip
    assert client.sids(StartTime_after="2025-05-07") == []


def test_unreadable_time_is_an_error(serve, account):
    """400 for a time that is none."""
    _, client = serve()
    assert client.get(f"/Accounts/{account.sid}/Calls.json", params={"StartTime>": "soon"}).status_code == 400


def test_extra_keys_appear_in_records_and_envelope(serve, account):
    """Unknown keys may come at any time."""
    account.call(NOON - HOUR)
    twilio, client = serve()
    plain = client.page()
    twilio.switches = Switches(extra_keys=True)
    extra = client.page()
    assert extra.keys() > plain.keys()
    assert extra["calls"][0].keys() > plain["calls"][0].keys()


def test_deleted_calls_vanish_and_their_tokens_do_what_the_switch_says(serve, account):
    """A page token of a deleted call goes on from its place, or is refused."""
    calls = [account.call(NOON - timedelta(minutes=n)) for n in range(3)]
    twilio, client = serve()
    uri = client.page(PageSize=1)["next_page_uri"]
    account.delete(calls[0].sid, NOON)
    assert [calls[1].sid, calls[2].sid] == client.sids()
    assert client.get(f"/Accounts/{account.sid}/Calls/{calls[0].sid}.json").status_code == 404
    assert calls[1].sid == client.get(uri).json()["calls"][0]["sid"]
    twilio.switches = Switches(deleted_cursor="refuse")
    assert client.get(uri).status_code == 400


def test_lags_show_an_older_state(serve, account):
    """A listing may miss the newest calls, and GET of one call may be older than its webhook."""
    call = account.call(NOON - timedelta(seconds=40))  # ended four seconds ago
    young = account.call(NOON - timedelta(seconds=5))
    lag = timedelta(seconds=10)
    _, client = serve(switches=Switches(listing_lag=lag, fetch_lag=lag))
    assert [call.sid] == client.sids()
    assert client.get(f"/Accounts/{account.sid}/Calls/{call.sid}.json").json()["status"] == "in-progress"
    assert client.get(f"/Accounts/{account.sid}/Calls/{young.sid}.json").status_code == 404


def test_gzip_only_when_offered_and_switched_on(serve, account):
    """The body is compressed for a client that offers gzip, and is the same."""
    account.generate(20, NOON - DAY, NOON - HOUR)
    twilio, client = serve()
    path = f"/Accounts/{account.sid}/Calls.json"
    plain = client.get(path)
    twilio.switches = Switches(gzip=True)
    packed, refused = client.get(path), client.get(path, headers={"Accept-Encoding": "identity"})
    assert [answer.headers.get("Content-Encoding") for answer in (plain, packed, refused)] == [None, "gzip", None]
    assert plain.json() == packed.json() == refused.json()


def test_date_header_may_be_missing(serve, account):
    """Some recorded answers lack a Date."""
    _, client = serve(switches=Switches(date_header=False))
    assert "Date" not in client.get(f"/Accounts/{account.sid}/Calls.json").headers


def test_real_records_are_served_verbatim(serve, account, real_calls):
    """Every real record comes back as it was recorded, but for the account that owns it."""
    account.load(real_calls)
    _, client = serve()
    served = {call["sid"]: call for page in client.pages(PageSize=1000) for call in page["calls"]}
    assert len(real_calls) == len(served)
    for record in real_calls:
        expected = json.loads(json.dumps(record).replace(record["account_sid"], account.sid))
        assert expected == served[record["sid"]]
        assert list(expected) == list(served[record["sid"]])
        assert expected == client.get(f"/Accounts/{account.sid}/Calls/{record['sid']}.json").json()


def test_real_records_pass_the_filters_their_own_fields_pass(serve, account, real_calls):
    """Filters read the recorded status and times."""
    account.load(real_calls)
    _, client = serve()
    busy = {record["sid"] for record in real_calls if record["status"] == "busy"}
    assert busy == set(client.sids(Status="busy", PageSize=1000))
    recent = client.sids(StartTime="2026-06-09", PageSize=1000)
    expected = {record["sid"] for record in real_calls if (record["start_time"] or "").startswith("Tue, 09 Jun 2026")}
    assert expected == set(recent)
    assert recent


def test_twenty_thousand_calls_are_listed_completely(serve, account):
    """A listing of 20,000 calls in pages of 1000 holds each call that can be seen, once."""
    account.generate(20_000, NOON - 30 * DAY, NOON)
    assert account.call_count == 20_000
    _, client = serve()
    sids = client.sids(PageSize=1000)
    visible = {call.sid for call in account.calls_at(NOON)}
    assert len(sids) == len(visible)
    assert set(sids) == visible
    assert len(visible) > 19_950
