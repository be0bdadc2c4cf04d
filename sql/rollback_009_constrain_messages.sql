-- Undoes 009: drops the constraint. Only the triggers of 007 then keep status and is_final in agreement.
--
-- lock: ACCESS EXCLUSIVE on messages for a moment

ALTER TABLE IF EXISTS messages DROP CONSTRAINT IF EXISTS messages_final_agrees;
