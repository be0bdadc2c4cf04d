"""`reconcile demo`: a week of calls whose webhooks were lost, made right again before one's eyes.

Everything in it is temporary and on this machine: an embedded PostgreSQL in a temporary folder, and a simulated Twilio
on loopback. What is shown is real: the migrations, the backfill, and every number, which is counted and not told.
"""

from reconciler.demo.story import run

__all__ = ["run"]
