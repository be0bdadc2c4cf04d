"""Every metric, defined once.

A metric is counted where the event happens, or set by the job that measured it. A scrape only reads.

Names follow Prometheus' conventions (https://prometheus.io/docs/practices/naming/): base units, `_total` on counters.
The label is `job_name`, as in sync_state, because Prometheus adds a label `job` to everything it scrapes.
docs/reference.md shows this list, and a test compares it with the metrics registered here.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics

# Without this the library adds a series with the creation time of each counter, which nobody uses.
disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY: Final = CollectorRegistry()

requests: Final = Counter(
    "reconciler_requests",
    "Requests to Twilio by outcome: answered, not_found, throttled, refused, failed.",
    ["outcome"],
    registry=REGISTRY,
)
request_seconds: Final = Histogram(
    "reconciler_request_seconds",
    "How long Twilio took to answer.",
    registry=REGISTRY,
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
retries: Final = Counter("reconciler_retries", "Requests to Twilio that were repeats.", registry=REGISTRY)
concurrency: Final = Gauge(
    "reconciler_concurrency_limit",
    "Requests to Twilio that may run at once, in all processes together; a 429 lowers it.",
    ["account"],
    registry=REGISTRY,
)

calls_seen: Final = Counter(
    "reconciler_calls_seen", "Calls read, by job and account.", ["job_name", "account"], registry=REGISTRY
)
gaps: Final = Counter(
    "reconciler_gaps_found",
    "Gaps that webhooks left, by kind and the job that found them.",
    ["kind", "job_name", "account"],
    registry=REGISTRY,
)
recordings_told: Final = Counter(
    "reconciler_recordings_told",
    "Recordings that the API told before a callback did.",
    ["job_name", "account"],
    registry=REGISTRY,
)
repair_seconds: Final = Histogram(
    "reconciler_repair_seconds",
    "Seconds from a call's end to its final row, for ends that the API told before a webhook did.",
    registry=REGISTRY,
    buckets=(30, 60, 90, 120, 180, 300, 600, 3600, 86400),
)
drift: Final = Counter(
    "reconciler_drift_found", "Frozen calls that Twilio disagrees with.", ["account"], registry=REGISTRY
)
frozen: Final = Counter("reconciler_calls_frozen", "Calls frozen, by job.", ["job_name"], registry=REGISTRY)
dead_letters_found: Final = Counter(
    "reconciler_records_dead_lettered", "Records and webhooks that could not be read.", ["job_name"], registry=REGISTRY
)

runs: Final = Counter(
    "reconciler_runs",
    "Runs by outcome: succeeded, failed, refused, interrupted, skipped.",
    ["job_name", "account", "outcome"],
    registry=REGISTRY,
)
run_seconds: Final = Gauge(
    "reconciler_run_seconds", "How long the last run took.", ["job_name", "account"], registry=REGISTRY
)
missed_runs: Final = Counter(
    "reconciler_missed_runs", "Runs that did not start when they were due.", ["job_name", "account"], registry=REGISTRY
)
last_success: Final = Gauge(
    "reconciler_last_success_timestamp_seconds",
    "End of the last run that finished its work, or the begin of the first run, as Unix time.",
    ["job_name", "account"],
    registry=REGISTRY,
)
lag: Final = Gauge(
    "reconciler_lag_seconds",
    "Seconds from the newest call time that the last run covered to the end of that run.",
    ["job_name", "account"],
    registry=REGISTRY,
)
interval: Final = Gauge("reconciler_interval_seconds", "How often a job is due.", ["job_name"], registry=REGISTRY)

incomplete_proofs: Final = Gauge(
    "reconciler_incomplete_proofs",
    "Account days of the last cold sweeps that are not proven complete.",
    ["account"],
    registry=REGISTRY,
)
price_drifts: Final = Gauge(
    "reconciler_price_drifts",
    "Account days of the last cold sweeps that Twilio billed otherwise than their calls cost.",
    ["account"],
    registry=REGISTRY,
)
day_verified: Final = Gauge(
    "reconciler_day_verified_timestamp_seconds",
    "End of the newest UTC day that is proven complete, as Unix time.",
    ["account"],
    registry=REGISTRY,
)

open_calls: Final = Gauge("reconciler_open_calls", "Calls that have not ended.", registry=REGISTRY)
oldest_open_call: Final = Gauge(
    "reconciler_oldest_open_call_seconds",
    "Age of the call that has been open for the longest time; 0 if none is open.",
    registry=REGISTRY,
)
stuck_calls: Final = Gauge(
    "reconciler_stuck_calls", "Calls open for longer than RECONCILER_STUCK_AFTER.", registry=REGISTRY
)
unfrozen_calls: Final = Gauge(
    "reconciler_unfrozen_calls", "Calls that ended and are not frozen yet.", registry=REGISTRY
)
inbox_rows: Final = Gauge(
    "reconciler_inbox_rows",
    "Webhooks in the inbox by status: pending, processing, failed, dead_letter.",
    ["status"],
    registry=REGISTRY,
)
inbox_oldest: Final = Gauge(
    "reconciler_inbox_oldest_seconds", "Age of the oldest webhook that is due; 0 if none is.", registry=REGISTRY
)
table_bytes: Final = Gauge("reconciler_table_bytes", "Size of a table with its indexes.", ["table"], registry=REGISTRY)

leading: Final = Gauge("reconciler_leading", "1 if this daemon leads, 0 if it stands by.", registry=REGISTRY)
# Of a fleet (RECONCILER_ENGINE=procrastinate); the leader sets them.
workers: Final = Gauge("reconciler_workers", "Daemons of the fleet that work.", registry=REGISTRY)
tasks_due: Final = Gauge(
    "reconciler_tasks_due",
    "Runs that wait for a worker, by queue: hot, usual, bulk, leader.",
    ["queue"],
    registry=REGISTRY,
)
tasks_oldest: Final = Gauge(
    "reconciler_tasks_oldest_seconds", "For how long the oldest run has waited for a worker.", ["queue"],
    registry=REGISTRY,
)  # fmt: skip
tasks_at_work: Final = Gauge("reconciler_tasks_at_work", "Runs under way in the fleet.", ["queue"], registry=REGISTRY)
build: Final = Info("reconciler_build", "Version of reconciler and of what it runs on.", registry=REGISTRY)

_BY_ACCOUNT: Final = (
    concurrency,
    calls_seen,
    gaps,
    recordings_told,
    drift,
    runs,
    run_seconds,
    missed_runs,
    last_success,
    lag,
    incomplete_proofs,
    price_drifts,
    day_verified,
)


def forget(account_sid: str) -> None:
    """Remove all series of an account: series that never move again would raise alerts for ever."""
    for metric in _BY_ACCOUNT:
        metric.remove_by_labels({"account": account_sid})


# `increase()` misses the first count of a counter that did not exist before. This counter exists, at 0, from the start.
for _outcome in ("answered", "not_found", "throttled", "refused", "failed"):
    requests.labels(_outcome)
