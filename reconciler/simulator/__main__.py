"""A simulated Twilio over HTTP, for the reconciler or for curl: `python -m reconciler.simulator`."""

from __future__ import annotations

import argparse
import gc
import os
import re
import signal
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Final

import psycopg

from reconciler.simulator.account import SimulatedAccount
from reconciler.simulator.clock import Clock
from reconciler.simulator.faults import Fault, FaultPlan
from reconciler.simulator.postman import NoInbox, Postman
from reconciler.simulator.recordings import Callbacks
from reconciler.simulator.road import Road
from reconciler.simulator.server import SimulatedTwilio
from reconciler.simulator.switches import Switches
from reconciler.simulator.webhooks import Channel

ACCOUNT_SID = f"AC{'5' * 32}"
AUTH_TOKEN = "simulated-token"  # noqa: S105 -- opens nothing but this simulator
UNAVAILABLE: Final = 69  # the port, or the database
CONFIGURATION: Final = 78
HOURS_AHEAD: Final = 24.0  # the default with webhooks: a webhook is only sent for a call that is still to come

_FAULTS: Final[dict[str, Callable[[], Fault]]] = {
    "401": Fault.unauthorized, "403": Fault.forbidden, "404": Fault.not_found, "429": Fault.too_many_requests,
    "500": Fault.server_error, "502": lambda: Fault.server_error(502, html=True),
    "503": lambda: Fault.server_error(503), "504": lambda: Fault.server_error(504, html=True),
    "hang": Fault.hang, "html": Fault.html_with_200, "nothing": Fault.nothing_found, "reset": Fault.reset,
}  # fmt: skip


class Unusable(Exception):
    """The simulator cannot run with these options. The message says why; `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m reconciler.simulator",
        description="A simulated Twilio over HTTP, for the reconciler or for curl.",
    )
    add = made.add_argument_group("the account").add_argument
    add("--calls", type=int, default=10_000, metavar="N", help="calls to generate (default %(default)s)")
    add("--days", type=float, default=30, metavar="N", help="spread the calls over the N days before the start")
    add("--hours-ahead", type=float, metavar="N", help="and over the N hours after it (default 0; 24 with "
        "webhooks)")  # fmt: skip
    add("--subaccounts", type=int, default=0, metavar="N", help="subaccounts, which share the calls with the account")
    add("--trunks", type=share, default="6%", metavar="SHARE", help="share of SIP trunk calls (default 6%%)")
    add("--recorded", type=share, default="10%", metavar="SHARE", help="share of completed calls that have "
        "a recording (default 10%%)")  # fmt: skip
    add("--seed", type=int, default=0, help="seed of the random calls: the same seed makes the same calls")
    add = made.add_argument_group("the server").add_argument
    add("--port", type=int, default=8080, help="port on loopback; 0 takes any free one (default %(default)s)")
    add("--clock", type=clock, default="real", metavar="real|ISO", help="follow real time, or stand still at a time")
    add(
        "--time-filters",
        choices=("instant", "day"),
        default="instant",
        help="whether filters compare instants or only days",
    )
    add("--gzip", action="store_true", help="compress answers for clients that accept gzip")
    add("--tls-cert", metavar="FILE", help="serve HTTPS with this certificate")
    add("--tls-key", metavar="FILE", help="private key of the certificate")
    add = made.add_argument_group("faults").add_argument
    add("--fail", type=fault, action="append", default=[], metavar="WHAT[:SHARE]",
        help=f"spoil every request, or a share of them (503:10%%); repeatable: {', '.join(_FAULTS)}")  # fmt: skip
    add("--fail-pages-above", type=int, metavar="N", help="answer 500 to each page of more than N records")
    add("--page-delay", type=duration, default="0ms", metavar="50ms", help="real time to spend on each answer")
    add("--record-delay", type=duration, default="0ms", metavar="1ms", help="real time to spend on each listed record")
    add("--max-concurrent", type=int, metavar="N", help="answer 429 when an account has more than N requests at once")
    add("--others", type=int, default=0, metavar="N", help="other programs hold N of these requests all the time")
    add("--webhooks", action="store_true", help="send webhooks, past ones first, to the Viewer's inbox in DATABASE_URL")
    add("--lose", type=share, metavar="SHARE", help="as --webhooks, but lose this share of them, for example 15%%")
    return made


def duration(text: str) -> timedelta:
    """Read a duration such as `50ms` or `1.5s`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration like 50ms or 2s")
    return timedelta(milliseconds=float(match[1]) * (1 if match[2] == "ms" else 1000))


def share(text: str) -> float:
    """Read a share such as `15%` or `0.15`; return it as a number from 0 to 1."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)
    value = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share like 15% or 0.15")
    return value


def fault(text: str) -> tuple[Fault, float]:
    """Read a fault and its share of the requests, such as `503` (all of them) or `503:10%`."""
    name, _, part = text.partition(":")
    if name not in _FAULTS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(_FAULTS)}")
    return _FAULTS[name](), share(part) if part else 1.0


def clock(text: str) -> Clock:
    """Return a clock that follows real time (`real`), or one that stands still at an ISO time (UTC without a zone)."""
    if text == "real":
        return Clock.running()
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'real' nor a time like 2026-06-10T12:00") from None
    return Clock(at if at.tzinfo else at.replace(tzinfo=UTC))


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM."""
    options = parser().parse_args(argv)
    # The signals are blocked before any thread starts: they then reach sigwait below, and no thread.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with ExitStack() as stack:
            account = _account(options)
            twilio = stack.enter_context(_server(options, account))
            if options.webhooks or options.lose is not None:
                stack.enter_context(_postman(options, account))
            _say_what_to_type(account, twilio)
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
    except Unusable as unusable:
        print(f"python -m reconciler.simulator: {unusable}", file=sys.stderr)
        return unusable.code
    return 0


def _account(options: argparse.Namespace) -> SimulatedAccount:
    """Make the main account with its subaccounts, and generate the calls of all of them."""
    main_account = SimulatedAccount(ACCOUNT_SID, AUTH_TOKEN, seed=options.seed)
    for number in range(1, options.subaccounts + 1):
        main_account.add_subaccount(f"AC{number:032x}", f"{AUTH_TOKEN}-{number}", seed=options.seed)
    accounts = [main_account, *main_account.subaccounts.values()]
    ahead = options.hours_ahead
    if ahead is None:
        ahead = HOURS_AHEAD if options.webhooks or options.lose is not None else 0.0
    now = options.clock.now()
    for index, account in enumerate(accounts):
        count = options.calls // len(accounts) + (index < options.calls % len(accounts))
        since, until = now - timedelta(days=options.days), now + timedelta(hours=ahead)
        account.generate(count, since, until, trunk_share=options.trunks)
        account.callbacks = Callbacks(recorded=options.recorded)
    # The calls, a million or more, live as long as the process. The garbage collector need not visit them.
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
    return main_account


def _server(options: argparse.Namespace, account: SimulatedAccount) -> SimulatedTwilio:
    plan = FaultPlan(seed=options.seed, max_concurrent=options.max_concurrent, others=options.others)
    plan.rates({each: rate for each, rate in options.fail if rate < 1})
    plan.always(next((each for each, rate in options.fail if rate == 1), None))
    if options.fail_pages_above is not None:
        plan.large_pages(options.fail_pages_above)
    try:
        return SimulatedTwilio(
            [account],
            clock=options.clock,
            switches=Switches(time_filters=options.time_filters, gzip=options.gzip),
            faults=plan,
            page_delay=options.page_delay,
            record_delay=options.record_delay,
            tls=_tls(options),
            port=options.port,
        )
    except OSError as error:
        why = f"port {options.port} cannot be used: {error.strerror}; use --port 0 to take any free port"
        raise Unusable(why, UNAVAILABLE) from None


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    if not options.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except OSError as error:  # an ssl.SSLError is one
        raise Unusable(f"--tls-cert {options.tls_cert}: {error.strerror or error}", CONFIGURATION) from None
    return context


def _postman(options: argparse.Namespace, account: SimulatedAccount) -> Postman:
    """Return a postman that delivers the webhooks of the past days at once, and later ones when they are due."""
    url = os.environ.get("DATABASE_URL")
    if not url:
        raise Unusable("webhooks need the Viewer's database: set DATABASE_URL", CONFIGURATION)
    now = options.clock.now()
    road = Road(Channel(seed=options.seed, loss=options.lose or 0.0))
    postman = Postman(url, [account], clock=options.clock, road=road, since=now - timedelta(days=options.days))
    try:
        postman.prepare()
    except NoInbox:
        why = "the database has no twilio_webhook_inbox: `reconcile migrate` creates it"
        raise Unusable(why, CONFIGURATION) from None
    except psycopg.Error:
        why = "the database cannot be reached, or DATABASE_URL cannot be read"
        raise Unusable(why, UNAVAILABLE) from None
    return postman


def _say_what_to_type(account: SimulatedAccount, twilio: SimulatedTwilio) -> None:
    count = account.call_count + sum(each.call_count for each in account.subaccounts.values())
    print(f"{count} calls at {twilio.base_url} — type:\n", file=sys.stderr)
    print(f"export TWILIO_BASE_URL={twilio.base_url}")
    print(f"export TWILIO_ACCOUNT_SID={ACCOUNT_SID}")
    print(f"export TWILIO_AUTH_TOKEN={AUTH_TOKEN}", flush=True)
    if account.subaccounts:
        print("export RECONCILER_ACCOUNTS=all", flush=True)


if __name__ == "__main__":
    sys.exit(main())
