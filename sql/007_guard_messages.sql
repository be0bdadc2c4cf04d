-- 007: the rules of messages, enforced for every writer.
--
-- In the field the Viewer's backend writes without following our rules. These triggers never make its statement fail;
-- they correct the row before it is written. Each rule is a WHEN clause, so a row that obeys it costs no function call.
-- The functions only assign: they look up no object that a writer's search_path could hide. Triggers fire in the order
-- of their names, and each sees the row as the previous one left it.
--
-- lock: SHARE ROW EXCLUSIVE on messages for a moment

-- 1. A frozen call does not change in the columns that Twilio owns. The Viewer's columns may change: conversation_id,
--    direction, recording_url, metadata, created_at, updated_at. A person who thaws a call switches the rule off for
--    one transaction: SELECT set_config('reconciler.thaw', 'on', true).
CREATE OR REPLACE FUNCTION messages_keep_frozen() RETURNS trigger
LANGUAGE plpgsql AS $$
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
    WHEN (OLD.sync_state = 'frozen'
          AND call_status_is_final(OLD.status)
          AND current_setting('reconciler.thaw', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION messages_keep_frozen();

-- 2. A final status never becomes one that is not final. It may become another final status: Twilio corrects itself.
CREATE OR REPLACE FUNCTION messages_keep_final() RETURNS trigger
LANGUAGE plpgsql AS $$
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
    WHEN (call_status_is_final(OLD.status) AND NOT call_status_is_final(NEW.status))
    EXECUTE FUNCTION messages_keep_final();

-- 3. A terminal status makes the row final, with the best time that is known. now() is the last choice, and used only
--    here: a writer without any of Twilio's times must not fail, and the time of writing is all that is left.
CREATE OR REPLACE FUNCTION messages_make_final() RETURNS trigger
LANGUAGE plpgsql AS $$
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
    WHEN (call_status_is_final(NEW.status) AND (NEW.is_final IS NOT TRUE OR NEW.finalized_at IS NULL))
    EXECUTE FUNCTION messages_make_final();

-- 4. Any other status keeps the row open, and an open row is not frozen.
CREATE OR REPLACE FUNCTION messages_keep_open() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.is_final     := false;
    NEW.finalized_at := NULL;
    IF NEW.sync_state = 'frozen' THEN
        NEW.sync_state := 'active';
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER messages_guard_4_keep_open
    BEFORE INSERT OR UPDATE ON messages
    FOR EACH ROW
    WHEN (NOT call_status_is_final(NEW.status)
          AND (NEW.is_final IS NOT FALSE OR NEW.finalized_at IS NOT NULL OR NEW.sync_state = 'frozen'))
    EXECUTE FUNCTION messages_keep_open();
