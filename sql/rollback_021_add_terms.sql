-- Undoes 021: drops the column.
--
-- lock: ACCESS EXCLUSIVE on sync_state for a moment

ALTER TABLE IF EXISTS sync_state DROP COLUMN IF EXISTS term;
