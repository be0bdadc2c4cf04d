-- Undoes 022: takes back the settings of autovacuum that still have the value of 022.
--
-- lock: SHARE UPDATE EXCLUSIVE on messages, twilio_webhook_inbox and call_events for a moment each; writers go on

DO $$
DECLARE
    ours record;
BEGIN
    FOR ours IN
        SELECT c.oid::regclass AS relation, set.option
        FROM (VALUES
            ('messages', 'autovacuum_vacuum_scale_factor', '0.01'),
            ('messages', 'vacuum_index_cleanup', 'on'),
            ('twilio_webhook_inbox', 'autovacuum_vacuum_scale_factor', '0.01'),
            ('twilio_webhook_inbox', 'vacuum_index_cleanup', 'on'),
            ('call_events', 'autovacuum_vacuum_insert_scale_factor', '0.02')
        ) AS set (relation, option, value)
        JOIN pg_class AS c ON c.oid = to_regclass(set.relation)
        JOIN LATERAL pg_options_to_table(c.reloptions) AS o
            ON o.option_name = set.option AND o.option_value = set.value
    LOOP
        EXECUTE format('ALTER TABLE %s RESET (%I)', ours.relation, ours.option);
    END LOOP;
END
$$;
