"""Recordings, numbers, SIP domains, TwiML apps and Monitor alerts: shapes, filters, pages."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from reconciler.simulator import Callbacks, Switches
from reconciler.simulator.webhooks import webhooks

NOON = datetime(2026, 6, 10, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
DATA = Path(__file__).parent.parent / "data"
MAIN, SUB = f"AC{1:032x}", f"AC{2:032x}"
SCHEMAS = json.loads((DATA / "twilio_api_v2010.calls.json").read_text(encoding="utf-8"))["components"]["schemas"]
RECORDING = SCHEMAS["api.v2010.account.recording"]["properties"].keys()
OF_CALL = SCHEMAS["api.v2010.account.call.call_recording"]["properties"].keys()
NUMBER = {
    "account_sid", "address_requirements", "address_sid", "api_version", "beta", "bundle_sid", "capabilities",
    "date_created", "date_updated", "emergency_address_sid", "emergency_address_status", "emergency_status",
    "friendly_name", "identity_sid", "origin", "phone_number", "sid", "sms_application_sid", "sms_fallback_method",
    "sms_fallback_url", "sms_method", "sms_url", "status", "status_callback", "status_callback_method", "trunk_sid",
    "type", "uri", "voice_application_sid", "voice_caller_id_lookup", "voice_fallback_method", "voice_fallback_url",
    "voice_method", "voice_receive_mode", "voice_url",
}  # fmt: skip
DOMAIN = {
    "account_sid", "api_version", "auth_type", "byoc_trunk_sid", "date_created", "date_updated", "domain_name",
    "emergency_caller_sid", "emergency_calling_enabled", "friendly_name", "secure", "sid", "sip_registration",
    "subresource_uris", "uri", "voice_fallback_method", "voice_fallback_url", "voice_method",
    "voice_status_callback_method", "voice_status_callback_url", "voice_url",
}  # fmt: skip
APPLICATION = {
    "account_sid", "api_version", "date_created", "date_updated", "friendly_name", "message_status_callback",
    "public_application_connect_enabled", "sid", "sms_fallback_method", "sms_fallback_url", "sms_method",
    "sms_status_callback", "sms_url", "status_callback", "status_callback_method", "uri", "voice_caller_id_lookup",
    "voice_fallback_method", "voice_fallback_url", "voice_method", "voice_url",
}  # fmt: skip
ALERT = {
    "account_sid", "alert_text", "api_version", "date_created", "date_generated", "date_updated", "error_code",
    "log_level", "more_info", "request_method", "request_url", "resource_sid", "service_sid", "sid", "url",
}  # fmt: skip


def listed(client, path, key, **params):
    """Every record of a list, by next_page_uri; `_before` and `_after` stand for the operators."""
    named = {name.replace("_before", "<").replace("_after", ">"): value for name, value in params.items()}
    page = client.get(f"/Accounts/{MAIN}/{path}.json", params=named).json()
    found = page[key]
    while uri := page["next_page_uri"]:
        page = client.get(uri).json()
        found += page[key]
    return found


def recordings(client, path="Recordings", **params):
    """Every recording of a list."""
    return listed(client, path, "recordings", **params)


def test_recordings_are_those_that_the_callbacks_tell_of(serve, account):
    """Same SIDs, calls, conferences, durations and URLs, also of trunks and conferences; each once, newest first."""
    account.generate(600, NOON - 2 * DAY, NOON - DAY, trunk_share=0.2)
    account.callbacks = Callbacks(recorded=0.5, recorded_trunks=0.5, conferences=0.2)
    account.add_recording(NOON - HOUR, NOON - 30 * MINUTE, conference_sid=f"CF{1:032x}")
    _, client = serve()
    found = recordings(client, PageSize=40)
    told = [webhook.params for webhook in webhooks(account, NOON - 3 * DAY, NOON) if webhook.kind == "recording"]
    assert len(found) == len(told) > 100
    assert {record["source"] for record in found} == {
        "Conference", "DialVerb", "OutboundAPI", "StartCallRecordingAPI", "Trunking",
    }  # fmt: skip
    by_sid = {record["sid"]: record for record in found}
    for params in told:
        record = by_sid[params["RecordingSid"]]
        assert RECORDING == record.keys()
        assert (params.get("CallSid"), params.get("ConferenceSid")) == (record["call_sid"], record["conference_sid"])
        assert (params["RecordingUrl"], params["RecordingDuration"], "completed") == (
            record["media_url"], record["duration"], record["status"],
        )  # fmt: skip
    assert [record["sid"] for record in found] == [
        record["sid"]
        for record in sorted(found, key=lambda r: (datetime.strptime(r["date_created"], "%a, %d %b %Y %H:%M:%S %z"),
                                                   r["sid"]), reverse=True)
    ]  # fmt: skip


def test_recordings_of_one_call(serve, account):
    """Its own list finds them, in the form that has a track, and so does the filter. An unknown call is a 404."""
    account.callbacks = Callbacks(recorded=0)
    call, other = account.call(NOON - HOUR), account.call(NOON - HOUR)
    made = account.add_recording(NOON - HOUR, NOON - HOUR + MINUTE, call_sid=call.sid)
    _, client = serve()
    (record,) = recordings(client, f"Calls/{call.sid}/Recordings")
    assert (OF_CALL, made.sid) == (record.keys(), record["sid"])
    assert [made.sid] == [each["sid"] for each in recordings(client, CallSid=call.sid)]
    assert recordings(client, f"Calls/{other.sid}/Recordings") == []
    assert 404 == client.get(f"/Accounts/{MAIN}/Calls/CA{7:032x}/Recordings.json").status_code
    assert client.get(f"/Accounts/{MAIN}/Recordings/{made.sid}.json").json()["sid"] == made.sid
    assert 404 == client.get(f"/Accounts/{MAIN}/Recordings/RE{7:032x}.json").status_code


@pytest.mark.parametrize(("filters", "hours"), [("instant", [10]), ("day", [11, 10, 9])])
def test_date_created_counts_as_the_times_of_calls_do(serve, account, filters, hours):
    """It counts as an instant or as its UTC day. The window is half-open."""
    made = {hour: account.add_recording(*[NOON.replace(hour=hour)] * 2).sid for hour in (9, 10, 11)}
    yesterday = account.add_recording(NOON - DAY, NOON - DAY)
    _, client = serve(switches=Switches(time_filters=filters))
    window = {"DateCreated_after": "2026-06-10T09:30:00Z", "DateCreated_before": "2026-06-11T00:00:00Z"}
    if filters == "instant":
        window["DateCreated_before"] = "2026-06-10T11:00:03Z"  # three seconds are the time of processing
    assert [made[hour] for hour in hours] == [each["sid"] for each in recordings(client, **window)]
    assert [yesterday.sid] == [each["sid"] for each in recordings(client, DateCreated="2026-06-09")]


def test_a_recording_is_there_when_ready_or_from_its_start(serve, account, clock):
    """Ready: seconds after the call. From the start: in progress before, and under the time of its beginning."""
    account.callbacks = Callbacks(recorded=1)
    account.call(NOON - 3 * HOUR, rings_for=0, talks_for=3 * 3600)
    twilio, client = serve()
    assert recordings(client) == []
    twilio.switches = Switches(recording_created="start")
    (record,) = recordings(client)
    assert ("in-progress", None, None) == (record["status"], record["duration"], record["price"])
    clock.advance(timedelta(seconds=3))
    (record,) = recordings(client)
    assert ("completed", str(3 * 3600), "-0.00250") == (record["status"], record["duration"], record["price"])
    assert "Wed, 10 Jun 2026 09:00:00 +0000" == record["date_created"]
    twilio.switches = Switches()
    assert ["Wed, 10 Jun 2026 12:00:03 +0000"] == [each["date_created"] for each in recordings(client)]


def test_deleted_recordings_show_for_forty_days_to_who_asks(serve, account, clock):
    """Lists and fetches lack it. With IncludeSoftDeleted it is there for 40 days; paging goes on."""
    made = [account.add_recording(NOON - n * HOUR, NOON - n * HOUR) for n in range(1, 5)]
    _, client = serve()
    uri = client.get(f"/Accounts/{MAIN}/Recordings.json?PageSize=2").json()["next_page_uri"]
    account.delete_recording(made[1].sid, NOON)
    assert [made[2].sid, made[3].sid] == [each["sid"] for each in client.get(uri).json()["recordings"]]
    assert made[1].sid not in [each["sid"] for each in recordings(client)]
    assert 404 == client.get(f"/Accounts/{MAIN}/Recordings/{made[1].sid}.json").status_code
    assert {"completed"} == {each["status"] for each in recordings(client)}
    statuses = {each["sid"]: each["status"] for each in recordings(client, IncludeSoftDeleted="true")}
    assert (4, "deleted") == (len(statuses), statuses[made[1].sid])
    clock.advance(40 * DAY)
    assert 3 == len(recordings(client, IncludeSoftDeleted="true"))


def test_numbers_domains_and_apps_are_listed(serve, account):
    """They have every key of the OpenAPI record and come in pages. Generated calls bring theirs along."""
    account.generate(10, NOON - DAY, NOON)
    endpoints = account.endpoints
    own = endpoints.add_number("+12025550199", status_callback="", trunk_sid=f"TK{1:032x}")
    domain = endpoints.add_sip_domain("desk.sip.twilio.com", status_callback="")
    application = endpoints.add_application("desk", voice_url="https://old.example.net/voice?tenant=7")
    _, client = serve()
    numbers = listed(client, "IncomingPhoneNumbers", "incoming_phone_numbers", PageSize=5)
    assert 13 == len(numbers) == len({number["sid"] for number in numbers})
    assert all(NUMBER == number.keys() for number in numbers)
    by_sid = {number["sid"]: number for number in numbers}
    assert ("", "+12025550199", f"TK{1:032x}") == tuple(
        by_sid[own.sid][key] for key in ("status_callback", "phone_number", "trunk_sid")
    )
    assert 12 == sum(number["status_callback"] == "https://hooks.example.com/twilio/voice/status" for number in numbers)
    assert {call.phone_number_sid for call in account.calls_at(NOON) if call.phone_number_sid} <= by_sid.keys()
    (found,) = listed(client, "SIP/Domains", "domains")
    assert (DOMAIN, domain.sid, None) == (found.keys(), found["sid"], found["voice_status_callback_url"])
    (found,) = listed(client, "Applications", "applications")
    assert (APPLICATION, application.sid, "https://old.example.net/voice?tenant=7") == (
        found.keys(), found["sid"], found["voice_url"],
    )  # fmt: skip


def test_changing_a_number_keeps_its_sid(account):
    """Adding it again replaces its URLs."""
    account.generate(1, NOON - DAY, NOON)
    number = next(iter(account.endpoints.numbers.values()))
    changed = account.endpoints.add_number(number.phone_number, status_callback="")
    assert (number.sid, "") == (changed.sid, changed.urls.status_callback)
    account.generate(1, NOON - DAY, NOON)
    assert changed == account.endpoints.numbers[number.phone_number]


def alerts(client, **params):
    """One page of Alerts and its envelope."""
    answer = client.session.get(f"{client.base_url}/v1/Alerts", params=params, timeout=10)
    assert 200 == answer.status_code, answer.text
    return answer.json()["alerts"], answer.json()["meta"]


def test_alerts_tell_which_webhook_failed(serve, account):
    """Every key of the OpenAPI record, the URL with its query; it is listed later than it happened."""
    url = "https://hooks.example.com/twilio/voice/status?tenant=7"
    account.raise_alert(NOON - HOUR, "11205", url, resource_sid=f"CA{1:032x}")
    _, client = serve()
    ((alert,), meta) = alerts(client)
    assert ALERT == alert.keys()
    assert ("11205", url, f"CA{1:032x}", "error") == tuple(
        alert[key] for key in ("error_code", "request_url", "resource_sid", "log_level")
    )
    assert ("2026-06-10T11:00:00Z", "2026-06-10T11:00:30Z") == (alert["date_generated"], alert["date_created"])
    assert {
        "first_page_url": "https://monitor.twilio.com/v1/Alerts?PageSize=50&Page=0", "key": "alerts",
        "next_page_url": None, "page": 0, "page_size": 50, "previous_page_url": None,
        "url": "https://monitor.twilio.com/v1/Alerts?PageSize=50&Page=0",
    } == meta  # fmt: skip


def test_alerts_are_paged_by_absolute_urls_of_twilios_host(serve, account):
    """Newest first; the query and the filters are kept in next_page_url, whose host is monitor.twilio.com."""
    made = [account.raise_alert(NOON - HOUR - n * MINUTE, "11200", "https://x.example/").sid for n in range(5)]
    account.raise_alert(NOON - HOUR, "11200", "https://x.example/", log_level="warning")
    _, client = serve()
    found, meta = alerts(client, PageSize=2, LogLevel="error")
    seen = [alert["sid"] for alert in found]
    while url := meta["next_page_url"]:
        where = urlsplit(url)
        assert ("https", "monitor.twilio.com", "/v1/Alerts") == where[:3]
        account.raise_alert(NOON - MINUTE, "11200", "https://x.example/")  # the head moves, the pages do not
        answer = client.session.get(f"{client.base_url}{where.path}?{where.query}", timeout=10).json()
        seen, meta = seen + [alert["sid"] for alert in answer["alerts"]], answer["meta"]
    assert made == seen


def test_alerts_have_inclusive_bounds_and_are_kept_for_thirty_days(serve, account):
    """Both bounds belong to the window. No question brings older alerts, or alerts that are not yet listed."""
    for at in (NOON - 31 * DAY, NOON - HOUR, NOON - timedelta(seconds=29)):
        account.raise_alert(at, "11200", "https://x.example/")
    twilio, client = serve()
    bound = "2026-06-10T11:00:30Z"
    assert 1 == len(alerts(client, StartDate=bound, EndDate=bound)[0])
    assert 1 == len(alerts(client, StartDate="2026-01-01")[0])
    assert 0 == len(alerts(client, EndDate="2026-06-10")[0])
    twilio.clock.advance(timedelta(seconds=1))
    assert 2 == len(alerts(client)[0])
    for bad in ({"StartDate": "soon"}, {"LogLevel": "loud"}, {"PageToken": "PANO1"}):
        assert 400 == client.session.get(f"{client.base_url}/v1/Alerts", params=bad, timeout=10).status_code


def test_alerts_are_those_of_the_account_that_signs_in(serve, account):
    """The parent does not see the subaccount's; a key without the permission is refused with 70051."""
    sub = account.add_subaccount(SUB, "sub-token")
    sub.raise_alert(NOON - HOUR, "11200", "https://x.example/")
    account.add_key("SK3", "s", "restricted", ["calls"])
    _, parent = serve()
    _, child = serve(user=SUB, secret="sub-token")
    _, key = serve(user="SK3", secret="s")
    assert (0, 1) == (len(alerts(parent)[0]), len(alerts(child)[0]))
    for path in ("/v1/Alerts", f"/2010-04-01/Accounts/{MAIN}/Recordings.json",
                 f"/2010-04-01/Accounts/{MAIN}/IncomingPhoneNumbers.json"):  # fmt: skip
        refused = key.session.get(key.base_url + path, timeout=10)
        assert (403, 70051) == (refused.status_code, refused.json()["code"])
