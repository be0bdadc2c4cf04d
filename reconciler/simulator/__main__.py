"""`python -m reconciler.simulator`: a simulated Twilio to point the reconciler, or curl, at."""

from __future__ import annotations

import argparse
import gc
import re
import signal
import ssl
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from reconciler.simulator.account import SimulatedAccount
from reconciler.simulator.clock import Clock
from reconciler.simulator.faults import FaultPlan
from reconciler.simulator.server import SimulatedTwilio
from reconciler.simulator.switches import Switches

ACCOUNT_SID = f"AC{'5' * 32}"
AUTH_TOKEN = "simulated-token"  # noqa: S105 -- opens nothing but this simulator


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m reconciler.simulator", description=__doc__)
    add = made.add_argument
    add("--calls", type=int, default=10_000, metavar="N", help="calls to generate (default %(default)s)")
    add("--days", type=float, default=30, metavar="N", help="days they are spread over, up to the start")
    add("--hours-ahead", type=float, default=0, metavar="N", help="go on generating so far into the future")
    add("--seed", type=int, default=0, help="another seed makes other calls")
    add("--port", type=int, default=8080, help="0 takes any free port (default %(default)s)")
    add("--page-delay", type=duration, default="0ms", metavar="50ms", help="real time that each answer takes")
    add("--max-concurrent", type=int, metavar="N", help="429 above so many requests at once")
    add("--clock", default="real", metavar="real|ISO", help="run with real time, or stand still at a time")
    add("--time-filters", choices=("instant", "day"), default="instant", help="whether hours count in filters")
    add("--gzip", action="store_true", help="compress for clients that offer it")
    add("--tls-cert", metavar="FILE", help="serve HTTPS with this certificate")
    add("--tls-key", metavar="FILE", help="and this key")
    return made


def duration(text: str) -> timedelta:
    """`50ms` or `1.5s`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration like 50ms or 2s")
    return timedelta(milliseconds=float(match[1]) * (1 if match[2] == "ms" else 1000))


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM."""
    options = parser().parse_args(argv)
    # Blocked before any thread starts, so that they reach sigwait below and no thread.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    clock = Clock.running() if options.clock == "real" else Clock(_aware(options.clock))
    account = SimulatedAccount(ACCOUNT_SID, AUTH_TOKEN, seed=options.seed)
    now = clock.now()
    account.generate(options.calls, now - timedelta(days=options.days), now + timedelta(hours=options.hours_ahead))
    # A million calls are there to stay: let the collector look at young objects alone.
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
    tls = None
    if options.tls_cert:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(options.tls_cert, options.tls_key)
    with SimulatedTwilio(
        [account],
        clock=clock,
        switches=Switches(time_filters=options.time_filters, gzip=options.gzip),
        faults=FaultPlan(max_concurrent=options.max_concurrent),
        page_delay=options.page_delay,
        tls=tls,
        port=options.port,
    ) as twilio:
        print(f"{account.call_count} calls at {twilio.base_url} — type:\n", file=sys.stderr)
        print(f"export TWILIO_BASE_URL={twilio.base_url}")
        print(f"export TWILIO_ACCOUNT_SID={ACCOUNT_SID}")
        print(f"export TWILIO_AUTH_TOKEN={AUTH_TOKEN}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return 0


def _aware(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


if __name__ == "__main__":
    sys.exit(main())
