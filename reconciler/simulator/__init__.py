"""A simulated Twilio: accounts whose calls live on a clock, behind an HTTP server on loopback.

An independent witness. It imports nothing else of `reconciler`, so that a misunderstanding of Twilio in the
reconciler is not repeated here. What Twilio does is taken from its OpenAPI description, its documentation and
recorded answers (tests/data); where these disagree, a switch chooses (`Switches`).

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
