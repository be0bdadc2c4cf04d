-- Undoes 003: the jobs' cursors go.
--
-- lock: ACCESS EXCLUSIVE on sync_state
-- drops: sync_state

DROP TABLE IF EXISTS sync_state;
