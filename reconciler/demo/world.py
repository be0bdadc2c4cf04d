"""The world of the live demonstration: an account at a simulated Twilio, its webhooks' road, and all that can break.

Calls begin as time passes. The simulated Viewer receives their webhooks; some are lost on the way. Twilio, the
database and the road break, and are mended, when somebody asks for it.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import Final, NamedTuple, Self

import psycopg

from reconciler.database import connection as db
from reconciler.database.embedded import EmbeddedServer
from reconciler.demo.ground import ACCOUNT_SID, AUTH_TOKEN, endings_held
from reconciler.errors import ReconcilerError
from reconciler.simulator import Clock, Fault, Road, SimulatedAccount, SimulatedTwilio
from reconciler.simulator.calls import FINAL, Call
from reconciler.simulator.losses import Loss
from reconciler.simulator.postman import Postman
from reconciler.simulator.webhooks import Channel

PAST: Final = timedelta(days=2)
PAST_CALLS: Final = 1_500
LOST: Final = 0.25  # share of the webhooks
_NEW_CALLS: Final = 20  # in each minute
_MINUTE: Final = timedelta(minutes=1)
_ON_ITS_WAY: Final = 2  # seconds that a webhook may take

_QUERIES = db.load_queries("demo")


class Behind(NamedTuple):
    """The calls since the start that our rows do not tell of, and for how many seconds the oldest of them."""

    calls: int
    missing: int
    ended_unnoticed: int
    oldest_seconds: int


class World:
    """A context manager; the account lives while it is open.

    Attributes:
        twilio_is_broken, database_is_broken, road_is_broken: whether each is broken now.

    """

    def __init__(self, server: EmbeddedServer) -> None:
        self.twilio_is_broken = self.database_is_broken = self.road_is_broken = False
        self._server = server
        self._clock = Clock.running()
        self._started = now = self._clock.now()
        self._account = SimulatedAccount(ACCOUNT_SID, AUTH_TOKEN, seed=1)
        self._account.generate(PAST_CALLS, now - PAST, now)
        self._made_until = now
        self._twilio = SimulatedTwilio([self._account], clock=self._clock)
        road = Road(Channel(seed=7, loss=LOST))
        self._postman = Postman(server.url, [self._account], clock=self._clock, road=road, since=now - PAST)
        self._conn: db.Connection | None = None
        self._losses_told = 0
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self.live_on()
        with ExitStack() as stack:
            stack.callback(self._disconnect)
            stack.enter_context(self._twilio)
            stack.enter_context(self._postman)
            self._open = stack.pop_all()
        self._losses_told = len(self._account.losses)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def twilio_url(self) -> str:
        """The simulated Twilio's base URL."""
        return self._twilio.base_url

    @property
    def webhooks_arrived(self) -> int:
        """The number of webhooks that reached the Viewer, those of the past days included."""
        return self._postman.delivered

    def live_on(self) -> None:
        """Prepare the calls of the coming minute. Webhooks are sent only for calls that are prepared by then."""
        while self._made_until < self._clock.now() + _MINUTE / 2:
            self._account.generate(_NEW_CALLS, self._made_until, self._made_until + _MINUTE)
            self._made_until += _MINUTE

    def new_losses(self) -> list[Loss]:
        """Return the webhooks that were lost, or never sent, since the last call."""
        losses = self._account.losses[self._losses_told :]
        self._losses_told += len(losses)
        return losses

    # Twilio, the database and the road

    def turn_twilio(self) -> None:
        """Make Twilio answer every request with 503, or answer again."""
        self.twilio_is_broken = not self.twilio_is_broken
        self._twilio.faults.always(Fault.server_error(503) if self.twilio_is_broken else None)

    def turn_database(self) -> None:
        """Stop the database server, or start it again."""
        with endings_held():
            if self.database_is_broken:
                self._server.start_again()
            else:
                self._server.stop()
        self.database_is_broken = not self.database_is_broken

    def turn_road(self) -> None:
        """Lose every webhook, or the usual share."""
        self.road_is_broken = not self.road_is_broken
        self._postman.loss = 1.0 if self.road_is_broken else LOST

    # The rows

    def behind(self) -> Behind | None:
        """Compare the calls since the start with our rows. None: the database does not answer."""
        now = self._clock.now()
        at = int(now.timestamp())
        calls = [call for call in self._account.alive_between(self._started, now) if call.is_visible(at)]
        held = self._statuses([call.sid for call in calls])
        if held is None:
            return None
        missing = [at - _appeared(call) for call in calls if call.sid not in held]
        unnoticed = [
            at - call.ended
            for call in calls
            if call.ended is not None and call.ended <= at and held.get(call.sid, call.status) not in FINAL
        ]
        missing, unnoticed = ([age for age in ages if age > _ON_ITS_WAY] for ages in (missing, unnoticed))
        return Behind(len(calls), len(missing), len(unnoticed), max([*missing, *unnoticed], default=0))

    def _statuses(self, sids: list[str]) -> dict[str, str] | None:
        if self.database_is_broken:
            self._disconnect()
            return None
        try:
            if self._conn is None:
                self._conn = db.connect(self._server.url, purpose="demo")
            return dict(self._conn.execute(_QUERIES["statuses"], {"sids": sids}).fetchall())
        except (ReconcilerError, psycopg.OperationalError):
            self._disconnect()
            return None

    def _disconnect(self) -> None:
        if self._conn is not None:
            with suppress(psycopg.Error):
                self._conn.close()
            self._conn = None


def _appeared(call: Call) -> int:
    """Return when listings first show the call. A trunk's call appears when it has ended."""
    is_late = call.ended is not None and not call.is_visible(call.ended - 1)
    return call.ended if is_late and call.ended is not None else call.created
