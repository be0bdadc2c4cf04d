-- 022: autovacuum comes in time for the small indexes that the jobs poll, and takes the events in small portions.
--
-- In the field the tables have millions of rows, and autovacuum waits until a fifth of a table is dead or new: two
-- million rows of ten million. A value that somebody set stays.
--
-- messages, twilio_webhook_inbox: hot, warm and the inbox job poll indexes of a few rows, through which every call and
-- every webhook passes. Each leaves dead entries there until VACUUM. vacuum_index_cleanup: VACUUM leaves the indexes alone
-- while fewer than 2 % of a table's pages have dead rows, which is the rule here: new calls lie together
-- (https://www.postgresql.org/docs/current/sql-vacuum.html).
--
-- call_events: rows are only added. A fifth of the table at once is a long VACUUM, and until then page ranges may be
-- missing from its BRIN index: autosummarize drops a request when too many wait
-- (https://www.postgresql.org/docs/current/brin.html).
--
-- docs/scale.md has the measurements.
--
-- lock: SHARE UPDATE EXCLUSIVE on messages, twilio_webhook_inbox and call_events for a moment each; writers go on

DO $$
DECLARE
    missing record;
BEGIN
    FOR missing IN
        SELECT c.oid::regclass AS relation, wanted.option, wanted.value
        FROM (VALUES
            ('messages', 'autovacuum_vacuum_scale_factor', '0.01'),
            ('messages', 'vacuum_index_cleanup', 'on'),
            ('twilio_webhook_inbox', 'autovacuum_vacuum_scale_factor', '0.01'),
            ('twilio_webhook_inbox', 'vacuum_index_cleanup', 'on'),
            ('call_events', 'autovacuum_vacuum_insert_scale_factor', '0.02')
        ) AS wanted (relation, option, value)
        JOIN pg_class AS c ON c.oid = wanted.relation::regclass
        WHERE NOT EXISTS (
            SELECT FROM pg_options_to_table(c.reloptions) AS o WHERE o.option_name = wanted.option
        )
    LOOP
        EXECUTE format('ALTER TABLE %s SET (%I = %s)', missing.relation, missing.option, missing.value);
    END LOOP;
END
$$;
