-- Undoes 007: drops the guards. Any writer may move a call backwards again.
--
-- lock: ACCESS EXCLUSIVE on messages for a moment

DROP TRIGGER IF EXISTS messages_guard_1_frozen ON messages;
DROP TRIGGER IF EXISTS messages_guard_2_final ON messages;
DROP TRIGGER IF EXISTS messages_guard_3_make_final ON messages;
DROP TRIGGER IF EXISTS messages_guard_4_keep_open ON messages;

DROP FUNCTION IF EXISTS messages_keep_frozen();
DROP FUNCTION IF EXISTS messages_keep_final();
DROP FUNCTION IF EXISTS messages_make_final();
DROP FUNCTION IF EXISTS messages_keep_open();
