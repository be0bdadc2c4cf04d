-- Our calls of an account's UTC day, to compare with Twilio's list, and the proof of that comparison.

-- name: held_of_day
-- The number of calls we hold, the digest of their SIDs in Python's order of sorting, and the number of completed
-- calls, gone ones included: Twilio also bills a call that was deleted later.
--
-- Cost: reads messages_account_time between the two times.
SELECT
    pg_catalog.count(*) FILTER (WHERE gone_at IS NULL),
    pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(coalesce(
        pg_catalog.string_agg(twilio_sid::text, '' ORDER BY twilio_sid::text COLLATE "C") FILTER (WHERE gone_at IS NULL), ''
    ), 'UTF8')), 'hex'),
    pg_catalog.count(*) FILTER (WHERE status::text = 'completed')
FROM messages
WHERE account_sid = %(account_sid)s
    AND coalesce(start_time AT TIME ZONE 'UTC', date_created) >= %(since)s
    AND coalesce(start_time AT TIME ZONE 'UTC', date_created) < %(until)s

-- name: sids_of_day
-- Cost: reads messages_account_time between the two times.
SELECT twilio_sid
FROM messages
WHERE account_sid = %(account_sid)s
    AND coalesce(start_time AT TIME ZONE 'UTC', date_created) >= %(since)s
    AND coalesce(start_time AT TIME ZONE 'UTC', date_created) < %(until)s
    AND gone_at IS NULL

-- name: held_at_all
-- Those of the given calls that we hold, of any day.
--
-- Cost: reads messages_twilio_sid_key.
SELECT twilio_sid FROM messages WHERE twilio_sid::text = ANY(%(call_sids)s::text[]) AND gone_at IS NULL

-- name: proof_of_day
-- In the order of account_days.DayProof.
--
-- Cost: reads account_days_pkey.
SELECT account_sid, day, listed, held, digest, billed, differences, is_complete, verified_at
FROM account_days
WHERE account_sid = %(account_sid)s AND day = %(day)s

-- name: keep_proof
INSERT INTO account_days (
    account_sid, day, listed, held, digest, billed, differences, is_complete, verified_at
)
VALUES (
    %(account_sid)s, %(day)s, %(listed)s, %(held)s, %(digest)s, %(billed)s, %(differences)s, %(is_complete)s,
    %(verified_at)s
)
ON CONFLICT (account_sid, day) DO UPDATE SET
    listed = EXCLUDED.listed, held = EXCLUDED.held, digest = EXCLUDED.digest, billed = EXCLUDED.billed,
    differences = EXCLUDED.differences, is_complete = EXCLUDED.is_complete, verified_at = EXCLUDED.verified_at

-- name: sum_up
-- The number of days since `first` that are not proven complete, and the end of the newest day that is.
--
-- Cost: reads account_days_pkey.
SELECT
    pg_catalog.count(*) FILTER (WHERE NOT is_complete),
    (pg_catalog.max(day) FILTER (WHERE is_complete) + 1)::timestamp AT TIME ZONE 'UTC'
FROM account_days
WHERE account_sid = %(account_sid)s AND day >= %(first)s
