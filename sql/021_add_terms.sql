-- 021: the term of each job's cursor, which grows each time a run takes the job over.
--
-- In the field the table has a few rows. The default is kept in the catalog, so no row is written.
--
-- lock: ACCESS EXCLUSIVE on sync_state for a moment

ALTER TABLE sync_state ADD COLUMN IF NOT EXISTS term bigint NOT NULL DEFAULT 0;
