-- Undoes 013: drops the indexes, without blocking a writer.
--
-- lock: SHARE UPDATE EXCLUSIVE on messages and the twilio_webhook_inbox
-- transaction: none

DROP INDEX CONCURRENTLY IF EXISTS webhook_inbox_completed;
DROP INDEX CONCURRENTLY IF EXISTS webhook_inbox_unsettled;
DROP INDEX CONCURRENTLY IF EXISTS messages_freezable;
DROP INDEX CONCURRENTLY IF EXISTS messages_account_time;
