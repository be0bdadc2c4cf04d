"""The benchmarks compare programs that do the same work, and say what they found."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from tests.bench import hot, limits, paper, sweeps


@pytest.mark.slow
def test_small_sweeps_are_measured_and_written_down(server_url):
    """All programs read the same calls, or nothing is written; the same again writes no row."""
    found = list(sweeps.measure(server_url, sweeps.Case(300, 2, "0ms"), runs=1, tls=False, more=True))
    backfill, again, night = found
    assert set(backfill.seconds) == {sweeps.OURS, sweeps.PLAIN, sweeps.ROWS, sweeps.RAW}
    assert (backfill.written, again.written) == (300, 0)
    assert 0 < night.written < 30

    limited = limits.allowing(server_url, 6, calls=300, days=2, delay=0.0)
    assert limited.requests >= backfill.requests
    start = {"--since": limits.first_request(server_url, runs=1)}
    measured = paper.Measured(
        paper.conditions(server_url, []), found, {300: 90.0, 600: 90.0}, [limited._replace(floor=1.0)],
        [limits.Beside([0.5], [0.5], 16)], [1.0], [], {}, start,
    )  # fmt: skip
    text = paper.as_markdown(measured)
    assert f"| {backfill.name} | 300 | 2 | 0 ms |" in text
    assert "| memory, 300 and 600 calls: the same | 1.00 × | yes |" in text
    assert f"| {again.name} | 300 | 2 | 0 ms |" in text
    bars = [e for e in ET.fromstring(paper.as_svg(found)).iter() if e.get("height") == "13"]
    assert len(bars) == 4 + 2 + 2


@pytest.mark.slow
def test_a_hot_run_is_measured(server_url):
    """Ten open calls, one of which ended: the run finds it."""
    found = hot.measure(server_url, open_calls=10, runs=1)
    assert (found.open_calls, found.ended) == (10, 1)
    assert found.requests > 0
