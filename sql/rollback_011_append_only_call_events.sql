-- Undoes 011: call_events may be changed by anybody again.
--
-- lock: ACCESS EXCLUSIVE on call_events for a moment

DROP TRIGGER IF EXISTS call_events_append_only ON call_events;
DROP TRIGGER IF EXISTS call_events_retention ON call_events;
DROP FUNCTION IF EXISTS call_events_refuse_change();
