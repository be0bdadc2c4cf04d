"""`reconcile demo --live`: the daemon beside an account that lives, for as long as one watches.

The daemon is a process of its own, as a service is. The simulated Twilio, the road of the webhooks and the Viewer run
in this one. Everything ends with Ctrl-C.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from typing import Final

from reconciler import logs
from reconciler.database import connection as db
from reconciler.database import migrate as runner
from reconciler.demo.daemon_process import DaemonProcess
from reconciler.demo.ground import endings_held, ignore_endings, leave_on_signals, start_database
from reconciler.demo.keyboard import GONE, keyboard
from reconciler.demo.screen import Numbers, Screen, Switch
from reconciler.demo.show import Show
from reconciler.demo.world import LOST, PAST, PAST_CALLS, World
from reconciler.errors import ExitCode
from reconciler.model import Gap

_TICK: Final = 0.25  # seconds
_DRAWN_EVERY: Final = 1.0  # seconds


def run_live() -> int:
    """Run the demonstration until Ctrl-C, `q` or a signal; return the exit code.

    Raises:
        ConfigError: the `embedded` extra is not installed.
        Unavailable: PostgreSQL or the daemon did not start.

    """
    logs.configure(form="auto", level="warning", pii="masked")
    leave_on_signals()
    show = Show()
    show.opening_live()
    with ExitStack() as stack:
        try:
            world, daemon = _start(show, stack)
            code = _watch(world, daemon, show)
        finally:
            ignore_endings()
    show.closing_live(code)
    return int(code)


def _start(show: Show, stack: ExitStack) -> tuple[World, DaemonProcess]:
    """Start everything; `stack` ends it in the reverse order."""
    with endings_held(), show.step("Starting PostgreSQL") as step:
        server = start_database()
        step.result = "PostgreSQL runs in a temporary folder"
    with show.step("Creating the schema") as step, closing(db.connect(server.url, purpose="demo")) as conn:
        step.result = f"{len(runner.migrate(conn))} migrations applied"
    with show.step("Simulating an account") as step:
        world = stack.enter_context(World(server))
        step.result = f"{PAST_CALLS:,} calls of the last {PAST.days} days; every {round(1 / LOST)}th webhook gets lost"
    with show.step("Starting the daemon") as step:
        daemon = DaemonProcess(server.url, world.twilio_url)
        stack.callback(daemon.stop)  # before it starts: a signal may come while it does
        daemon.start()
        daemon.wait_until_started()
        step.result = f"`reconcile run` works; its status page is {daemon.page_url}"
    return world, daemon


def _watch(world: World, daemon: DaemonProcess, show: Show) -> ExitCode:
    """Show what happens until the user ends it (0), or the daemon ends (1)."""
    gaps = lost = 0
    drawn_at = 0.0
    with keyboard() as keys, Screen(show) as screen:
        try:
            while daemon.exit_code is None:
                typed = keys.wait(_TICK)
                if "q" in typed or GONE in typed:
                    return ExitCode.DONE
                _turn(world, typed, screen)
                world.live_on()
                for loss in world.new_losses():
                    lost += 1
                    screen.lost(loss)
                for event in daemon.new_events():
                    gaps += sum(int(event.get(f"gaps_{gap.value}") or 0) for gap in Gap)
                    screen.log(event)
                if time.monotonic() - drawn_at >= _DRAWN_EVERY or typed:
                    drawn_at = time.monotonic()
                    numbers = Numbers(world.behind(), world.webhooks_arrived, lost, gaps)
                    screen.draw(daemon.page_url, _switches(world), numbers, has_keys=keys.is_there)
        except KeyboardInterrupt:
            return ExitCode.DONE
    return ExitCode.UNRECONCILED


def _turn(world: World, typed: str, screen: Screen) -> None:
    """Break or mend what the typed keys stand for, and say so."""
    for key in typed:
        if key in (switches := _switches(world)):
            switches[key].turn()
            screen.turned(f"You typed {key}: {_switches(world)[key].state}")


def _switches(world: World) -> dict[str, Switch]:
    """Return what can break, by its key."""
    usual = f"every {round(1 / LOST)}th webhook"
    twilio, database, road = world.turn_twilio, world.turn_database, world.turn_road
    return {
        "t": Switch("Twilio answers HTTP 503", True, "lets it answer", twilio)
        if world.twilio_is_broken
        else Switch("Twilio answers", False, "lets it answer HTTP 503", twilio),
        "d": Switch("the database server is stopped", True, "starts it", database)
        if world.database_is_broken
        else Switch("the database server runs", False, "stops it", database),
        "w": Switch("every webhook gets lost", True, f"loses {usual} only", road)
        if world.road_is_broken
        else Switch(f"{usual} gets lost", False, "loses all of them", road),
    }
