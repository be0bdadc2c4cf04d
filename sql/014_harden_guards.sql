-- 014: triggers that no stranger's function or operator in our schema can take over.
--
-- In the field everybody may create objects in schema public up to PostgreSQL 14; later only roles with that privilege.
-- PostgreSQL prefers a function or operator whose types fit exactly: beside `call_status_is_final(text)` a stranger's
-- `call_status_is_final(varchar)` would be called for a varchar column. Each WHEN clause therefore casts its arguments,
-- and each trigger function has a search_path of its own. The triggers do the same as those of 004, 007 and 011.
--
-- lock: SHARE ROW EXCLUSIVE on messages and call_events for a moment

CREATE OR REPLACE FUNCTION messages_touch_updated_at() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER messages_touch_updated_at
    BEFORE UPDATE ON messages
    FOR EACH ROW
    WHEN (NEW.updated_at IS NOT DISTINCT FROM OLD.updated_at
          AND pg_catalog.current_setting('reconciler.keep_updated_at', true) IS DISTINCT FROM 'on'::text)
    EXECUTE FUNCTION messages_touch_updated_at();

CREATE OR REPLACE FUNCTION messages_keep_frozen() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.twilio_sid      := OLD.twilio_sid;
    NEW.status          := OLD.status;
    NEW.from_number     := OLD.from_number;
    NEW.to_number       := OLD.to_number;
    NEW.duration        := OLD.duration;
    NEW.price           := OLD.price;
    NEW.price_unit      := OLD.price_unit;
    NEW.start_time      := OLD.start_time;
    NEW.end_time        := OLD.end_time;
    NEW.parent_call_sid := OLD.parent_call_sid;
    NEW.account_sid     := OLD.account_sid;
    NEW.answered_by     := OLD.answered_by;
    NEW.date_created    := OLD.date_created;
    NEW.last_event_time := OLD.last_event_time;
    NEW.is_final        := OLD.is_final;
    NEW.finalized_at    := OLD.finalized_at;
    NEW.sync_state      := OLD.sync_state;
    NEW.observed_at     := OLD.observed_at;
    NEW.observed_via    := OLD.observed_via;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER messages_guard_1_frozen
    BEFORE UPDATE ON messages
    FOR EACH ROW
    WHEN (OLD.sync_state::text = 'frozen'::text
          AND call_status_is_final(OLD.status::text)
          AND pg_catalog.current_setting('reconciler.thaw', true) IS DISTINCT FROM 'on'::text)
    EXECUTE FUNCTION messages_keep_frozen();

CREATE OR REPLACE FUNCTION messages_keep_final() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.status       := OLD.status;
    NEW.is_final     := OLD.is_final;
    NEW.finalized_at := OLD.finalized_at;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER messages_guard_2_final
    BEFORE UPDATE ON messages
    FOR EACH ROW
    WHEN (call_status_is_final(OLD.status::text) AND NOT call_status_is_final(NEW.status::text))
    EXECUTE FUNCTION messages_keep_final();

CREATE OR REPLACE FUNCTION messages_make_final() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.is_final     := true;
    NEW.finalized_at := coalesce(NEW.finalized_at,
                                 OLD.finalized_at,      -- null on INSERT, and where the old status was not final
                                 NEW.end_time AT TIME ZONE 'UTC',
                                 NEW.last_event_time,
                                 now());
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER messages_guard_3_make_final
    BEFORE INSERT OR UPDATE ON messages
    FOR EACH ROW
    WHEN (call_status_is_final(NEW.status::text) AND (NEW.is_final IS NOT TRUE OR NEW.finalized_at IS NULL))
    EXECUTE FUNCTION messages_make_final();

CREATE OR REPLACE FUNCTION messages_keep_open() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.is_final     := false;
    NEW.finalized_at := NULL;
    IF NEW.sync_state::text = 'frozen'::text THEN
        NEW.sync_state := 'active';
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER messages_guard_4_keep_open
    BEFORE INSERT OR UPDATE ON messages
    FOR EACH ROW
    WHEN (NOT call_status_is_final(NEW.status::text)
          AND (NEW.is_final IS NOT FALSE OR NEW.finalized_at IS NOT NULL OR NEW.sync_state::text = 'frozen'::text))
    EXECUTE FUNCTION messages_keep_open();

CREATE OR REPLACE FUNCTION call_events_refuse_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
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
    WHEN (pg_catalog.current_setting('reconciler.retention', true) IS DISTINCT FROM 'on'::text)
    EXECUTE FUNCTION call_events_refuse_change();
