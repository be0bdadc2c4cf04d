"""How one execution of a job ends: in time, too late, stopped, or with an error; and what sync_state says of it."""

from __future__ import annotations

import threading
from datetime import timedelta
from decimal import Decimal

import pytest
from structlog.testing import capture_logs

from reconciler import metrics
from reconciler.database.store import Store
from reconciler.database.transaction import Cursor
from reconciler.errors import ExitCode, JobHeld, Refused, TwilioAnswerError
from reconciler.model import Job, Page, Status
from reconciler.sync.run import Terms, Totals, run
from tests.harness.rows import ORIGIN, T0, make_observation, make_webhook

HOT = Job("hot")


@pytest.fixture
def start(store):
    """A run of the hot job at T0, on the terms given."""

    def begin(totals: Totals, *, job: Job = HOT, account: str = "AC1", **terms):
        return run(
            job, totals, account_sid=account, store=store, source=None, terms=Terms(**{"clock": lambda: T0, **terms})
        )

    return begin


@pytest.fixture
def outcome(conn):
    """When the job succeeded last, when it failed last, and why."""

    def read(job: str = HOT):
        return conn.execute(
            "SELECT last_success_at, last_error_at, last_error FROM sync_state WHERE job_name = %s", (job,)
        ).fetchone()

    return read


def _runs(outcome: str) -> float:
    """How many runs of hot ended so, by the metrics."""
    labels = {"job_name": "hot", "account": "AC1", "outcome": outcome}
    return metrics.REGISTRY.get_sample_value("reconciler_runs_total", labels) or 0.0


def _timers() -> list[threading.Timer]:
    return [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_a_run_that_is_overdue_fails(start, outcome):
    """Its stop is set, it ends where it can, and what it has not done is a failure with its reason."""
    totals, before = Totals(), _runs("failed")
    with start(totals, within=timedelta(milliseconds=1)) as this:
        assert this.stop.wait(30)
        totals.interrupted = True
    assert (totals.interrupted, totals.outcome, totals.exit_code) == (False, "failed", ExitCode.TRY_AGAIN)
    succeeded, failed, why = outcome()
    assert (succeeded, failed, why) == (None, T0, totals.problem)
    assert why.startswith("not done within 0:00:00.001")
    assert _runs("failed") == before + 1


def test_a_run_that_finished_its_work_at_the_last_moment_has_succeeded(start, outcome):
    """Time was up, but nothing was left to do."""
    totals = Totals()
    with start(totals, within=timedelta(milliseconds=1)) as this:
        assert this.stop.wait(30)
    assert (totals.outcome, outcome()) == ("succeeded", (T0, None, None))


def test_a_run_that_ends_in_time_leaves_no_clock_ticking(start, outcome):
    """Its stop stays as it was."""
    stop, before = threading.Event(), _timers()
    with start(Totals(), stop=stop, within=timedelta(hours=1)):
        (timer,) = [timer for timer in _timers() if timer not in before]
    timer.join(30)
    assert not timer.is_alive()
    assert not stop.is_set()
    assert outcome() == (T0, None, None)


def test_a_run_that_a_person_stopped_has_neither_succeeded_nor_failed(start, outcome):
    """With time left it is no failure; the outcome before stays."""
    stop = threading.Event()
    totals, before = Totals(), _runs("interrupted")
    with start(totals, stop=stop, within=timedelta(hours=1)):
        stop.set()
        totals.interrupted = True
    assert (totals.outcome, totals.exit_code, outcome()) == ("interrupted", ExitCode.INTERRUPTED, None)
    assert _runs("interrupted") == before + 1


def test_an_error_is_kept_without_numbers_and_secrets_and_comes_out(start, outcome):
    """The next success leaves it there, with its time."""
    before = _runs("failed")
    with pytest.raises(TwilioAnswerError), start(Totals()):
        raise TwilioAnswerError("no answer about +15005550100")
    assert outcome() == (None, T0, "no answer about ***00")
    assert _runs("failed") == before + 1
    with start(Totals(), clock=lambda: T0 + timedelta(minutes=1)):
        pass
    assert outcome() == (T0 + timedelta(minutes=1), T0, "no answer about ***00")


def test_who_is_refused_is_told_from_other_failures(start):
    """A person must act, where others need only wait."""
    failed, refused = _runs("failed"), _runs("refused")
    with pytest.raises(Refused), start(Totals()):
        raise Refused("no")
    assert (_runs("failed"), _runs("refused")) == (failed, refused + 1)


def test_whose_job_is_held_by_another_records_nothing(start, outcome, database_url, store):
    """Its own run is the other's to speak of: whether the lock is taken, or the cursor was moved."""
    totals = Totals()
    with Store(database_url) as other:
        with other.holding(HOT):
            with pytest.raises(JobHeld), start(totals):
                pytest.fail("it must not begin")
            assert outcome() is None
        with pytest.raises(JobHeld), start(totals) as this:
            assert this.read_cursor() is None
            other.save_cursor(Cursor(HOT, {"page": 7}), now=T0)
            this.save_cursor({"page": 1})
    assert outcome() == (None, None, None)


def test_a_dry_run_takes_no_lock_and_leaves_no_trace(store, outcome, database_url):
    """Beside the job itself."""
    with Store(database_url) as other, other.holding(HOT):
        terms = Terms(clock=lambda: T0)
        with run(HOT, Totals(), account_sid=None, store=store, source=None, terms=terms, dry_run=True):
            pass
    assert outcome() is None


def test_an_account_has_a_lock_and_a_row_of_its_own(start, outcome, store, database_url):
    """`hot` of the main account runs beside `hot` of another; logs, metrics and events speak of `hot`."""
    job = Job("hot:AC2")
    assert job.kind == "hot"
    with Store(database_url) as other, other.holding(HOT), start(Totals(), job=job) as this:
        assert this.origin.source == "reconcile_hot"
    assert (outcome(), outcome("hot:AC2")) == (None, (T0, None, None))


def test_calls_that_are_gone_are_counted_and_named_once(start, store, events):
    """A warning for each: a person may want to know."""
    store.merge([make_webhook(Status.RINGING)], origin=ORIGIN, now=T0)
    sid, totals = f"CA{1:032x}", Totals()
    with capture_logs() as logs, start(totals) as this:
        this.mark_gone([])
        this.mark_gone([sid])
        this.mark_gone([sid])
    said = [(line["call_sid"], line["log_level"]) for line in logs if line["event"] == "call.gone"]
    assert (totals.gone, said) == (1, [(sid, "warning")])
    (finished,) = [line for line in logs if line["event"] == "job.finished"]
    assert finished["gone"] == 1
    assert events()[-1] == ("call.gone", "ringing")


def test_what_a_run_did_is_in_the_metrics(start):
    """Calls seen, gaps by kind, and when it succeeded."""

    def value(name: str, **labels: str) -> float:
        return metrics.REGISTRY.get_sample_value(name, {"job_name": "hot", "account": "AC1", **labels}) or 0.0

    seen, missing = value("reconciler_calls_seen_total"), value("reconciler_gaps_found_total", kind="missing")
    with start(Totals()) as this:
        this.merge(Page([make_observation(), make_observation(call=2)], [], None, T0))
    assert value("reconciler_calls_seen_total") == seen + 2
    assert value("reconciler_gaps_found_total", kind="missing") == missing + 2
    assert value("reconciler_last_success_timestamp_seconds") == T0.timestamp()


def test_a_new_job_shows_its_counts_from_0_on(start):
    """Of a counter that is born with its first count, `increase()` sees nothing; and the job's age counts from now."""
    labels = {"job_name": "hot", "account": "AC3"}
    read = metrics.REGISTRY.get_sample_value
    assert read("reconciler_last_success_timestamp_seconds", labels) is None
    with start(Totals(), account="AC3"):
        assert read("reconciler_runs_total", {**labels, "outcome": "failed"}) == 0
        assert read("reconciler_gaps_found_total", {**labels, "kind": "missing"}) == 0
        assert read("reconciler_missed_runs_total", labels) == 0
        assert read("reconciler_drift_found_total", {"account": "AC3"}) == 0
        assert read("reconciler_last_success_timestamp_seconds", labels) == T0.timestamp()


def test_a_failed_run_tells_when_the_job_last_succeeded(start, store):
    """In whatever process that was."""
    store.record_success("hot", now=T0 - timedelta(hours=5))
    with start(Totals(), account="AC4") as this:
        this.totals.problem = "2 slices failed"
    labels = {"job_name": "hot", "account": "AC4"}
    age = metrics.REGISTRY.get_sample_value("reconciler_last_success_timestamp_seconds", labels)
    assert age == (T0 - timedelta(hours=5)).timestamp()


def test_each_end_that_twilio_told_first_is_a_repair(start, store):
    """However soon; not what webhooks had told, nor what comes after the end."""

    def repairs(within: str = "+Inf") -> float:
        return metrics.REGISTRY.get_sample_value("reconciler_repair_seconds_bucket", {"le": within})

    store.merge([make_webhook(call=3)], origin=ORIGIN, now=T0)
    before, quick = repairs(), repairs("30.0")
    with start(Totals()) as this:
        known, ringing = make_observation(call=3), make_observation(Status.RINGING, call=4)
        this.merge(Page([make_observation(minute=1.1), make_observation(call=2), known, ringing], [], None, T0))
        this.merge(Page([make_observation(price=Decimal("-0.01"), minute=20)], [], None, T0))
    assert (repairs() - before, repairs("30.0") - quick) == (2, 1)
