-- 000: the Viewer's table of calls, for a database that has none.
--
-- In the field `messages` exists already, is full of rows, and belongs to the Viewer: then this file does nothing.
-- Otherwise it makes the same table, with the two corrections that 005 makes in the field: numbers of any length
-- (a SIP URI exceeds 20 characters) and prices of any scale (Twilio has five decimals). start_time and end_time
-- are `timestamp`, as in the field, and hold UTC.
--
-- lock: none that a writer could meet

DO $$
BEGIN
    IF to_regclass('messages') IS NOT NULL THEN
        RETURN;
    END IF;

    CREATE TABLE messages (
        id              serial PRIMARY KEY,
        conversation_id integer,
        twilio_sid      varchar(100) NOT NULL UNIQUE,
        direction       varchar(50) NOT NULL,
        status          varchar(50) NOT NULL,
        from_number     text NOT NULL,
        to_number       text NOT NULL,
        duration        integer,
        price           numeric,
        price_unit      varchar(10),
        start_time      timestamp,
        end_time        timestamp,
        recording_url   text,
        parent_call_sid varchar(100),
        metadata        jsonb DEFAULT '{}',
        created_at      timestamp DEFAULT now()
    );

    -- rollback_000 drops only a table that carries this mark.
    COMMENT ON TABLE messages IS 'Created by reconciler: calls, one row for each Twilio Call SID';
END
$$;
