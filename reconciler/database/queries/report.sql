-- The facts of `reconcile status`, `report` and `call`. Read only; the cost depends on the output, not on the tables.

-- name: jobs
-- Each job's cursor and outcome. The other parts of a cursor (the plan of a sweep) may be long, and are not fetched.
SELECT
    job_name, coalesce(cursor ->> 'read_until'::text, cursor ->> 'looked_at'::text, cursor ->> 'swept_at'::text),
    last_success_at, last_error_at, last_error
FROM sync_state
-- Five kinds of rows are no jobs, and are left out: the leader's note, the notes of each account's first look,
-- the lock of `reconcile inbox replay`, and the accounts that a backfill has finished.
WHERE job_name NOT IN ('daemon', 'inbox:replay') AND NOT pg_catalog.starts_with(job_name, 'account:')
    AND NOT (last_success_at IS NULL AND last_error_at IS NULL AND job_name = 'backfill')
    -- The slices of a backfill by a fleet, and its cursors of accounts, belong to the job backfill:fleet.
    AND NOT (pg_catalog.starts_with(job_name, 'backfill:'::text) AND pg_catalog.split_part(job_name, ':', 3) <> '')
ORDER BY job_name

-- name: leaders_note
SELECT cursor FROM sync_state WHERE job_name = %(job)s

-- name: daemons
-- The connected daemons, by the names of their connections. Another role's backend_start may be hidden from us.
SELECT pid, application_name, backend_start
FROM pg_stat_activity
WHERE datname = pg_catalog.current_database() AND pg_catalog.starts_with(application_name, %(prefix)s)
ORDER BY application_name, pid

-- name: lock_holders
-- The holders of these advisory locks: the halves of the key are in classid and objid
-- (https://www.postgresql.org/docs/current/view-pg-locks.html). Another role's backend_start may be hidden from us.
SELECT asked.name, l.pid, a.application_name, a.backend_start
FROM pg_catalog.unnest(%(names)s::text[]) AS asked (name)
JOIN pg_locks AS l
    ON l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
    AND ((l.classid::bigint << 32) | l.objid::bigint) = pg_catalog.hashtextextended(%(prefix)s || asked.name, 0)
JOIN pg_database AS d ON d.oid = l.database AND d.datname = pg_catalog.current_database()
LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid

-- name: table_sizes
-- Bytes with indexes, and the planner's estimate of rows: -1 (before PostgreSQL 14: 0) if it never looked.
SELECT c.relname, pg_catalog.pg_total_relation_size(c.oid), nullif(c.reltuples, (-1)::real)::bigint
FROM pg_catalog.unnest(%(tables)s::text[]) WITH ORDINALITY AS asked (name, place)
JOIN pg_class AS c ON c.oid = pg_catalog.to_regclass(asked.name)::oid::oid
ORDER BY asked.place

-- name: account_days
-- The cold job's proofs of each account since a day.
--
-- Cost: steps through account_days_pkey from account to account, and reads the days asked for.
WITH RECURSIVE accounts AS (
    (SELECT account_sid FROM account_days ORDER BY account_sid LIMIT 1)
    UNION ALL
    SELECT (SELECT d.account_sid FROM account_days AS d WHERE d.account_sid > a.account_sid ORDER BY d.account_sid LIMIT 1)
    FROM accounts AS a
    WHERE a.account_sid IS NOT NULL
)
SELECT d.account_sid, d.day, d.listed, d.held, d.billed, d.differences, d.is_complete, d.verified_at,
    d.billed_price, d.held_price, d.price_unit, d.unsettled, d.recordings_listed, d.recordings_held
FROM accounts AS a
CROSS JOIN LATERAL (
    SELECT * FROM account_days WHERE account_sid = a.account_sid AND day >= %(since)s
    OFFSET 0
) AS d
WHERE a.account_sid IS NOT NULL
ORDER BY d.account_sid, d.day

-- name: refused_recordings
-- The accounts whose recordings Twilio refuses, and when it last did.
SELECT cursor ->> 'account'::text, cursor ->> 'refused_at'::text
FROM sync_state
WHERE pg_catalog.split_part(job_name, ':', 1) = 'recordings' AND cursor ->> 'refused_at'::text IS NOT NULL
ORDER BY job_name

-- name: gaps_found
-- The gaps by UTC day or hour and by the job that found them. A last row, without a day, has the number of calls with a
-- gap, and the number of imported calls. Four things are no gap: a missing price (webhooks never carry it), a
-- difference younger than the grace, an event of others (without dedupe_key), and an imported call. A call is imported
-- if it reached its status before any job ran for its account, however shortly before.
--
-- Cost: reads the events since `since` by call_events_created_at.
WITH found AS (
    SELECT
        pg_catalog.date_trunc(%(unit)s, created_at AT TIME ZONE 'UTC') AS found_in, source, call_sid, event_time,
        CASE
            WHEN payload ? 'imported'::text THEN 'imported'
            WHEN event_type = 'call.created' THEN 'missing'
            WHEN event_type = 'call.status_changed' THEN 'stale'
            WHEN event_type = 'call.corrected' THEN 'conflict'
            ELSE 'incomplete'
        END AS kind
    FROM call_events
    WHERE source = ANY(%(sources)s::text[]) AND created_at >= %(since)s AND created_at <= %(now)s
        AND dedupe_key IS NOT NULL
        AND (
            (
                event_type IN ('call.created', 'call.status_changed', 'call.corrected')
                AND (payload ? 'imported'::text OR created_at - event_time >= %(webhook_grace)s)
            )
            OR (
                event_type = 'call.enriched' AND call_status_is_final(event_status::text)
                AND payload ?| ARRAY['end_time', 'duration', 'price']
            )
        )
)
SELECT
    found_in AT TIME ZONE 'UTC', source, kind, pg_catalog.count(*),
    pg_catalog.count(DISTINCT call_sid) FILTER (
        WHERE kind NOT IN ('incomplete', 'imported') AND event_time >= %(since)s
    ),
    pg_catalog.count(DISTINCT call_sid) FILTER (WHERE kind = 'imported')
FROM found
GROUP BY GROUPING SETS ((found_in, source, kind), ())
ORDER BY found_in NULLS LAST, source, kind

-- name: count_calls
-- The number of calls of all accounts that we hold since a moment, of each account since its first look.
--
-- Cost: steps through messages_account_time from account to account, and reads the window.
WITH RECURSIVE accounts AS (
    (SELECT account_sid FROM messages WHERE account_sid IS NOT NULL ORDER BY account_sid LIMIT 1)
    UNION ALL
    SELECT (SELECT m.account_sid FROM messages AS m WHERE m.account_sid > a.account_sid ORDER BY m.account_sid LIMIT 1)
    FROM accounts AS a
    WHERE a.account_sid IS NOT NULL
)
SELECT coalesce(pg_catalog.sum(held.calls), 0)::bigint
FROM accounts AS a
CROSS JOIN LATERAL (
    SELECT pg_catalog.count(*) AS calls
    FROM messages
    WHERE account_sid = a.account_sid
        AND coalesce(start_time AT TIME ZONE 'UTC', date_created) >= greatest(%(since)s, (%(first_looks)s::jsonb ->> a.account_sid)::timestamptz)
        AND coalesce(start_time AT TIME ZONE 'UTC', date_created) <= %(now)s
    OFFSET 0
) AS held
WHERE a.account_sid IS NOT NULL

-- name: find_call
-- One row as JSON, which has ISO times and accepts an infinite one.
--
-- Cost: reads messages_twilio_sid_key.
SELECT pg_catalog.json_build_object(
    'id', id, 'status', status, 'direction', direction, 'from_number', from_number, 'to_number', to_number,
    'start_time', start_time AT TIME ZONE 'UTC', 'end_time', end_time AT TIME ZONE 'UTC',
    'duration', duration, 'price', price, 'price_unit', price_unit, 'answered_by', answered_by,
    'parent_call_sid', parent_call_sid, 'account_sid', account_sid, 'date_created', date_created,
    'other_fields', other_fields,
    'is_final', is_final, 'finalized_at', finalized_at, 'sync_state', sync_state, 'gone_at', gone_at,
    'observed_via', observed_via, 'observed_at', observed_at, 'last_event_time', last_event_time,
    'created_at', created_at AT TIME ZONE 'UTC', 'updated_at', updated_at
)
FROM messages
WHERE twilio_sid::text = %(call_sid)s

-- name: events_of_call
-- The newest events of a call. A payload is read as text: another writer's may be nested too deep for a JSON reader.
--
-- Cost: reads call_events_facts.
SELECT
    pg_catalog.to_json(event_time) #>> '{}'::text[], event_type, event_status, source, run_id, pg_catalog.to_json(created_at) #>> '{}'::text[], payload::text
FROM call_events
WHERE call_sid::text = %(call_sid)s
ORDER BY event_time DESC, id DESC
LIMIT %(limit)s
