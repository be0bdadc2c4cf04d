"""`reconcile demo`: calls whose webhooks were lost, repaired while one watches.

- `run`: a week of calls, brought back by a backfill, and the proof of it.
- `run_live`: an account that lives beside the daemon, until one has seen enough.

Everything is temporary and on this machine: an embedded PostgreSQL in a temporary folder, and a simulated Twilio on
loopback. The migrations, the backfill and the daemon are the real ones, and every number shown is counted.
"""

from reconciler.demo.live import run_live
from reconciler.demo.story import run

__all__ = ["run", "run_live"]
