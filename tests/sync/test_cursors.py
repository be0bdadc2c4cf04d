"""Cursors of earlier versions are read. Every job refuses a value that cannot be a cursor."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta

import pytest

from reconciler.errors import ConfigError, ExitCode
from reconciler.model import JobName
from reconciler.sync.cursors import (
    BackfillCursor,
    BatchCursor,
    ColdCursor,
    FreezeCursor,
    HotCursor,
    WarmCursor,
    decode,
    encode,
    load,
)

NOW = datetime(2026, 6, 10, 12, 30, tzinfo=UTC)
AHEAD = (NOW + timedelta(minutes=6)).isoformat()
ACCOUNT = "AC" + 32 * "1"

PLAN = """
    "since": "2026-06-03T12:30:00+00:00", "until": "2026-06-10T12:30:00+00:00", "done": 4,
    "uncut": [["2026-06-03T12:30:00+00:00", "2026-06-08T00:00:00+00:00"]],
    "open": {
        "failed@2026-06-03T12:30:00Z/2026-06-10T12:30:00Z": null,
        "2026-06-09T00:00:00Z/2026-06-10T00:00:00Z": "/2010-04-01/Accounts/AC1/Calls.json?Page=1"
    }
"""

# As version 0.1 wrote them.
OLD = {
    "hot": (HotCursor, f'{{"account": "{ACCOUNT}", "read_until": "2026-06-10T12:29:30+00:00", "usual": 12}}'),
    "hot in a listing": (
        HotCursor,
        (
            f'{{"account": "{ACCOUNT}", "read_until": "2026-06-10T12:00:00+00:00", "usual": 3,'
            ' "listed_until": "2026-06-10T12:29:30+00:00", "next_page": "/2010-04-01/Accounts/AC1/Calls.json?Page=1",'
            ' "looked_at": "2026-06-10T12:28:00.123456+00:00"}'
        ),
    ),
    "hot in a sweep": (
        HotCursor,
        (
            f'{{"account": "{ACCOUNT}", "read_until": "2026-06-01T12:00:00+00:00", "usual": 0,'
            f' "plan": {{{PLAN}}}, "ahead_until": "2026-06-10T12:00:00+00:00"}}'
        ),
    ),
    "warm": (
        WarmCursor,
        (
            f'{{"account": "{ACCOUNT}", "settled_until": "2026-06-09T12:20:00+00:00",'
            ' "looked_at": "2026-06-10T12:15:00+00:00"}'
        ),
    ),
    "cold": (
        ColdCursor,
        f'{{"account": "{ACCOUNT}", "swept_at": "2026-06-09T03:00:00+00:00", "deep_at": null}}',
    ),
    "cold in a sweep": (
        ColdCursor,
        (
            f'{{"account": "{ACCOUNT}", "swept_at": null, "deep_at": null, "sweep": {{'
            '"since": "2026-06-07T00:00:00+00:00", "until": "2026-06-10T12:00:00+00:00",'
            ' "begun_at": "2026-06-10T12:00:00+00:00", "is_deep": false, "settled": ["2026-06-09"]}}'
        ),
    ),
    "freeze": (FreezeCursor, '{"named_since": "2026-06-08T01:02:03+00:00"}'),
    "backfill": (
        BackfillCursor,
        (
            f'{{"asked": {{"since": "7d", "until": null}}, "begun_at": "2026-06-10T12:30:00+00:00", "finished": false,'
            f"{PLAN}}}"
        ),
    ),
    "backfill of several": (
        BatchCursor,
        (
            '{"asked": {"since": "7d", "until": null}, "begun_at": "2026-06-10T12:00:00+00:00",'
            f' "done": {{"{ACCOUNT}": "2026-06-10T12:10:00+00:00"}}}}'
        ),
    ),
}
KINDS = dict(OLD.values())


def read(kind, value):
    return load(JobName("hot"), value, kind, now=NOW, account_sid=ACCOUNT)


@pytest.mark.parametrize("name", OLD)
def test_a_cursor_of_an_earlier_version_is_read_and_written_unchanged(name):
    """Key by key: an update goes on where the version before stopped, and so does the way back."""
    kind, text = OLD[name]
    assert json.loads(encode(read(kind, json.loads(text)))) == json.loads(text)


def test_what_was_read_are_moments_days_and_pages():
    hot = read(HotCursor, json.loads(OLD["hot in a sweep"][1]))
    assert hot.plan.pending_windows == [(datetime(2026, 6, 3, 12, 30, tzinfo=UTC), datetime(2026, 6, 8, tzinfo=UTC))]
    assert next(iter(hot.plan.begun.values())) is None
    cold = read(ColdCursor, json.loads(OLD["cold in a sweep"][1]))
    assert cold.sweep.settled == [date(2026, 6, 9)]


def test_a_moment_of_another_zone_is_the_same_moment():
    value = json.loads(OLD["freeze"][1]) | {"named_since": "2026-06-08T03:02:03+02:00"}
    assert read(FreezeCursor, value).named_since == datetime(2026, 6, 8, 1, 2, 3, tzinfo=UTC)
    assert read(FreezeCursor, value).named_since.tzinfo is UTC


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [None, {}])
def test_no_cursor_is_none(kind, value):
    assert read(kind, value) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [[1], [], 5, 0, True, "text", {"swept_at": "yesterday", "sweep": {}}, {"account": 7}])
def test_rubbish_is_refused_in_every_job_alike(kind, value):
    """Exit 78, with the way to mend it; never a bug of ours."""
    with pytest.raises(ConfigError, match=r"the cursor of hot in sync_state cannot be read") as refused:
        read(kind, value)
    assert refused.value.exit_code is ExitCode.CONFIG
    assert refused.value.hint


@pytest.mark.parametrize("kind", KINDS)
def test_every_moment_must_have_a_zone_and_be_one(kind):
    """One field after another."""
    whole = json.loads(KINDS[kind])
    for name, value in whole.items():
        if isinstance(value, str) and value.startswith("2026"):
            for bad in ("yesterday", value.removesuffix("+00:00"), 7, "infinity", "0001-01-01T00:00:00+10:00"):
                with pytest.raises(ConfigError):
                    read(kind, whole | {name: bad})


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_clock_that_was_ahead_wrote_is_not_accepted(kind):
    """One field after another is in the future, by more than clocks may differ. hot and backfill keep the rest."""
    whole = json.loads(KINDS[kind])
    for name, value in whole.items():
        if isinstance(value, str) and value.startswith("2026"):
            assert read(kind, whole | {name: (NOW + timedelta(minutes=4)).isoformat()}) is not None
            assert read(kind, changed := whole | {name: AHEAD}) == certain(kind, changed, name)


def certain(kind, whole, ahead):
    """Return the cursor that counts although its field `ahead` is in the future; None if all of it is refused."""
    if kind is BackfillCursor and ahead == "begun_at":  # the window and its finished part do not depend on it
        return decode(JobName("hot"), whole, kind)
    if kind is not HotCursor or ahead == "read_until":
        return None
    return HotCursor(account=ACCOUNT, read_until=datetime.fromisoformat(whole["read_until"]))


@pytest.mark.parametrize("kind", [HotCursor, WarmCursor, ColdCursor])
def test_the_cursor_of_another_account_is_refused(kind):
    with pytest.raises(ConfigError, match=r"that of another account, AC9{32}"):
        read(kind, json.loads(KINDS[kind]) | {"account": "AC" + 32 * "9"})


@pytest.mark.parametrize(("kind", "field"), [(HotCursor, "read_until"), (WarmCursor, "settled_until")])
def test_a_cursor_before_what_twilio_keeps_is_refused(kind, field):
    """To read on from there would leave a gap in silence."""
    old = (NOW - timedelta(days=401)).isoformat()
    with pytest.raises(ConfigError, match="lies before what Twilio keeps"):
        read(kind, json.loads(KINDS[kind]) | {field: old})


@pytest.mark.parametrize(
    ("job", "hint"),
    [
        (JobName("hot"), "`reconcile once hot --from 1d` sets it anew"),
        (JobName("warm", ACCOUNT), f"`reconcile once warm --from 1d --account {ACCOUNT}` sets it anew"),
        (JobName("cold"), "delete the row of cold from sync_state, and the next run begins anew"),
        (JobName("backfill", ACCOUNT), (f"delete the row of backfill:{ACCOUNT} from sync_state, "
         "and the next run begins anew")),
    ],
)  # fmt: skip
def test_the_way_to_mend_a_cursor_names_its_job(job, hint):
    with pytest.raises(ConfigError) as refused:
        load(job, 5, HotCursor, now=NOW)
    assert refused.value.hint == hint
