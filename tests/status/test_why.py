"""`reconcile why`: which cause explains which lost call, and how it is shown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from reconciler.cli.report import show_causes
from reconciler.cli.why import show_why
from reconciler.database.webhook_evidence import Alerted, AlertsOfHour, EndpointFault, LostCalls
from reconciler.status.why import Cause, Why, decide
from tests.harness.names import ACCOUNT, NOW, SUBACCOUNT, sid
from tests.harness.rows import insert_row

HOUR = NOW.replace(minute=0)
URL = "https://hooks.example.com/status"
NUMBER = EndpointFault("PN1", "phone_number", "+12025550123", "no_callback", "")
TRUNK = "TK" + 31 * "0" + "1"
ALERT = Alerted(HOUR, "11205", URL)


def lost(calls: int = 1, *, hour: datetime = HOUR, **evidence: Any) -> LostCalls:
    """Lost calls without any evidence but the given."""
    none: dict[str, Any] = {
        "account_sid": ACCOUNT, "is_of_trunk": False, "trunk_sid": None, "inbox_reason": None, "alert": None,
        "fault": None,
        "is_silent_leg": False, "since": hour, "until": hour + timedelta(minutes=30),
    }  # fmt: skip
    return LostCalls(hour=hour, calls=calls, call_sids=(sid(calls),), **{**none, **evidence})


def of_hour(alerts: int, *, hour: datetime = HOUR, account: str = ACCOUNT, code: str = "11205") -> AlertsOfHour:
    """So many alerts of one kind."""
    return AlertsOfHour(account, hour, code, URL, alerts)


def causes(found: list[LostCalls], alerts: list[AlertsOfHour] | None = None) -> dict[str, int]:
    """How many calls each cause explains."""
    counted: dict[str, int] = {}
    for cause in decide(found, alerts or []):
        counted[cause.cause.value] = counted.get(cause.cause.value, 0) + cause.gaps
    return counted


# Which cause


@pytest.mark.parametrize(
    ("evidence", "cause"),
    [
        ({"is_of_trunk": True, "inbox_reason": "x", "fault": NUMBER, "alert": ALERT}, Cause.TRUNK),
        ({"inbox_reason": "", "fault": NUMBER, "alert": ALERT}, Cause.INBOX),
        ({"fault": NUMBER, "alert": ALERT}, Cause.NO_CALLBACK),
        ({"alert": ALERT, "is_silent_leg": True}, Cause.ALERT),
        ({"is_silent_leg": True}, Cause.NO_CALLBACK),
        ({}, Cause.UNEXPLAINED),
    ],
)
def test_the_first_cause_that_fits_explains_a_call(evidence: dict[str, Any], cause: Cause) -> None:
    """No other cause counts it."""
    assert causes([lost(3, **evidence)]) == {cause.value: 3}


def test_an_alert_of_the_hour_explains_one_call() -> None:
    """Calls beyond the alerts of their hour are unexplained; another hour's alerts explain none of them."""
    assert causes([lost(5)], [of_hour(3)]) == {"alert": 3, "unexplained": 2}
    assert causes([lost(5)], [of_hour(3, hour=HOUR - timedelta(hours=1))]) == {"unexplained": 5}
    assert causes([lost(5)], [of_hour(3, account=SUBACCOUNT)]) == {"unexplained": 5}


def test_an_alert_that_names_a_lost_call_explains_no_other() -> None:
    """Four alerts, three of them used up."""
    assert causes([lost(3, alert=ALERT), lost(5)], [of_hour(4)]) == {"alert": 4, "unexplained": 4}
    assert causes([lost(3, alert=ALERT), lost(5)], [of_hour(3)]) == {"alert": 3, "unexplained": 5}


def test_each_call_is_counted_once() -> None:
    """Several causes could explain it."""
    found = [lost(7, is_of_trunk=True), lost(5, alert=ALERT), lost(11), lost(2, is_silent_leg=True)]
    assert sum(causes(found, [of_hour(100), of_hour(50, code="11200")]).values()) == 25


def test_causes_come_most_frequent_first_each_by_its_name() -> None:
    """Two numbers are two causes; the same one in two hours is one, from the first to the last."""
    other = NUMBER._replace(endpoint_sid="PN2", address="+12025550199")
    later = HOUR + timedelta(hours=2)
    found = decide([lost(2, fault=NUMBER), lost(9, fault=other), lost(4, hour=later, fault=NUMBER)], [])
    assert [(cause.gaps, dict(cause.reason.names)["phone_number"]) for cause in found] == [(9, "***99"), (6, "***23")]
    assert (found[1].since, found[1].until) == (HOUR, later + timedelta(minutes=30))
    assert found[1].hours == {HOUR: 2, later: 4}
    assert found[1].call_sids == (sid(4), sid(2))


# Output


def why(*found: LostCalls, alerts: list[AlertsOfHour] | None = None, **more: Any) -> Why:
    """The answer of `reconcile why` to these facts."""
    explained = decide(found, alerts or [])
    values = {"imported": 0, "unread": [], **more}
    return Why(NOW - timedelta(days=1), NOW, sum(each.gaps for each in explained), causes=explained, **values)


EVERYTHING = (
    lost(300, is_of_trunk=True, trunk_sid=TRUNK),
    lost(200, fault=NUMBER),
    lost(90, fault=EndpointFault("PN2", "phone_number", "+12025550199", "other_host", "https://old.example.net/s")),
    lost(80, fault=EndpointFault("SD1", "sip_domain", "quiet.sip.twilio.com", "no_callback", "")),
    lost(70, fault=EndpointFault("AP1", "application", "AP1", "no_callback", "")),
    lost(60, alert=ALERT),
    lost(50, inbox_reason="no such call status: released"),
    lost(40, is_silent_leg=True),
    lost(1),
)


def test_the_json_is_a_contract() -> None:
    """Its keys, in order; moments, numbers and texts."""
    told = why(*EVERYTHING, unread=["x"], imported=7).as_dict()
    assert list(told) == ["since", "until", "gaps", "imported", "causes"]
    assert (told["gaps"], told["imported"]) == (891, 7)
    assert {tuple(cause) for cause in told["causes"]} == {("cause", "gaps", "since", "until", "detail", "next")}
    named = [(cause["cause"], {k: v for k, v in cause["detail"].items() if k != "calls"}) for cause in told["causes"]]
    assert named == [
        ("trunk", {"trunk_sid": TRUNK}),
        ("no_callback", {"phone_number": "***23", "sid": "PN1"}),
        ("no_callback", {"phone_number": "***99", "sid": "PN2", "url": "https://old.example.net/s"}),
        ("no_callback", {"sip_domain": "quiet.sip.twilio.com", "sid": "SD1"}),
        ("no_callback", {"application": "AP1", "sid": "AP1"}),
        ("alert", {"error_code": "11205", "url": URL}),
        ("inbox", {"reason": "no such call status: released"}),
        ("no_callback", {"reason": "a child leg of <Dial>, and no webhook told of it"}),
        ("unexplained", {"unread": ["x"]}),
    ]


@pytest.mark.parametrize("width", [30, 60, 80])
def test_every_width_shows_everything(paper: Any, width: int) -> None:
    """Nothing is wider than the terminal, each cause has its next step, and no number is shown."""
    written = paper(width)
    show_why(why(*EVERYTHING, unread=["Twilio's alerts cannot be read with these credentials"]))
    text = written.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert text.count("→") == len(EVERYTHING)
    assert "5550" not in text
    if width == 80:
        assert f"  300  34%  trunk        calls of SIP trunk {TRUNK}" in text
        assert "    1  <1%  unexplained  nothing known explains them" in text


def test_nothing_lost_and_imported_calls(paper: Any) -> None:
    """Said in one line each."""
    written = paper(80)
    show_why(why(imported=40))
    told = " ".join(written.getvalue().split())
    assert told == (
        "40 calls were imported: they are older than the first look after their account. "
        "Webhooks lost nothing that was found."
    )


def test_the_report_says_it_in_short(paper: Any) -> None:
    """A line a cause, and where to read on; nothing if nothing was lost."""
    written = paper(80)
    show_causes(why())
    assert written.getvalue() == ""
    show_causes(why(*EVERYTHING))
    lines = written.getvalue().splitlines()
    assert lines[-1].strip() == "→ what to do: `reconcile why --since 2026-06-09`"
    assert "  no_callback    200  number ***23 has no status callback" in [line.rstrip() for line in lines]


def test_the_command_the_report_and_the_page(run: Any, conn: Any, add_call: Any, add_event: Any) -> None:
    """Each reads the same database: a trunk call, a failed webhook, an alert, and a call that nothing explains."""
    now = datetime.now(UTC)
    for call, direction in ((1, "trunking-terminating"), (2, "inbound"), (3, "inbound"), (4, "inbound")):
        others = Jsonb({"trunk_sid": TRUNK} if call == 1 else {})
        add_call(call, direction=direction, account_sid=ACCOUNT, to_number="+12025550123", other_fields=others)
        add_event("call.created", call=call, created_at=now - timedelta(minutes=1))
    add_call(5, account_sid=ACCOUNT)
    add_event("call.created", call=5, created_at=now - timedelta(minutes=1), payload=Jsonb({"imported": True}))
    insert_row(
        conn, "twilio_webhook_inbox", source="twilio_voice", event_type="call-status", call_sid=sid(2), dedupe_key="x",
        payload=Jsonb({}), received_at=now, processing_status="dead_letter", error="no number: +12025550123",
    )  # fmt: skip
    insert_row(
        conn, "webhook_alerts", hour=now.replace(minute=0, second=0, microsecond=0), account_sid=ACCOUNT,
        error_code="11200", url=URL, alerts=1, call_sids=[sid(3)],
    )  # fmt: skip
    done = run("why", "--json")
    assert (done.code, done.err) == (0, "")
    assert (done.result["gaps"], done.result["imported"]) == (4, 1)
    assert {cause["cause"] for cause in done.result["causes"]} == {"trunk", "inbox", "alert", "unexplained"}
    assert all(cause["gaps"] == 1 for cause in done.result["causes"])
    assert [cause["detail"]["trunk_sid"] for cause in done.result["causes"] if cause["cause"] == "trunk"] == [TRUNK]
    assert "5550123" not in done.out
    assert run("why", "--json", "--account", SUBACCOUNT).result["gaps"] == 0
    assert "failed in the inbox: no number: ***23" in run("why").out
    assert "Why webhooks lost them, by call" in run("report").out
    page = run("report", "--html", "-").out
    assert "Why webhooks lost them" in page
    assert "error 11200 at https://hooks.example.com/status" in page
    assert "5550123" not in page


@pytest.mark.parametrize("words", [("--since", "soon"), ("--since", "2999-01-01"), ("--account", "AC1")])
def test_arguments_that_make_no_sense(run: Any, words: tuple[str, str]) -> None:
    """64, naming it."""
    done = run("why", *words)
    assert (done.code, done.out) == (64, "")
    assert words[0] in done.err
