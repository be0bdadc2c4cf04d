"""The Viewer's backend, the second writer of the database: it stores webhooks in the inbox and processes them.

It writes as the Viewer's handlers do and follows none of the reconciler's rules. Its faults, each seen in the
field, are flags that are off by default. The functions take an open connection and commit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from reconciler.simulator.webhooks import Delivery, Kind, Webhook

Connection = psycopg.Connection[Any]

_EVENT_TYPES: dict[Kind, str] = {
    "voice-url": "call-inbound",
    "status-callback": "call-status",
    "dial-action": "dial-action",
    "recording": "recording-complete",
    "machine-detection": "call-status",
    "participant": "call-status",
}

_RECEIVE = """
INSERT INTO twilio_webhook_inbox (source, event_type, call_sid, recording_sid, dedupe_key, payload, received_at)
SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::jsonb[], %s::timestamptz[])
ON CONFLICT (dedupe_key) DO NOTHING
"""

_CLAIM = """
UPDATE twilio_webhook_inbox SET processing_status = 'processing'
 WHERE id IN (SELECT id FROM twilio_webhook_inbox
               WHERE processing_status = 'pending' AND received_at <= %(now)s
               ORDER BY id LIMIT %(batch)s FOR UPDATE SKIP LOCKED)
RETURNING id
"""

# One row for each call: if a batch holds several webhooks of a call, the one received last wins.
_UPSERT = """
INSERT INTO messages AS m (twilio_sid, direction, status, from_number, to_number, duration, parent_call_sid, metadata)
SELECT DISTINCT ON (call_sid)
       call_sid, payload->>'Direction', payload->>'CallStatus', coalesce(payload->>'From', ''),
       coalesce(payload->>'To', ''), (payload->>'CallDuration')::int, payload->>'ParentCallSid', %(metadata)s
  FROM twilio_webhook_inbox
 WHERE id = ANY(%(ids)s) AND event_type IN ('call-inbound', 'call-status') AND payload ? 'CallStatus'
 ORDER BY call_sid, received_at DESC, id DESC
ON CONFLICT (twilio_sid) DO UPDATE
   SET status = EXCLUDED.status,
       duration = coalesce(EXCLUDED.duration, m.duration),
       metadata = CASE WHEN %(overwrite)s THEN EXCLUDED.metadata ELSE m.metadata END
 WHERE %(regress)s
    OR array_position(%(ranks)s::text[], EXCLUDED.status) >= coalesce(array_position(%(ranks)s::text[], m.status), 0)
   AND m.status <> ALL (%(final)s)
"""

_RECORDINGS = """
UPDATE messages SET recording_url = i.payload->>'RecordingUrl'
  FROM twilio_webhook_inbox i
 WHERE i.id = ANY(%(ids)s) AND i.event_type = 'recording-complete' AND messages.twilio_sid = i.call_sid
"""

_SEAL = """
UPDATE messages SET is_final = true, finalized_at = %(now)s
 WHERE NOT is_final
   AND twilio_sid IN (SELECT call_sid FROM twilio_webhook_inbox WHERE id = ANY(%(ids)s))
"""

_FAIL = """
UPDATE twilio_webhook_inbox
   SET processing_status = 'failed', retry_count = retry_count + 1,
       error = format('no such call status: %%s', payload->>'CallStatus')
 WHERE id = ANY(%(ids)s) AND event_type IN ('call-inbound', 'call-status')
   AND payload->>'CallStatus' <> ALL (%(ranks)s)
RETURNING id
"""

_COMPLETE = """
UPDATE twilio_webhook_inbox SET processing_status = 'completed', processed_at = %(now)s WHERE id = ANY(%(ids)s)
"""

_FINAL = ["completed", "busy", "no-answer", "canceled", "failed"]
_RANKS = ["queued", "initiated", "ringing", "in-progress", *_FINAL]


@dataclass(frozen=True, slots=True)
class Habits:
    """The faults of the Viewer's worker.

    Attributes:
        regress_statuses: the webhook received last wins, also a late `ringing` over `completed`.
        seal_wrongly: the worker marks each row it writes as final, whatever its status.
        overwrite_metadata: every update replaces the metadata.
        never_release: the worker claims rows and does not process them, as if it had been killed.

    """

    regress_statuses: bool = False
    seal_wrongly: bool = False
    overwrite_metadata: bool = False
    never_release: bool = False


def receive(conn: Connection, deliveries: Iterable[Delivery]) -> int:
    """Store webhooks in the inbox, except those whose dedupe_key is there already. Return how many were new."""
    rows = [_inbox_row(delivery) for delivery in deliveries]
    if not rows:
        return 0
    return conn.execute(_RECEIVE, [list(column) for column in zip(*rows, strict=True)]).rowcount


def work(conn: Connection, habits: Habits | None = None, *, now: datetime, batch: int = 5000) -> int:
    """Claim pending rows received by `now`, write them to `messages` and complete them. Return how many.

    A row with an unknown CallStatus becomes `failed`, as if a handler had raised.
    """
    habits = habits or Habits()
    ids = [row[0] for row in conn.execute(_CLAIM, {"now": now, "batch": batch}).fetchall()]
    if not ids or habits.never_release:
        return len(ids)
    params = {
        "ids": ids,
        "now": now,
        "metadata": Jsonb({"written_by": "viewer"}),
        "overwrite": habits.overwrite_metadata,
        "regress": habits.regress_statuses,
        "ranks": _RANKS,
        "final": _FINAL,
    }
    with conn.transaction():
        failed = {row[0] for row in conn.execute(_FAIL, params).fetchall()}
        params["ids"] = [each for each in ids if each not in failed]
        conn.execute(_UPSERT, params)
        conn.execute(_RECORDINGS, params)
        if habits.seal_wrongly:
            conn.execute(_SEAL, params)
        conn.execute(_COMPLETE, params)
    return len(ids)


def dedupe_key(webhook: Webhook) -> str:
    """Return the Viewer's key of a webhook: call, status and Timestamp, or other parameters if these are missing."""
    params = webhook.params
    match webhook.kind:
        case "recording":
            return f"recording:{params['RecordingSid']}:{params['RecordingStatus']}"
        case "dial-action":
            return f"dial:{webhook.call_sid}:{params['DialCallSid']}:{params['DialCallStatus']}"
        case "voice-url":
            return f"inbound:{webhook.call_sid}"
        case "status-callback":
            return f"{webhook.call_sid}:{params['CallStatus']}:{params['Timestamp']}"
        case "machine-detection":
            return f"detection:{webhook.call_sid}"
        case "participant":
            return f"conference:{params['ConferenceSid']}:{webhook.call_sid}:{params['StatusCallbackEvent']}"


def _inbox_row(delivery: Delivery) -> tuple[object, ...]:
    webhook = delivery.webhook
    return (
        "twilio_recording" if webhook.kind == "recording" else "twilio_voice",
        _EVENT_TYPES[webhook.kind],
        webhook.call_sid,
        webhook.params.get("RecordingSid"),
        dedupe_key(webhook),
        Jsonb(dict(webhook.params)),
        delivery.received_at,
    )
