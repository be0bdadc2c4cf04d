-- The privileges of the role that runs `reconcile`, and no others. As a superuser, or as the owner of the tables:
--
--     createuser reconciler
--     DATABASE_URL=postgresql://OWNER@HOST/DB reconcile migrate
--     psql DB < deploy/grants.sql
--
-- Running it twice is harmless. Run it again after each `reconcile migrate`: new objects belong to the role that migrated.
--
-- This role cannot migrate: only the owner of a table may alter it. Migrate as the role that owns messages (the Viewer's),
-- or as a member of it. That role also needs CREATE on the schema.
--
-- Another role than `reconciler`: sed 's/TO reconciler/TO another/'. Tables outside of schema public: name theirs.

DO $$
BEGIN
    -- TEMPORARY: pages are staged in a temporary table.
    EXECUTE format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO reconciler', current_database());
END
$$;

GRANT USAGE ON SCHEMA public TO reconciler;

-- Calls are added and never deleted. In an existing row the daemon writes Twilio's columns and its own bookkeeping, and
-- recording_url where it is null. direction, conversation_id, metadata and created_at are the Viewer's.
GRANT SELECT, INSERT ON messages TO reconciler;
GRANT UPDATE (
    status, from_number, to_number, duration, price, price_unit, start_time, end_time, parent_call_sid, account_sid,
    answered_by, date_created, last_event_time, is_final, finalized_at, sync_state, observed_at, observed_via, gone_at,
    other_fields, updated_at, recording_url
) ON messages TO reconciler;

-- Events are added and never changed.
GRANT SELECT, INSERT ON call_events TO reconciler;
-- With RECONCILER_EVENTS_RETENTION only:
-- GRANT DELETE ON call_events TO reconciler;

-- Webhooks are read and marked; their payload stays. Records that cannot be read are added.
GRANT SELECT, INSERT ON twilio_webhook_inbox TO reconciler;
GRANT UPDATE (processing_status, processed_at, error) ON twilio_webhook_inbox TO reconciler;
-- With RECONCILER_INBOX_RETENTION only:
-- GRANT DELETE ON twilio_webhook_inbox TO reconciler;

GRANT SELECT, INSERT, UPDATE ON sync_state, account_days, twilio_budgets TO reconciler;

-- The evidence for lost webhooks is replaced when it is read again, and deleted after 90 days.
GRANT SELECT, INSERT, DELETE ON webhook_alerts TO reconciler;
GRANT SELECT, INSERT, UPDATE, DELETE ON endpoint_faults TO reconciler;

-- The ledger tells whether migrations are missing.
GRANT SELECT ON reconciler_migrations TO reconciler;

-- The ids of new rows.
GRANT USAGE ON SEQUENCE messages_id_seq, call_events_id_seq, twilio_webhook_inbox_id_seq TO reconciler;

-- Everybody has EXECUTE by default; the grant is for databases where it was revoked. The triggers of messages use both.
GRANT EXECUTE ON FUNCTION call_status_rank(text), call_status_is_final(text) TO reconciler;

-- With RECONCILER_ENGINE=procrastinate only: the queue in its own schema.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'reconciler_engine') THEN
        GRANT USAGE ON SCHEMA reconciler_engine TO reconciler;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA reconciler_engine TO reconciler;
        GRANT USAGE ON ALL SEQUENCES IN SCHEMA reconciler_engine TO reconciler;
        -- A backfill by the fleet notes each slice, and deletes the notes that it has counted.
        GRANT DELETE ON sync_state TO reconciler;
    END IF;
END
$$;
