-- Undoes 010: drops the indexes, without blocking a writer.
--
-- lock: SHARE UPDATE EXCLUSIVE on messages, call_events and the inbox
-- transaction: none

DROP INDEX CONCURRENTLY IF EXISTS webhook_inbox_unprocessed;
DROP INDEX CONCURRENTLY IF EXISTS messages_unfrozen;
DROP INDEX CONCURRENTLY IF EXISTS messages_open;
DROP INDEX CONCURRENTLY IF EXISTS call_events_dedupe_key;
