"""How figures are written for people."""

from __future__ import annotations

from datetime import timedelta

import pytest

from reconciler.wording import byte_size, counted, rough, short_sids, waiting_for


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (1_500, "1.5 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"),
        (2_412_000_000, "2.4 GB"), (7_100_000_000_000, "7.1 TB"), (7_100_000_000_000_000, "7,100.0 TB"),
    ],
)  # fmt: skip
def test_sizes(count, said):
    """One decimal, in units of a thousand."""
    assert byte_size(count) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-5, "0 s"), (119, "119 s"), (120, "2 min"), (7_199, "119 min"), (7_200, "2 h"), (172_800, "2 d")],
)
def test_durations(seconds, said):
    """They are rounded down. Seconds and timedeltas count."""
    assert rough(seconds) == rough(float(seconds)) == rough(timedelta(seconds=seconds)) == said


def test_counts():
    """One of a thing has no plural s."""
    assert [counted(1, "day"), counted(0, "day"), counted(1_200, "day"), counted(2, "is", "are")] == [
        "1 day", "0 days", "1,200 days", "2 are",
    ]  # fmt: skip


def test_short_sids():
    """SIDs of accounts and calls are shortened anywhere in a text. A word that only begins alike stays whole."""
    assert short_sids(f"hot:AC{'1' * 32}, CA{'ab' * 16}") == "hot:AC1111…1111, CAabab…abab"
    assert short_sids(f"AC{'1' * 33} AC12") == f"AC{'1' * 33} AC12"


@pytest.mark.parametrize(
    ("left", "when"),
    [(18.2, "next in 18 s"), (0, "trying now"), (-19, "trying now"), (-20, "the next run tries again")],
)
def test_waiting(left, when):
    """The service, the reason, the number of the try, and the time of the next one."""
    said = waiting_for("Twilio", "HTTP 503", attempt=8, seconds_left=left)
    assert said == f"waiting for Twilio: HTTP 503, try 8, {when}"
