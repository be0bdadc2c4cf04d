-- Undoes 003: drops the jobs' cursors.
--
-- lock: ACCESS EXCLUSIVE on sync_state
-- drops: sync_state

DROP TABLE IF EXISTS sync_state;
