"""`reconcile demo`: a week of calls whose webhooks were lost, repaired while one watches.

Everything is temporary and on this machine: an embedded PostgreSQL in a temporary folder, and a simulated Twilio on
loopback. The migrations and the backfill are the real ones, and every number shown is counted.
"""

from reconciler.demo.story import run

__all__ = ["run"]
