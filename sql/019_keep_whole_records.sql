-- 019: what Twilio's record of a call holds beyond the columns of messages.
--
-- In the field messages is full. The column is nullable and without default, so nothing is rewritten; a row is filled
-- when its call is read again. The CHECK is added NOT VALID and validated afterwards, by a scan that blocks no writer.
--
-- lock: ACCESS EXCLUSIVE on messages for a moment; SHARE UPDATE EXCLUSIVE while validating
-- transaction: none

ALTER TABLE messages
    ADD COLUMN IF NOT EXISTS other_fields jsonb;        -- as Twilio names and writes them, without nulls

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint
                   WHERE conrelid = 'messages'::regclass AND conname = 'messages_other_fields_object') THEN
        ALTER TABLE messages
            ADD CONSTRAINT messages_other_fields_object CHECK (jsonb_typeof(other_fields) = 'object') NOT VALID;
    END IF;
END
$$;

ALTER TABLE messages VALIDATE CONSTRAINT messages_other_fields_object;

-- A frozen call keeps each of these values, as it keeps its columns (007). What is missing may be filled: a row that an
-- older version froze has none of them, and Twilio may add a field to all records.
CREATE OR REPLACE FUNCTION messages_keep_other_fields() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.other_fields := coalesce(NEW.other_fields || OLD.other_fields, OLD.other_fields);
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER messages_guard_5_other_fields
    BEFORE UPDATE ON messages
    FOR EACH ROW
    WHEN (OLD.sync_state::text = 'frozen'::text
          AND OLD.other_fields IS NOT NULL
          AND NEW.other_fields IS DISTINCT FROM OLD.other_fields
          AND call_status_is_final(OLD.status::text)
          AND pg_catalog.current_setting('reconciler.thaw', true) IS DISTINCT FROM 'on'::text)
    EXECUTE FUNCTION messages_keep_other_fields();
