-- Undoes 014: the trigger functions run with the writer's search_path again. The triggers stay unchanged: for the
-- columns' own types their conditions mean the same as those of 004, 007 and 011.
--
-- lock: none that a writer could meet

DO $$
DECLARE
    hardened regprocedure;
BEGIN
    FOREACH hardened IN ARRAY ARRAY[
        to_regprocedure('messages_touch_updated_at()'), to_regprocedure('messages_keep_frozen()'),
        to_regprocedure('messages_keep_final()'), to_regprocedure('messages_make_final()'),
        to_regprocedure('messages_keep_open()'), to_regprocedure('call_events_refuse_change()')
    ]
    LOOP
        IF hardened IS NOT NULL THEN
            EXECUTE format('ALTER FUNCTION %s RESET search_path', hardened);
        END IF;
    END LOOP;
END
$$;
