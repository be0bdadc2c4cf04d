-- Undoes 006: drops the columns and the functions. The columns' values can be fetched from Twilio again.
--
-- lock: ACCESS EXCLUSIVE on messages and call_events for a moment

ALTER TABLE IF EXISTS messages
    DROP CONSTRAINT IF EXISTS messages_observed_via_known,
    DROP COLUMN IF EXISTS account_sid,
    DROP COLUMN IF EXISTS answered_by,
    DROP COLUMN IF EXISTS date_created,
    DROP COLUMN IF EXISTS observed_at,
    DROP COLUMN IF EXISTS observed_via,
    DROP COLUMN IF EXISTS gone_at;

ALTER TABLE IF EXISTS call_events
    DROP COLUMN IF EXISTS dedupe_key,
    DROP COLUMN IF EXISTS run_id;

DROP FUNCTION IF EXISTS call_status_rank(text);
DROP FUNCTION IF EXISTS call_status_is_final(text);
