-- 006: the columns of calls and events that the reconciler needs, and the rank of each status.
--
-- In the field both tables are full. All columns are nullable and without default, so nothing is rewritten, and old
-- rows keep null. The CHECK is added NOT VALID and validated afterwards, by a scan that blocks no writer.
--
-- lock: ACCESS EXCLUSIVE on messages and call_events for a moment each; SHARE UPDATE EXCLUSIVE while validating
-- transaction: none

ALTER TABLE messages
    ADD COLUMN IF NOT EXISTS account_sid  text,
    ADD COLUMN IF NOT EXISTS answered_by  text,         -- result of Twilio's machine detection
    ADD COLUMN IF NOT EXISTS date_created timestamptz,  -- when Twilio created the call; start_time is null before dialling
    ADD COLUMN IF NOT EXISTS observed_at  timestamptz,  -- observed_at of the last applied observation
    ADD COLUMN IF NOT EXISTS observed_via text,
    ADD COLUMN IF NOT EXISTS gone_at      timestamptz;  -- when Twilio answered that it no longer has the call

ALTER TABLE call_events
    ADD COLUMN IF NOT EXISTS dedupe_key text,           -- null in old rows, which hold duplicates; unique since 010
    ADD COLUMN IF NOT EXISTS run_id     text;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint
                   WHERE conrelid = 'messages'::regclass AND conname = 'messages_observed_via_known') THEN
        ALTER TABLE messages
            ADD CONSTRAINT messages_observed_via_known CHECK (observed_via IN ('rest', 'webhook')) NOT VALID;
    END IF;
END
$$;

ALTER TABLE messages VALIDATE CONSTRAINT messages_observed_via_known;

-- A call moves up in rank and never down. An unknown status, left by another writer, gives way to any known one.
CREATE OR REPLACE FUNCTION call_status_rank(status text) RETURNS smallint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE status
    WHEN 'queued'      THEN 0
    WHEN 'initiated'   THEN 1
    WHEN 'ringing'     THEN 2
    WHEN 'in-progress' THEN 3
    WHEN 'answered'    THEN 3                           -- a webhook's word for in-progress
    WHEN 'completed'   THEN 4
    WHEN 'busy'        THEN 4
    WHEN 'no-answer'   THEN 4
    WHEN 'canceled'    THEN 4
    WHEN 'failed'      THEN 4
    ELSE -1
END::smallint;

CREATE OR REPLACE FUNCTION call_status_is_final(status text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN coalesce(status IN ('completed', 'busy', 'no-answer', 'canceled', 'failed'), false);
