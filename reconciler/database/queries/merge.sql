-- The merge: staged observations in, rows and events out. The rules are numbered as in docs/architecture.md.

-- name: look_up
-- The look-up of one call in merge_staged, alone, so that `reconcile verify --explain` can ask the planner about it.
--
-- Cost: reads messages_twilio_sid_key.
SELECT ctid FROM messages WHERE twilio_sid::text = %(call_sid)s

-- name: look_up_page
-- The look-up of the calls of a page in merge_staged, alone.
--
-- Cost: reads messages_account_time.
SELECT twilio_sid::text, ctid
FROM messages
WHERE account_sid = %(account_sid)s::text
    AND coalesce(start_time AT TIME ZONE 'UTC', date_created)
    BETWEEN %(began_since)s::timestamptz AND %(began_until)s::timestamptz
ORDER BY coalesce(start_time AT TIME ZONE 'UTC', date_created)
LIMIT %(staged)s

-- name: merge_staged
-- Apply the staged observations, at most one for each call, to messages and call_events.
--
-- Cost: a page of a listing holds calls that follow one another in time. The rows of its account and time are therefore
-- found together, at most as many as are staged. A staged row that is not among them looks its call up in the unique index.
-- An unchanged call is only compared: no lock, no row version, no WAL (rule 8).
--
-- Plans, whatever the statistics say:
-- - ORDER BY and LIMIT make PostgreSQL follow the index on account and time up to the limit. A bitmap would hold all that
--   the time covers.
-- - A FULL JOIN can only be a hash join or a merge join. A left join might compare each staged row with each row found.
-- - The row is fetched by its address, and the look-up by SID is a subquery of its own. PostgreSQL can only run it as one
--   probe for each row. It would turn a plain join into a scan of all of messages.
-- - OFFSET 0 keeps EXISTS from becoming a join, or a hash table, of all of call_events: to a plan made while that was empty
--   both seem cheap.
-- - OFFSET 0 behind other subqueries keeps the planner from copying an expression into each place that names it.
--
-- Concurrency: the statement decides on its snapshot's version of the row. The UPDATE writes only if the row still has
-- that version (ctid and xmin). `written` is the number of rows written. If it differs from the number decided, or if
-- another writer inserted the same call or event first, the caller rolls back and merges again. ON CONFLICT would cost
-- each new row a second record in the WAL.
--
-- Returns one row for each observation that holds something new: the columns of transaction.Decision, then `unwritten`
-- and `written`. `unwritten` has the keys of events that the statement did not write: they were there, or a trigger
-- kept them away. With `brief` alike observations are one row, with their number; only a drift, and a call that ended,
-- are named.
WITH decided AS MATERIALIZED (
    SELECT
        s.call_sid, s.via, s.direction, s.status AS said_status, s.status_at, s.observed_at AS said_at,
        m.row_ctid, m.row_xmin, m.status AS old_status, m.observed_at AS held_since,
        new.*, ended.finalized_at, freezing.reason AS freeze_reason, verdict.action,
        CASE
            WHEN verdict.action = 'insert' THEN 'call.created'
            WHEN verdict.action = 'late' THEN 'call.status_changed'
            WHEN verdict.action = 'drift' THEN 'call.frozen_drift'
            WHEN judged.corrects THEN 'call.corrected'
            WHEN new.status <> m.status THEN 'call.status_changed'
            WHEN differs.in_call THEN 'call.enriched'
        END AS event_type,
        CASE
            -- No gap: within the grace the webhook may still be on its way, and a webhook fills no gap.
            WHEN s.via <> 'rest' OR s.observed_at - s.status_at < %(webhook_grace)s THEN NULL
            WHEN verdict.action = 'insert' THEN 'missing'
            WHEN verdict.action <> 'update' THEN NULL
            WHEN judged.corrects THEN 'conflict'
            WHEN judged.said_rank > judged.old_rank THEN 'stale'
            WHEN judged.said_rank = 4 AND (
                (m.end_time IS NULL AND new.end_time IS NOT NULL)
                OR (m.duration IS NULL AND new.duration IS NOT NULL)
                OR (m.price IS NULL AND new.price IS NOT NULL)
            ) THEN 'incomplete'
        END AS gap,
        -- The call reached this status before the first look at its account: it is imported, and no gap.
        coalesce(s.via = 'rest' AND s.status_at < %(imported_before)s::timestamptz, false) AS is_old,
        CASE
            WHEN verdict.action = 'late' THEN pg_catalog.jsonb_build_object('status', s.status)
            -- A call inserted as frozen gets a short event (rule 9): the row holds the rest and does not change.
            WHEN verdict.action = 'insert' AND freezing.reason IS NOT NULL AND NOT %(explain)s
                THEN pg_catalog.jsonb_build_object('frozen', freezing.reason)
            ELSE coalesce(
                (
                    SELECT pg_catalog.jsonb_object_agg(o.key, o.value)
                    FROM pg_catalog.jsonb_each(new.other_fields) AS o
                    WHERE o.value IS DISTINCT FROM m.other_fields -> o.key
                ),
                '{}'::jsonb
            ) || pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
            'status', CASE WHEN new.status IS DISTINCT FROM m.status THEN new.status END,
            'previous_status', CASE WHEN new.status <> m.status THEN m.status END,
            'account_sid', CASE WHEN new.account_sid IS DISTINCT FROM m.account_sid THEN new.account_sid END,
            'parent_call_sid', CASE WHEN new.parent_call_sid IS DISTINCT FROM m.parent_call_sid THEN new.parent_call_sid END,
            'from_number', CASE WHEN new.from_number IS DISTINCT FROM m.from_number THEN new.from_number END,
            'to_number', CASE WHEN new.to_number IS DISTINCT FROM m.to_number THEN new.to_number END,
            'duration', CASE WHEN new.duration IS DISTINCT FROM m.duration THEN new.duration END,
            'price', CASE WHEN new.price IS DISTINCT FROM m.price THEN new.price END,
            'price_unit', CASE WHEN new.price_unit IS DISTINCT FROM m.price_unit THEN new.price_unit END,
            'start_time', CASE WHEN new.start_time IS DISTINCT FROM m.start_time THEN new.start_time END,
            'end_time', CASE WHEN new.end_time IS DISTINCT FROM m.end_time THEN new.end_time END,
            'answered_by', CASE WHEN new.answered_by IS DISTINCT FROM m.answered_by THEN new.answered_by END,
            'date_created', CASE WHEN new.date_created IS DISTINCT FROM m.date_created THEN new.date_created END
        )) END AS payload,
        CASE WHEN %(explain)s OR verdict.action = 'drift' THEN pg_catalog.to_jsonb(m) END AS ours
    FROM pg_temp.staged_observations AS s
    FULL JOIN (
        SELECT twilio_sid::text AS call_sid, ctid AS address
        FROM messages
        WHERE account_sid = %(account_sid)s::text
            AND coalesce(start_time AT TIME ZONE 'UTC', date_created)
            BETWEEN %(began_since)s::timestamptz AND %(began_until)s::timestamptz
        ORDER BY coalesce(start_time AT TIME ZONE 'UTC', date_created)
        LIMIT %(staged)s
    ) AS n ON n.call_sid = s.call_sid
    LEFT JOIN LATERAL (
        SELECT
            ctid AS row_ctid, xmin AS row_xmin, twilio_sid, account_sid, parent_call_sid::text, status::text,
            nullif(from_number, '') AS from_number, nullif(to_number, '') AS to_number,
            duration, price, price_unit::text,
            start_time AT TIME ZONE 'UTC' AS start_time, end_time AT TIME ZONE 'UTC' AS end_time,
            answered_by, date_created, other_fields, last_event_time, finalized_at, sync_state,
            coalesce(observed_at, '-infinity') AS observed_at, coalesce(observed_via, 'webhook') AS observed_via, gone_at
        FROM messages
        WHERE ctid = coalesce(n.address, (SELECT ctid FROM messages WHERE twilio_sid::text = s.call_sid))
        OFFSET 0
    ) AS m ON true
    CROSS JOIN LATERAL (
        SELECT call_status_rank(s.status::text) AS said_rank, call_status_rank(m.status::text) AS old_rank
        OFFSET 0
    ) AS rank
    CROSS JOIN LATERAL (SELECT s.other_fields::jsonb AS other_fields OFFSET 0) AS said
    CROSS JOIN LATERAL (
        SELECT
            rank.said_rank, rank.old_rank,
            m.twilio_sid IS NULL AS is_unknown,
            m.sync_state IS NOT DISTINCT FROM 'frozen' AS is_frozen,
            -- A call cannot go back, so a higher rank is of a later moment, whatever the clocks say (rule 2).
            -- Within a rank the later observation is the newer one, and at a tie REST beats a webhook (rule 4).
            -- Against a frozen row everything counts as newer, so that every disagreement shows (rule 7).
            m.twilio_sid IS NULL OR m.sync_state = 'frozen'
                OR (rank.said_rank, s.observed_at, s.via = 'rest')
                 > (rank.old_rank, m.observed_at, m.observed_via = 'rest') AS is_newer,
            rank.said_rank = 4 AND rank.old_rank = 4 AND s.status <> m.status AS disagrees,
            rank.said_rank = 4 AND rank.old_rank = 4 AND s.status <> m.status
                AND (s.observed_at, s.via = 'rest') > (m.observed_at, m.observed_via = 'rest') AS corrects
        OFFSET 0
    ) AS judged
    CROSS JOIN LATERAL (
        -- Null never replaces a value. A newer observation replaces values, an older one fills nulls (rule 5).
        SELECT
            CASE WHEN judged.is_newer THEN s.status ELSE m.status END AS status,
            coalesce(CASE WHEN judged.is_newer THEN s.account_sid END, m.account_sid, s.account_sid) AS account_sid,
            coalesce(CASE WHEN judged.is_newer THEN s.parent_call_sid END, m.parent_call_sid, s.parent_call_sid) AS parent_call_sid,
            coalesce(CASE WHEN judged.is_newer THEN s.from_number END, m.from_number, s.from_number) AS from_number,
            coalesce(CASE WHEN judged.is_newer THEN s.to_number END, m.to_number, s.to_number) AS to_number,
            coalesce(CASE WHEN judged.is_newer THEN s.duration END, m.duration, s.duration) AS duration,
            coalesce(CASE WHEN judged.is_newer THEN s.price END, m.price, s.price) AS price,
            coalesce(CASE WHEN judged.is_newer THEN s.price_unit END, m.price_unit, s.price_unit) AS price_unit,
            coalesce(CASE WHEN judged.is_newer THEN s.start_time END, m.start_time, s.start_time) AS start_time,
            coalesce(CASE WHEN judged.is_newer THEN s.end_time END, m.end_time, s.end_time) AS end_time,
            coalesce(CASE WHEN judged.is_newer THEN s.answered_by END, m.answered_by, s.answered_by) AS answered_by,
            coalesce(CASE WHEN judged.is_newer THEN s.date_created END, m.date_created, s.date_created) AS date_created,
            -- Field by field, as the columns: of two objects joined by || the right one's values win.
            CASE
                WHEN judged.is_newer THEN coalesce(m.other_fields || said.other_fields, said.other_fields, m.other_fields)
                ELSE coalesce(said.other_fields || m.other_fields, m.other_fields, said.other_fields)
            END AS other_fields,
            CASE WHEN judged.is_newer THEN s.observed_at ELSE m.observed_at END AS observed_at,
            CASE WHEN judged.is_newer THEN s.via ELSE m.observed_via END AS observed_via,
            -- A call that Twilio lists is not gone (rule 11), unless the page is older than gone_at.
            CASE WHEN s.via = 'rest' AND s.observed_at > m.gone_at THEN NULL ELSE m.gone_at END AS gone_at,
            greatest(m.last_event_time, s.status_at) AS last_event_time
        OFFSET 0
    ) AS new
    CROSS JOIN LATERAL (
        -- When the call ended on Twilio's clock (rule 6): its end_time, else when its status was reached.
        SELECT CASE
            WHEN NOT call_status_is_final(new.status::text) THEN NULL
            WHEN new.end_time IS NOT NULL THEN new.end_time
            WHEN rank.old_rank = 4 AND NOT judged.corrects THEN coalesce(m.finalized_at, s.status_at)
            ELSE s.status_at
        END AS finalized_at
        OFFSET 0
    ) AS ended
    CROSS JOIN LATERAL (
        -- Only a REST record can freeze a row: webhooks carry neither price nor true times. Busy, no-answer,
        -- canceled and failed calls have no price to wait for.
        SELECT CASE
            WHEN s.via <> 'rest' OR ended.finalized_at IS NULL OR judged.is_frozen THEN NULL
            -- Dates have whole seconds, so the order of two answers within one second is unknown. If they disagree,
            -- the row holds values of both. The next answer decides, and then the row freezes.
            WHEN NOT judged.is_newer
                AND (
                    coalesce(s.parent_call_sid, new.parent_call_sid), coalesce(s.from_number, new.from_number),
                    coalesce(s.to_number, new.to_number), coalesce(s.duration, new.duration),
                    coalesce(s.price, new.price), coalesce(s.price_unit, new.price_unit),
                    coalesce(s.start_time, new.start_time), coalesce(s.end_time, new.end_time),
                    coalesce(s.answered_by, new.answered_by),
                    coalesce(new.other_fields || said.other_fields, new.other_fields)
                ) IS DISTINCT FROM (
                    new.parent_call_sid, new.from_number, new.to_number, new.duration, new.price, new.price_unit,
                    new.start_time, new.end_time, new.answered_by, new.other_fields
                )
                THEN NULL
            WHEN new.status <> 'completed' THEN 'complete'
            WHEN new.price IS NOT NULL AND new.end_time IS NOT NULL AND new.duration IS NOT NULL THEN 'complete'
            -- Twilio's clock counts: ours may be ahead, and a row that freezes too early loses its price for good.
            WHEN ended.finalized_at + %(freeze_after)s <= least(%(now)s, s.observed_at) THEN 'deadline'
        END AS reason
        OFFSET 0
    ) AS freezing
    CROSS JOIN LATERAL (
        SELECT
            -- A value of other_fields that replaces another is a change of the call. One that fills a gap is bookkeeping:
            -- rows of older versions lack all of them, and Twilio may add a field to every record.
            (new.status, new.parent_call_sid, new.from_number, new.to_number, new.duration, new.price,
                new.price_unit, new.start_time, new.end_time, new.answered_by,
                coalesce(new.other_fields || m.other_fields, new.other_fields))
            IS DISTINCT FROM
            (m.status, m.parent_call_sid, m.from_number, m.to_number, m.duration, m.price,
                m.price_unit, m.start_time, m.end_time, m.answered_by, new.other_fields) AS in_call,
            (new.account_sid, new.date_created, new.gone_at, ended.finalized_at, new.other_fields)
            IS DISTINCT FROM
            (m.account_sid, m.date_created, m.gone_at, m.finalized_at, m.other_fields) AS in_bookkeeping
        OFFSET 0
    ) AS differs
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN judged.is_unknown THEN 'insert'                                                    -- rule 1
            WHEN judged.is_frozen AND s.via = 'rest'
                -- The guard of frozen rows lets only gone_at and missing values of other_fields through (rules 5, 11).
                THEN CASE
                    WHEN differs.in_call THEN 'drift'                                               -- rule 7
                    WHEN (new.gone_at, new.other_fields) IS DISTINCT FROM (m.gone_at, m.other_fields) THEN 'update'
                END
            WHEN judged.is_frozen OR rank.said_rank < rank.old_rank OR (judged.disagrees AND NOT judged.corrects)
                -- The row does not change, but the webhook's status did happen (rule 3).
                THEN CASE WHEN s.via = 'webhook' AND s.status <> m.status THEN 'late' END
            WHEN differs.in_call OR differs.in_bookkeeping OR freezing.reason IS NOT NULL THEN 'update'
        END AS action                                                                               -- rule 8
        OFFSET 0
    ) AS verdict
    WHERE verdict.action IS NOT NULL
        -- Leave out rows of that time that no observation speaks of. A plain IS NOT NULL would make a left join.
        AND coalesce(s.call_sid, '') <> ''
        -- The planner tests this first, right behind the look-up. A frozen row from which the record does not differ ends
        -- here, as most rows do when a time is read again; the rules above decide the same.
        AND NOT coalesce(
            m.sync_state = 'frozen' AND s.via = 'rest' AND s.status = m.status AND m.gone_at IS NULL
            -- Decoded records are written as PostgreSQL writes them; to parse all of them costs three times as much.
            AND (
                s.other_fields IS NULL
                OR s.other_fields = m.other_fields::text OR s.other_fields::jsonb = m.other_fields
            )
            AND coalesce(s.parent_call_sid = m.parent_call_sid, s.parent_call_sid IS NULL)
            AND coalesce(s.from_number = m.from_number, s.from_number IS NULL)
            AND coalesce(s.to_number = m.to_number, s.to_number IS NULL)
            AND coalesce(s.duration = m.duration, s.duration IS NULL)
            AND coalesce(s.price = m.price, s.price IS NULL)
            AND coalesce(s.price_unit = m.price_unit, s.price_unit IS NULL)
            AND coalesce(s.start_time = m.start_time, s.start_time IS NULL)
            AND coalesce(s.end_time = m.end_time, s.end_time IS NULL)
            AND coalesce(s.answered_by = m.answered_by, s.answered_by IS NULL),
            false
        )
    -- All our merges write in this order, so that two of them wait for one another instead of deadlocking.
    ORDER BY s.call_sid
),
inserted AS (
    INSERT INTO messages (
        twilio_sid, account_sid, parent_call_sid, direction, status, from_number, to_number, duration, price,
        price_unit, start_time, end_time, answered_by, date_created, created_at, updated_at, last_event_time,
        is_final, finalized_at, sync_state, observed_at, observed_via, other_fields
    )
    SELECT
        call_sid, account_sid, parent_call_sid, coalesce(direction, ''), status,
        coalesce(from_number, ''), coalesce(to_number, ''), duration, price,
        price_unit, start_time AT TIME ZONE 'UTC', end_time AT TIME ZONE 'UTC', answered_by, date_created,
        %(now)s AT TIME ZONE 'UTC', %(now)s, last_event_time,
        finalized_at IS NOT NULL, finalized_at, CASE WHEN freeze_reason IS NULL THEN 'active' ELSE 'frozen' END,
        observed_at, observed_via, other_fields
    FROM decided
    WHERE action = 'insert' AND %(apply)s
    RETURNING 1
),
updated AS (
    UPDATE messages AS m
    SET
        account_sid = d.account_sid, parent_call_sid = d.parent_call_sid, status = d.status,
        from_number = coalesce(d.from_number, ''), to_number = coalesce(d.to_number, ''),
        duration = d.duration, price = d.price, price_unit = d.price_unit,
        start_time = d.start_time AT TIME ZONE 'UTC', end_time = d.end_time AT TIME ZONE 'UTC',
        answered_by = d.answered_by, date_created = d.date_created, gone_at = d.gone_at, updated_at = %(now)s,
        last_event_time = d.last_event_time, is_final = d.finalized_at IS NOT NULL, finalized_at = d.finalized_at,
        sync_state = CASE WHEN d.freeze_reason IS NULL THEN m.sync_state ELSE 'frozen' END,
        observed_at = d.observed_at, observed_via = d.observed_via, other_fields = d.other_fields
    FROM decided AS d
    WHERE m.ctid = d.row_ctid AND m.xmin = d.row_xmin AND d.action = 'update' AND %(apply)s
    RETURNING 1
),
returned AS (
    -- A frozen call that Twilio lists again is no longer gone, even if its record disagrees with ours (rule 11). The
    -- guard of frozen rows lets nothing else of this update through.
    UPDATE messages AS m SET gone_at = NULL, updated_at = %(now)s
    FROM decided AS d
    WHERE m.ctid = d.row_ctid AND m.xmin = d.row_xmin AND d.action = 'drift' AND d.gone_at IS NULL
        AND m.gone_at IS NOT NULL AND %(apply)s
),
-- Not materialized: `recorded` and the count compute it anew. The keys are computed only where fewer events were written.
meant AS NOT MATERIALIZED (
    SELECT
        d.call_sid, d.event_type, CASE WHEN d.action = 'late' THEN d.said_status ELSE d.status END AS event_status,
        CASE WHEN d.event_type IN ('call.enriched', 'call.frozen_drift') THEN d.said_at ELSE d.status_at END AS event_time,
        CASE WHEN d.is_old AND (d.gap IS NOT NULL OR d.action = 'insert')
            THEN d.payload || '{"imported": true}'::jsonb ELSE d.payload
        END AS payload,
        d.call_sid || ':' || CASE d.event_type
            WHEN 'call.created' THEN 'created'
            WHEN 'call.status_changed' THEN 'status:' || CASE WHEN d.action = 'late' THEN d.said_status ELSE d.status END
            -- One event for each disagreement with a frozen state; a row that was thawed and frozen again has another.
            WHEN 'call.frozen_drift' THEN 'drift:' || pg_catalog.md5(d.held_since::text || d.payload::text)
            ELSE pg_catalog.substr(d.event_type, 6) || ':' || extract(epoch FROM d.said_at)::text || ':' || pg_catalog.md5(d.payload::text)
        END AS dedupe_key
    FROM decided AS d
    WHERE d.event_type IS NOT NULL AND %(apply)s
        -- call.created already holds the first status of a call.
        AND NOT (d.action = 'late' AND EXISTS (
            SELECT FROM call_events AS e
            WHERE e.call_sid::text = d.call_sid AND e.dedupe_key = d.call_sid || ':created' AND e.event_status = d.said_status
            OFFSET 0
        ))
    UNION ALL
    SELECT
        d.call_sid, 'call.frozen', d.status, %(now)s,
        pg_catalog.jsonb_build_object('reason', d.freeze_reason), d.call_sid || ':frozen:' || extract(epoch FROM %(now)s)::text
    FROM decided AS d
    WHERE d.freeze_reason IS NOT NULL AND d.action = 'update' AND %(apply)s
),
recorded AS (
    INSERT INTO call_events (
        call_sid, event_type, event_status, event_time, created_at, source, run_id, payload, dedupe_key
    )
    SELECT call_sid, event_type, event_status, event_time, %(now)s, %(source)s, %(run_id)s, payload, dedupe_key
    FROM meant AS n
    WHERE NOT EXISTS (
        SELECT FROM call_events AS e WHERE e.call_sid::text = n.call_sid AND e.dedupe_key = n.dedupe_key OFFSET 0
    )
    RETURNING dedupe_key
)
SELECT
    CASE WHEN t.is_named THEN d.call_sid ELSE '' END AS call_sid, d.action, d.gap, d.is_imported, d.old_status, d.to_status,
    CASE WHEN t.is_named THEN d.late_seconds ELSE 0 END AS late_seconds, d.freezes, d.is_news, d.theirs, d.ours,
    pg_catalog.count(*) AS calls,
    CASE WHEN (SELECT pg_catalog.count(*) FROM recorded) < (SELECT pg_catalog.count(*) FROM meant) THEN (
        SELECT pg_catalog.array_agg(m.dedupe_key) FROM meant AS m
        WHERE m.dedupe_key NOT IN (SELECT r.dedupe_key FROM recorded AS r)
    ) END AS unwritten,
    (SELECT pg_catalog.count(*) FROM inserted) + (SELECT pg_catalog.count(*) FROM updated) AS written
FROM (
    SELECT
        d.call_sid, d.action, CASE WHEN NOT d.is_old THEN d.gap END AS gap,
        d.is_old AND (d.gap IS NOT NULL OR d.action = 'insert') AS is_imported, d.old_status,
        CASE WHEN d.action = 'late' THEN d.said_status ELSE d.status END AS to_status,
        extract(epoch FROM d.said_at - d.status_at)::double precision AS late_seconds,
        d.freeze_reason IS NOT NULL AS freezes,
        CASE WHEN d.action = 'drift' THEN NOT EXISTS (
            SELECT FROM call_events AS e
            WHERE e.call_sid::text = d.call_sid
                AND e.dedupe_key = d.call_sid || ':drift:' || pg_catalog.md5(d.held_since::text || d.payload::text)
            OFFSET 0
        ) ELSE true END AS is_news,
        CASE WHEN %(explain)s OR d.action = 'drift' THEN d.payload END AS theirs,
        d.ours
    FROM decided AS d
    OFFSET 0
) AS d
CROSS JOIN LATERAL (
    SELECT NOT %(brief)s OR d.action = 'drift' OR (
        call_status_is_final(d.to_status::text) AND NOT call_status_is_final(d.old_status::text) AND NOT d.is_imported
    ) AS is_named
    OFFSET 0
) AS t
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11

-- name: has_events
-- Whether there is an event for each of these dedupe_keys. A statement of its own sees what other writers committed
-- during the one before.
--
-- Cost: reads call_events_facts.
SELECT NOT EXISTS (
    SELECT FROM pg_catalog.unnest(%(dedupe_keys)s::text[]) AS k (dedupe_key)
    WHERE NOT EXISTS (
        SELECT FROM call_events AS e
        WHERE e.call_sid::text = pg_catalog.split_part(k.dedupe_key, ':', 1) AND e.dedupe_key = k.dedupe_key
    )
)
