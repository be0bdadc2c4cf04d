-- 011: call_events is append-only, enforced by triggers.
--
-- In the field the table is called immutable, but anybody may change it. From here on UPDATE, DELETE and TRUNCATE are
-- refused. For retention one setting allows DELETE, until the end of its transaction:
--     SELECT set_config('reconciler.retention', 'on', true);
--
-- lock: SHARE ROW EXCLUSIVE on call_events for a moment

CREATE OR REPLACE FUNCTION call_events_refuse_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'call_events is append-only: % refused', TG_OP
        USING ERRCODE = 'restrict_violation',
              HINT = 'Retention deletes after SELECT set_config(''reconciler.retention'', ''on'', true), '
                     'in the same transaction.';
END
$$;

CREATE OR REPLACE TRIGGER call_events_append_only
    BEFORE UPDATE OR TRUNCATE ON call_events
    FOR EACH STATEMENT
    EXECUTE FUNCTION call_events_refuse_change();

CREATE OR REPLACE TRIGGER call_events_retention
    BEFORE DELETE ON call_events
    FOR EACH STATEMENT
    WHEN (current_setting('reconciler.retention', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION call_events_refuse_change();
