-- 009: a constraint: status, is_final, finalized_at and sync_state always agree.
--
-- In the field every row agrees since 008, and 007 keeps it so. From here on no writer can break it. The constraint is
-- added NOT VALID, which reads no row, then validated by a scan that blocks no writer.
--
-- lock: ACCESS EXCLUSIVE on messages for a moment; SHARE UPDATE EXCLUSIVE while validating
-- transaction: none

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint
                   WHERE conrelid = 'messages'::regclass AND conname = 'messages_final_agrees') THEN
        ALTER TABLE messages
            ADD CONSTRAINT messages_final_agrees CHECK (
                is_final = call_status_is_final(status)
                AND (finalized_at IS NOT NULL) = is_final
                AND (is_final OR sync_state <> 'frozen')
            ) NOT VALID;
    END IF;
END
$$;

ALTER TABLE messages VALIDATE CONSTRAINT messages_final_agrees;
