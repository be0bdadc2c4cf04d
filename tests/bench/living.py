"""A simulated account with many open calls, of which some end when told to: `python -m tests.bench.living OPEN ENDING`.

Prints the settings that point at it. Each line on stdin ends `ENDING` more calls; answered by a line.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta

from reconciler.simulator import Clock, SimulatedAccount, SimulatedTwilio
from reconciler.simulator.__main__ import ACCOUNT_SID, AUTH_TOKEN

ENDED_BEFORE = 20_000  # calls of the same day that are over


def main(open_calls: int, ending: int) -> None:
    account = SimulatedAccount(ACCOUNT_SID, AUTH_TOKEN)
    now = datetime.now(UTC)
    account.generate(ENDED_BEFORE, now - timedelta(hours=20), now - timedelta(hours=4))
    # Older than the overlap of the hot job, so that listing what is new shows none of them.
    began = [now - timedelta(minutes=15, seconds=3000 * n / open_calls) for n in range(open_calls)]
    sids = [account.call(at, direction="inbound", talks_for=None).sid for at in began]
    clock = Clock.running()
    with SimulatedTwilio([account], clock=clock) as twilio:
        print(f"TWILIO_BASE_URL={twilio.base_url}")
        print(f"TWILIO_ACCOUNT_SID={ACCOUNT_SID}")
        print(f"TWILIO_AUTH_TOKEN={AUTH_TOKEN}", flush=True)
        step = max(1, open_calls // ending)
        for round_, _ in enumerate(sys.stdin):
            for sid in sids[round_ % step :: step][:ending]:
                account.hang_up(sid, clock.now())
            print("ended", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
