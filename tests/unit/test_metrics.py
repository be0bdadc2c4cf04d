"""Metrics: each has a name that says so, a help text, and a line in docs/reference.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from reconciler import metrics

REFERENCE = (Path(__file__).parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
METRICS = [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]

# The form of a name in the exposition format, by kind.
SUFFIX = {Counter: "_total", Info: "_info", Gauge: "", Histogram: ""}


def scraped_name(metric: MetricWrapperBase) -> str:
    """The name as monitoring sees it."""
    return metric._name + SUFFIX[type(metric)]


def test_the_table_in_the_reference_is_the_registry():
    """Every metric, its labels and its meaning, in the order of the code."""
    after = REFERENCE.split("| metric | labels | meaning |", 1)[1].split("\n\n", 1)[0]
    listed = [[cell.strip() for cell in line.strip("|").split("|")] for line in after.splitlines()[2:]]
    assert listed == [
        [f"`{scraped_name(metric)}`", ", ".join(metric._labelnames), metric._documentation] for metric in METRICS
    ]


def test_every_metric_is_registered_once():
    """The daemon serves our registry."""
    assert set(METRICS) == set(metrics.REGISTRY._collector_to_names)
    names = [scraped_name(metric) for metric in METRICS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("metric", METRICS, ids=scraped_name)
def test_every_metric_says_what_it_is(metric):
    """Our prefix, a sentence of help, and labels that hold neither SIDs of calls nor messages."""
    assert re.fullmatch(r"reconciler(_[a-z]+)+", metric._name)
    assert re.fullmatch(r"[A-Z0-9].{15,}\.", metric._documentation)
    assert set(metric._labelnames) <= {"job_name", "account", "outcome", "kind", "status", "table", "queue"}


@pytest.mark.parametrize("metric", METRICS, ids=scraped_name)
def test_units_are_base_units(metric):
    """Seconds and bytes; never milliseconds or minutes."""
    assert not re.search(r"_(ms|milliseconds|minutes|hours|days|kib|mib|percent)$", metric._name)


def test_what_is_served_has_the_names_of_the_table():
    """The exposition names each metric with its help."""
    metrics.requests.labels("answered")
    text = generate_latest(metrics.REGISTRY).decode()
    for metric in METRICS:
        assert f"# HELP {scraped_name(metric)} {metric._documentation}" in text


def test_nothing_is_served_beside_the_table():
    """No `_created` of each counter: twice the series, and nobody asks."""
    families = generate_latest(metrics.REGISTRY).decode().split("# TYPE ")[1:]
    assert [family.split()[0] for family in families] == [scraped_name(metric) for metric in METRICS]


def test_requests_are_counted_from_0_on():
    """`increase()` does not see the first count of a counter that appears with it."""
    for outcome in ("answered", "not_found", "throttled", "refused", "failed"):
        assert metrics.REGISTRY.get_sample_value("reconciler_requests_total", {"outcome": outcome}) is not None
