-- Undoes 009: nothing but the triggers of 007 keeps status and is_final in agreement.
--
-- lock: ACCESS EXCLUSIVE on messages for a moment

ALTER TABLE IF EXISTS messages DROP CONSTRAINT IF EXISTS messages_final_agrees;
