-- Undoes 004: drops the five columns, with their indexes and the trigger.
--
-- It also drops the triggers and the constraint that 007 and 009 built upon these columns, so that the file works
-- alone. And it drops every trigger that sets updated_at, under any name: left behind, that would make every UPDATE of
-- messages fail. The trigger's function stays, because other tables may use it.
--
-- lock: ACCESS EXCLUSIVE on messages for a moment

DO $$
DECLARE
    stale record;
BEGIN
    FOR stale IN
        SELECT t.tgname AS name
        FROM pg_trigger AS t
        JOIN pg_proc AS p ON p.oid = t.tgfoid
        WHERE t.tgrelid = to_regclass('messages')
          AND NOT t.tgisinternal
          AND (p.prosrc ~* 'new\.updated_at' OR t.tgname LIKE 'messages\_guard\_%')
    LOOP
        EXECUTE format('DROP TRIGGER %I ON messages', stale.name);
    END LOOP;
END
$$;

DROP FUNCTION IF EXISTS messages_touch_updated_at();

DROP INDEX IF EXISTS idx_messages_parent_call_sid;

ALTER TABLE IF EXISTS messages
    DROP CONSTRAINT IF EXISTS messages_final_agrees,
    DROP COLUMN IF EXISTS updated_at,
    DROP COLUMN IF EXISTS last_event_time,
    DROP COLUMN IF EXISTS is_final,
    DROP COLUMN IF EXISTS finalized_at,
    DROP COLUMN IF EXISTS sync_state;
