"""A simulated Twilio: an HTTP server on loopback, with accounts whose calls change as a clock moves.

The simulator is an independent witness: it imports nothing else of `reconciler`. A misunderstanding of Twilio in
the reconciler is therefore not repeated here. The behaviour follows Twilio's OpenAPI description, its documentation
and recorded answers (tests/data). Where these sources disagree, a switch chooses (`Switches`).

    clock = Clock(datetime(2026, 6, 10, tzinfo=UTC))
    account = SimulatedAccount("AC" + 32 * "0", "token")
    account.generate(1_000, since=clock.now() - timedelta(days=7), until=clock.now())
    with SimulatedTwilio([account], clock=clock) as twilio:
        requests.get(f"{twilio.base_url}/2010-04-01/Accounts/{account.sid}/Calls.json", auth=(account.sid, "token"))
"""

from reconciler.simulator.account import SimulatedAccount
from reconciler.simulator.calls import SimulatedCall
from reconciler.simulator.clock import Clock
from reconciler.simulator.faults import Fault, FaultPlan
from reconciler.simulator.recordings import Callbacks
from reconciler.simulator.road import Outage, Road
from reconciler.simulator.server import SimulatedTwilio
from reconciler.simulator.switches import Switches

__all__ = [
    "Callbacks",
    "Clock",
    "Fault",
    "FaultPlan",
    "Outage",
    "Road",
    "SimulatedAccount",
    "SimulatedCall",
    "SimulatedTwilio",
    "Switches",
]
