-- Undoes 019: drops the column with its guard. The values can be fetched from Twilio again.
--
-- lock: ACCESS EXCLUSIVE on messages for a moment

DROP TRIGGER IF EXISTS messages_guard_5_other_fields ON messages;
DROP FUNCTION IF EXISTS messages_keep_other_fields();

ALTER TABLE IF EXISTS messages
    DROP COLUMN IF EXISTS other_fields;
