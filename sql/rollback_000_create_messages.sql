-- Undoes 000: drops messages, if 000 created it. A table of the Viewer's is never touched.
--
-- lock: ACCESS EXCLUSIVE on messages
-- drops: messages

DO $$
BEGIN
    IF obj_description(to_regclass('messages'), 'pg_class') LIKE 'Created by reconciler%' THEN
        DROP TABLE messages;
    END IF;
END
$$;
