-- Undoes 002: drops the log of events, with every event in it.
--
-- lock: ACCESS EXCLUSIVE on call_events
-- drops: call_events

DROP TABLE IF EXISTS call_events;
