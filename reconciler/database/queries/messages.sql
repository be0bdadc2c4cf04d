-- The calls we hold: the reads of the jobs, and the writes besides the merge.

-- name: open_calls
-- The open calls of an account that Twilio can be asked about; the Viewer also makes SIDs of its own.
--
-- A row that the Viewer's backend wrote and that no REST record has confirmed names no account. The jobs of the main
-- account handle these rows. If there are other accounts, such a call may belong to one of them, whose listing will
-- show it. The main account then asks about it when its row has changed, and each time its age has doubled since the
-- last run.
--
-- Cost: reads messages_open, and there the rows of the account. An open row has no finalized_at (messages_final_agrees).
-- The condition therefore names finalized_at. `NOT is_final` would also fit an index of the Viewer's (sql/004), which
-- holds the open rows of all accounts. By statistics from an hour without open calls that index looks as cheap.
--
-- A SID that is joined with '' is no column to the planner. Otherwise it would take the pattern's 'CA' for a range of
-- messages_twilio_sid_key in a database with the collation C, and that range is all calls.
SELECT
    twilio_sid,
    -- No call began later than now, and Python has no infinity and no year 20000.
    least(
        greatest(
            coalesce(start_time AT TIME ZONE 'UTC', date_created, created_at AT TIME ZONE 'UTC', %(now)s),
            '2000-01-01 00:00:00+00'::timestamptz
        ),
        %(now)s
    ) AS began_at,
    false AS account_unknown
FROM messages
WHERE finalized_at IS NULL AND gone_at IS NULL AND account_sid = %(account_sid)s
    AND (twilio_sid::text || '') ~ '^CA[0-9a-fA-F]{32}$'
UNION ALL
SELECT
    twilio_sid,
    least(
        greatest(
            coalesce(start_time AT TIME ZONE 'UTC', date_created, created_at AT TIME ZONE 'UTC', %(now)s),
            '2000-01-01 00:00:00+00'::timestamptz
        ),
        %(now)s
    ),
    NOT %(is_only_account)s
FROM messages
WHERE finalized_at IS NULL AND gone_at IS NULL AND account_sid IS NULL AND %(owns_unassigned)s
    AND (twilio_sid::text || '') ~ '^CA[0-9a-fA-F]{32}$'
    AND (
        %(is_only_account)s
        OR %(looked_at)s::timestamptz IS NULL
        OR updated_at > %(looked_at)s
        OR pg_catalog.floor(pg_catalog.log(2, greatest(60, extract(epoch FROM %(now)s - updated_at)) / 60::numeric))
         > pg_catalog.floor(pg_catalog.log(2, greatest(60, extract(epoch FROM %(looked_at)s - updated_at)) / 60::numeric))
    )

-- name: unfrozen_calls
-- The calls of an account that ended, are not frozen, and are due now. A call is due in two cases:
-- - REST has not confirmed it;
-- - since the last run its age has doubled or its deadline has passed (a call that ended since counts as doubled).
--
-- A price comes within a minute or, rarely, much later. To ask at each interval until the deadline would cost a hundred
-- requests. A call that REST has not confirmed and that names no account may be another account's, see open_calls. It
-- is due no more often than the others.
--
-- Cost: reads messages_unfrozen_account, and there the rows of the account from `confirmed_since` on, which is before
-- `since` only in a first run. Only a row with finalized_at is final (messages_final_agrees), so the conditions leave out
-- is_final: they fit no index that holds the rows of all accounts.
SELECT
    twilio_sid,
    -- No call began later than now, and Python has no infinity and no year 20000.
    least(
        greatest(
            coalesce(start_time AT TIME ZONE 'UTC', date_created, created_at AT TIME ZONE 'UTC', %(now)s),
            '2000-01-01 00:00:00+00'::timestamptz
        ),
        %(now)s
    ) AS began_at,
    account_sid IS NULL AND NOT %(is_only_account)s AS account_unknown
FROM (
    SELECT * FROM messages
    WHERE sync_state <> 'frozen' AND finalized_at >= %(confirmed_since)s AND account_sid = %(account_sid)s
    UNION ALL
    SELECT * FROM messages
    WHERE sync_state <> 'frozen' AND finalized_at >= %(confirmed_since)s AND account_sid IS NULL AND %(owns_unassigned)s
) AS unfrozen
WHERE gone_at IS NULL AND finalized_at < 'infinity'
    -- Calls of any age that REST has confirmed: freeze would otherwise freeze them without their price.
    AND (finalized_at >= %(since)s OR observed_via = 'rest')
    AND (twilio_sid::text || '') ~ '^CA[0-9a-fA-F]{32}$'
    AND (
        %(looked_at)s::timestamptz IS NULL
        OR (
            observed_via IS DISTINCT FROM 'rest'
            AND (account_sid IS NOT NULL OR %(is_only_account)s OR updated_at > %(looked_at)s)
        )
        OR pg_catalog.floor(pg_catalog.log(2, greatest(1, extract(epoch FROM %(now)s - finalized_at)) / extract(epoch FROM %(interval)s::interval)))
         > pg_catalog.floor(pg_catalog.log(2, greatest(1, extract(epoch FROM %(looked_at)s - finalized_at)) / extract(epoch FROM %(interval)s::interval)))
        OR (finalized_at + %(freeze_after)s <= %(now)s AND finalized_at + %(freeze_after)s > %(looked_at)s)
    )

-- name: count_calls
-- The number of calls of an account that we hold in a window; its listing will have about as many.
--
-- Cost: reads messages_account_time between the two times.
SELECT pg_catalog.count(*)
FROM messages
WHERE account_sid = %(account_sid)s
    AND coalesce(start_time AT TIME ZONE 'UTC', date_created) >= %(since)s
    AND coalesce(start_time AT TIME ZONE 'UTC', date_created) < %(until)s

-- name: has_trunk_calls
-- Whether a call of a SIP trunk is among the newest calls of an account since `since`. The column `direction` belongs
-- to the Viewer, but a trunk sends no webhook, so this program wrote the row.
--
-- Cost: reads messages_account_time backwards, at most `limit` rows.
SELECT EXISTS (
    SELECT FROM (
        SELECT direction
        FROM messages
        WHERE account_sid = %(account_sid)s AND coalesce(start_time AT TIME ZONE 'UTC', date_created) >= %(since)s
        ORDER BY coalesce(start_time AT TIME ZONE 'UTC', date_created) DESC
        LIMIT %(limit)s
    ) AS newest
    WHERE direction::text LIKE 'trunking-%%'
)

-- name: mark_gone
-- Mark calls that Twilio does not know. Gone is no status (rule 11): nothing else of the row changes, and no job asks
-- about it again. Returns the calls, each with the key of its event if that was not written.
--
-- Cost: reads messages_twilio_sid_key.
WITH gone AS (
    UPDATE messages SET gone_at = %(now)s, updated_at = %(now)s
    WHERE twilio_sid::text = ANY(%(call_sids)s::text[]) AND gone_at IS NULL
    RETURNING twilio_sid, status, twilio_sid::text || ':gone:' || extract(epoch FROM %(now)s)::text AS dedupe_key
),
recorded AS (
    INSERT INTO call_events (
        call_sid, event_type, event_status, event_time, created_at, source, run_id, payload, dedupe_key
    )
    SELECT
        twilio_sid, 'call.gone', status, %(now)s, %(now)s, %(source)s, %(run_id)s, '{}', dedupe_key
    FROM gone
    ON CONFLICT DO NOTHING
    RETURNING dedupe_key
)
SELECT twilio_sid, CASE WHEN dedupe_key NOT IN (SELECT r.dedupe_key FROM recorded AS r) THEN dedupe_key END
FROM gone
ORDER BY twilio_sid

-- name: freeze_due
-- Freeze calls that have waited for their price long enough. There are two kinds:
-- - calls that REST has confirmed or that are gone, and that ended at `ended_before` or earlier;
-- - calls that ended before `kept_since`, which Twilio no longer keeps. Only then does a call freeze that webhooks
--   alone have reported: it has neither price nor true times.
--
-- If warm covers an account, its calls wait until warm has run past their deadline (`accounts` and `looked_at`). After
-- downtime Twilio may have a price that no job has asked for. `is_anywhere`: warm covers all other accounts too.
-- Returns the calls, each with the key of its event if that was not written.
--
-- Cost: the first part reads messages_freezable, the second messages_unfrozen; both lose the rows that freeze.
WITH due AS (
    (
        SELECT twilio_sid, CASE WHEN gone_at IS NULL THEN 'deadline' ELSE 'gone' END AS reason
        FROM messages
        WHERE is_final AND sync_state <> 'frozen' AND (observed_via = 'rest' OR gone_at IS NOT NULL)
            AND finalized_at <= %(ended_before)s
            AND (
                gone_at IS NOT NULL
                OR finalized_at < %(kept_since)s
                OR coalesce(
                    (
                        SELECT warm.looked_at
                        FROM unnest(%(accounts)s::text[], %(looked_at)s::timestamptz[]) AS warm (account_sid, looked_at)
                        WHERE warm.account_sid = messages.account_sid
                    ),
                    CASE WHEN %(is_anywhere)s THEN '-infinity'::timestamptz ELSE 'infinity' END
                ) >= finalized_at + %(freeze_after)s
            )
        ORDER BY finalized_at
        LIMIT %(batch)s
    )
    UNION
    (
        SELECT twilio_sid, 'retention'
        FROM messages
        WHERE is_final AND sync_state <> 'frozen' AND observed_via IS DISTINCT FROM 'rest' AND gone_at IS NULL
            AND finalized_at < %(kept_since)s
        ORDER BY finalized_at
        LIMIT %(batch)s
    )
),
chosen AS MATERIALIZED (
    -- All our writes use this order, so that two of them wait for one another instead of deadlocking.
    SELECT m.twilio_sid, due.reason
    FROM due JOIN messages AS m ON m.twilio_sid::text = due.twilio_sid::text
    WHERE m.is_final AND m.sync_state <> 'frozen'
    ORDER BY m.twilio_sid
    LIMIT %(batch)s
    FOR UPDATE OF m
),
frozen AS (
    UPDATE messages AS m SET sync_state = 'frozen', updated_at = %(now)s
    FROM chosen
    WHERE m.twilio_sid::text = chosen.twilio_sid::text
    RETURNING
        m.twilio_sid, m.status, chosen.reason, m.twilio_sid::text || ':frozen:' || extract(epoch FROM %(now)s)::text AS dedupe_key
),
recorded AS (
    INSERT INTO call_events (
        call_sid, event_type, event_status, event_time, created_at, source, run_id, payload, dedupe_key
    )
    SELECT
        twilio_sid, 'call.frozen', status, %(now)s, %(now)s, %(source)s, %(run_id)s,
        pg_catalog.jsonb_build_object('reason', reason), dedupe_key
    FROM frozen
    ON CONFLICT DO NOTHING
    RETURNING dedupe_key
)
SELECT twilio_sid, CASE WHEN dedupe_key NOT IN (SELECT r.dedupe_key FROM recorded AS r) THEN dedupe_key END FROM frozen

-- name: stuck_calls
-- The open calls that became older than `stuck_after` since the last log, so that each is logged once. A SID that the
-- Viewer made is no call of Twilio's: nobody can ask about it, so it counts neither as open nor as stuck.
--
-- Cost: reads messages_open.
SELECT
    twilio_sid, account_sid, status,
    greatest(
        coalesce(date_created, start_time AT TIME ZONE 'UTC', created_at AT TIME ZONE 'UTC'),
        '2000-01-01 00:00:00+00'::timestamptz
    ) AS began_at
FROM messages
WHERE NOT is_final AND gone_at IS NULL
    AND (twilio_sid::text || '') ~ '^CA[0-9a-fA-F]{32}$'
    AND coalesce(date_created, start_time AT TIME ZONE 'UTC', created_at AT TIME ZONE 'UTC') <= %(stuck_since)s
    AND coalesce(date_created, start_time AT TIME ZONE 'UTC', created_at AT TIME ZONE 'UTC')
        > coalesce(%(named_since)s::timestamptz, '-infinity')
ORDER BY began_at
LIMIT %(batch)s

-- name: count_open
-- The numbers of open, stuck and unfrozen calls of Twilio's, and the seconds for which the oldest call has been open.
--
-- The Viewer may write an infinite time, which has no age: an age ends at `kept_since`, and begins at `now`.
--
-- Cost: reads messages_open and messages_unfrozen.
SELECT
    open.calls, open.stuck,
    (
        SELECT pg_catalog.count(*) FROM messages
        WHERE is_final AND sync_state <> 'frozen' AND finalized_at >= %(kept_since)s
            AND (twilio_sid::text || '') ~ '^CA[0-9a-fA-F]{32}$'
    ),
    coalesce(
        extract(epoch FROM %(now)s - least(greatest(open.oldest, %(kept_since)s), %(now)s)), 0
    )::double precision
FROM (
    SELECT
        pg_catalog.count(*) AS calls,
        pg_catalog.count(*) FILTER (WHERE began_at <= %(stuck_since)s) AS stuck,
        pg_catalog.min(began_at) AS oldest
    FROM (
        SELECT coalesce(date_created, start_time AT TIME ZONE 'UTC', created_at AT TIME ZONE 'UTC') AS began_at
        FROM messages
        WHERE NOT is_final AND gone_at IS NULL AND (twilio_sid::text || '') ~ '^CA[0-9a-fA-F]{32}$'
    ) AS began
) AS open
