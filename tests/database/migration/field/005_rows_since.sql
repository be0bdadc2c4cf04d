-- The rows that the Viewer's backend and its first reconciler wrote after that.

-- Sealed although it rings: the webhook's time was compared with date_created, and the truth was refused.
INSERT INTO messages (twilio_sid, direction, status, from_number, to_number, start_time, is_final, finalized_at, sync_state)
VALUES ('CA5ea1ed00000000000000000000000001', 'inbound', 'ringing', '+15550100001', '+15550200000',
        '2025-06-01 10:00:00', TRUE, '2025-06-01 10:00:01+00', 'frozen');

-- Final and frozen, but nobody wrote down when.
INSERT INTO messages (twilio_sid, direction, status, from_number, to_number, start_time, end_time, duration, is_final, sync_state)
VALUES ('CA5ea1ed00000000000000000000000002', 'inbound', 'completed', '+15550100002', '+15550200000',
        '2025-06-01 10:00:00', '2025-06-01 10:00:42', 42, TRUE, 'frozen');

-- Frozen and terminal, yet not final.
INSERT INTO messages (twilio_sid, direction, status, from_number, to_number, start_time, duration, sync_state)
VALUES ('CA5ea1ed00000000000000000000000003', 'inbound', 'completed', '+15550100003', '+15550200000',
        '2025-06-01 10:00:00', 30, 'frozen');

-- One more event per open call and minute.
INSERT INTO call_events (call_sid, event_type, event_status, event_time, source, payload)
SELECT 'CA5ea1ed00000000000000000000000001', 'call.status_changed', 'ringing', '2025-06-01 10:00:00+00',
       'reconcile_hot', '{}'
FROM generate_series(1, 50);

INSERT INTO twilio_webhook_inbox (source, event_type, call_sid, dedupe_key, payload, processing_status)
VALUES ('twilio_voice', 'call-status', 'CA5ea1ed00000000000000000000000001', 'never-reclaimed',
        '{"CallSid": "CA5ea1ed00000000000000000000000001", "CallStatus": "completed"}', 'processing');

INSERT INTO sync_state (job_name) VALUES ('hot');
