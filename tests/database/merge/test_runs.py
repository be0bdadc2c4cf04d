"""How one execution of a job ends: in time, too late, stopped, or with an error; and what sync_state says of it."""

from __future__ import annotations

import threading
from datetime import timedelta
from decimal import Decimal

import pytest
from structlog.testing import capture_logs

from reconciler import metrics
from reconciler.database.store import Store
from reconciler.errors import ExitCode, JobHeld, Refused, TwilioAnswerError
from reconciler.model import JobName, Page, Status
from reconciler.sync.context import Account
from reconciler.sync.counts import Counts, Outcome
from reconciler.sync.cursors import FreezeCursor
from reconciler.sync.run import run
from tests.harness.contexts import make_context
from tests.harness.present import present
from tests.harness.rows import ORIGIN, T0, make_observation, make_webhook

HOT = JobName("hot")


@pytest.fixture
def start(store):
    """A run of the hot job at T0; `more` are the fields of its context."""

    def begin(counts: Counts, *, job: JobName = HOT, account: str = "AC1", **more):
        return run(make_context(job, store, account=Account(account), **{"clock": lambda: T0, **more}), counts)

    return begin


@pytest.fixture
def outcome(conn):
    """When the job succeeded last, when it failed last, and why; None if it never did either."""

    def read(job: JobName = HOT):
        row = conn.execute(
            "SELECT last_success_at, last_error_at, last_error FROM sync_state WHERE job_name = %s", (str(job),)
        ).fetchone()
        return row if row is not None and any(row) else None

    return read


def _runs(outcome: str) -> float:
    """How many runs of hot ended so, by the metrics."""
    labels = {"job_name": "hot", "account": "AC1", "outcome": outcome}
    return metrics.REGISTRY.get_sample_value("reconciler_runs_total", labels) or 0.0


def _timers() -> list[threading.Timer]:
    return [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_a_run_that_is_overdue_fails(start, outcome):
    """Its stop is set, it ends where it can, and what it has not done is a failure with its reason."""
    counts, before = Counts(), _runs("failed")
    with start(counts, time_limit=timedelta(milliseconds=1)) as this:
        assert this.stop.wait(30)
    assert (counts.outcome, counts.exit_code) == (Outcome.FAILED, ExitCode.TRY_AGAIN)
    succeeded, failed, why = outcome()
    assert (succeeded, failed, why) == (None, T0, counts.problem)
    assert why.startswith("not done within 0:00:00.001")
    assert _runs("failed") == before + 1


def test_a_run_that_finished_its_work_at_the_last_moment_has_succeeded(start, outcome):
    """Time was up, but nothing was left to do."""
    counts = Counts()
    with start(counts, time_limit=timedelta(milliseconds=1)) as this:
        assert this.stop.wait(30)
        this.finish()
    assert (counts.outcome, outcome()) == ("succeeded", (T0, None, None))


def test_a_run_that_ends_in_time_leaves_no_clock_ticking(start, outcome):
    """Its stop stays as it was."""
    stop, before = threading.Event(), _timers()
    with start(Counts(), stop=stop, time_limit=timedelta(hours=1)):
        (timer,) = [timer for timer in _timers() if timer not in before]
    timer.join(30)
    assert not timer.is_alive()
    assert not stop.is_set()
    assert outcome() == (T0, None, None)


def test_a_run_that_a_person_stopped_has_neither_succeeded_nor_failed(start, outcome):
    """With time left it is no failure; the outcome before stays."""
    stop = threading.Event()
    counts, before = Counts(), _runs("interrupted")
    with start(counts, stop=stop, time_limit=timedelta(hours=1)):
        stop.set()
    assert (counts.outcome, counts.exit_code, outcome()) == ("interrupted", ExitCode.INTERRUPTED, None)
    assert _runs("interrupted") == before + 1


def test_an_error_is_kept_without_numbers_and_secrets_and_comes_out(start, outcome):
    """The next success leaves it there, with its time."""
    before = _runs("failed")
    with pytest.raises(TwilioAnswerError), start(Counts()):
        raise TwilioAnswerError("no answer about +15005550100")
    assert outcome() == (None, T0, "no answer about ***00")
    assert _runs("failed") == before + 1
    with start(Counts(), clock=lambda: T0 + timedelta(minutes=1)):
        pass
    assert outcome() == (T0 + timedelta(minutes=1), T0, "no answer about ***00")


def test_who_is_refused_is_told_from_other_failures(start):
    """A person must act, where others need only wait."""
    failed, refused = _runs("failed"), _runs("refused")
    with pytest.raises(Refused), start(Counts()):
        raise Refused("no")
    assert (_runs("failed"), _runs("refused")) == (failed, refused + 1)


def test_whose_job_is_held_by_another_records_nothing(start, outcome, database_url, conn):
    """Its own run is the other's to speak of: whether the lock is taken, or the job was taken over."""
    counts = Counts()
    with Store(database_url) as other:
        with other.holding(HOT):
            with pytest.raises(JobHeld), start(counts):
                pytest.fail("it must not begin")
            assert outcome() is None
        with pytest.raises(JobHeld), start(counts) as this:
            assert this.read_cursor(FreezeCursor) is None
            conn.execute("UPDATE sync_state SET term = term + 1 WHERE job_name = 'hot'")  # as a take-over does
            this.keep_cursor(FreezeCursor(named_since=T0))
    assert outcome() is None


def test_a_dry_run_takes_no_lock_and_leaves_no_trace(store, outcome, database_url):
    """Beside the job itself."""
    context = make_context(HOT, store, clock=lambda: T0, dry_run=True)
    with Store(database_url) as other, other.holding(HOT), run(context, Counts()):
        pass
    assert outcome() is None


def test_an_account_has_a_lock_and_a_row_of_its_own(start, outcome, store, database_url):
    """`hot` of the main account runs beside `hot` of another; logs, metrics and events speak of `hot`."""
    job = JobName("hot", "AC2")
    assert job.kind == "hot"
    with Store(database_url) as other, other.holding(HOT), start(Counts(), job=job) as this:
        assert this.origin.source == "reconcile_hot"
    assert (outcome(), outcome("hot:AC2")) == (None, (T0, None, None))


def test_calls_that_are_gone_are_counted_and_named_once(start, store, events):
    """A warning for each: a person may want to know."""
    store.commit_page([make_webhook(Status.RINGING)], origin=ORIGIN, now=T0)
    sid, counts = f"CA{1:032x}", Counts()
    with capture_logs() as logs, start(counts) as this:
        this.mark_gone([])
        this.mark_gone([sid])
        this.mark_gone([sid])
    said = [(line["call_sid"], line["log_level"]) for line in logs if line["event"] == "call.gone"]
    assert (counts.gone, said) == (1, [(sid, "warning")])
    (finished,) = [line for line in logs if line["event"] == "job.finished"]
    assert finished["gone"] == 1
    assert events()[-1] == ("call.gone", "ringing")


def test_what_a_run_did_is_in_the_metrics(start):
    """Calls seen, gaps by kind, and when it succeeded."""

    def value(name: str, **labels: str) -> float:
        return metrics.REGISTRY.get_sample_value(name, {"job_name": "hot", "account": "AC1", **labels}) or 0.0

    seen, missing = value("reconciler_calls_seen_total"), value("reconciler_gaps_found_total", kind="missing")
    with start(Counts()) as this:
        this.merge_page(Page([make_observation(), make_observation(call=2)], [], None, T0))
    assert value("reconciler_calls_seen_total") == seen + 2
    assert value("reconciler_gaps_found_total", kind="missing") == missing + 2
    assert value("reconciler_last_success_timestamp_seconds") == T0.timestamp()


def test_a_new_job_shows_its_counts_from_0_on(start):
    """`increase()` does not see the first count of a counter that appears with it. The job's age counts from now."""
    labels = {"job_name": "hot", "account": "AC3"}
    read = metrics.REGISTRY.get_sample_value
    assert read("reconciler_last_success_timestamp_seconds", labels) is None
    with start(Counts(), account="AC3"):
        assert read("reconciler_runs_total", {**labels, "outcome": "failed"}) == 0
        assert read("reconciler_gaps_found_total", {**labels, "kind": "missing"}) == 0
        assert read("reconciler_missed_runs_total", labels) == 0
        assert read("reconciler_drift_found_total", {"account": "AC3"}) == 0
        assert read("reconciler_last_success_timestamp_seconds", labels) == T0.timestamp()


def test_a_failed_run_tells_when_the_job_last_succeeded(start, store):
    """The metric shows that success, whichever process ran the job then."""
    store.record_success(HOT, now=T0 - timedelta(hours=5))
    with start(Counts(), account="AC4") as this:
        this.counts.problem = "2 slices failed"
    labels = {"job_name": "hot", "account": "AC4"}
    age = metrics.REGISTRY.get_sample_value("reconciler_last_success_timestamp_seconds", labels)
    assert age == (T0 - timedelta(hours=5)).timestamp()


def test_each_end_that_twilio_told_first_is_a_repair(start, store):
    """The time until then does not matter. A later webhook or correction of the end is no repair."""

    def repairs(within: str = "+Inf") -> float:
        return present(metrics.REGISTRY.get_sample_value("reconciler_repair_seconds_bucket", {"le": within}))

    store.commit_page([make_webhook(call=3)], origin=ORIGIN, now=T0)
    before, quick = repairs(), repairs("30.0")
    with start(Counts()) as this:
        known, ringing = make_observation(call=3), make_observation(Status.RINGING, call=4)
        this.merge_page(Page([make_observation(minute=1.1), make_observation(call=2), known, ringing], [], None, T0))
        this.merge_page(Page([make_observation(price=Decimal("-0.01"), minute=20)], [], None, T0))
    assert (repairs() - before, repairs("30.0") - quick) == (2, 1)
