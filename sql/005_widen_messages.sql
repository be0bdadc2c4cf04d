-- 005: wider columns of messages: Twilio's values did not fit into them.
--
-- In the field from_number and to_number are varchar(20), which a SIP URI or a `client:` name exceeds, and price is
-- decimal(10,4), which drops Twilio's fifth decimal. Both changes lift a limit and rewrite neither table nor index.
-- A view over one of these columns makes PostgreSQL refuse: drop it, migrate, create it again.
--
-- lock: ACCESS EXCLUSIVE on messages for a moment

-- The types are compared first: ALTER TYPE fails on a column that a trigger names, even if it changes nothing.
DO $$
DECLARE
    narrow record;
BEGIN
    FOR narrow IN
        SELECT a.attname AS name, wanted.type
        FROM pg_attribute AS a
        JOIN (VALUES ('from_number', 'text'), ('to_number', 'text'), ('price', 'numeric')) AS wanted (name, type)
            ON wanted.name = a.attname
        WHERE a.attrelid = 'messages'::regclass
          AND format_type(a.atttypid, a.atttypmod) <> wanted.type
    LOOP
        EXECUTE format('ALTER TABLE messages ALTER COLUMN %I TYPE %s', narrow.name, narrow.type);
    END LOOP;
END
$$;
