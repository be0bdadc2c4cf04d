-- Our calls of an account's UTC day, to compare with Twilio's list, and the proof of that comparison.

-- name: held_of_day
-- The number of calls that we hold, the digest of their SIDs in Python's order of sorting, and the number of completed
-- calls. Gone calls count: Twilio also bills a call that was deleted later.
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

-- name: price_of_day
-- In the order of account_days.HeldPrice. Twilio writes a charge as a negative price. A gone call counts: Twilio bills it
-- all the same. The calls of trunks have usage records of their own.
--
-- Cost: reads messages_account_time between the two times.
SELECT
    coalesce(pg_catalog.sum(0::numeric - price) FILTER (WHERE pg_catalog.upper(coalesce(price_unit::text, %(price_unit)s::text)) = %(price_unit)s::text), 0::numeric),
    pg_catalog.count(price) FILTER (WHERE pg_catalog.upper(coalesce(price_unit::text, %(price_unit)s::text)) = %(price_unit)s::text),
    pg_catalog.count(*) FILTER (
        WHERE sync_state <> 'frozen' OR (status::text = 'completed' AND price IS NULL AND gone_at IS NOT NULL)
    )
FROM messages
WHERE account_sid = %(account_sid)s
    AND coalesce(start_time AT TIME ZONE 'UTC', date_created) >= %(since)s
    AND coalesce(start_time AT TIME ZONE 'UTC', date_created) < %(until)s
    AND NOT pg_catalog.starts_with(direction::text, 'trunking')

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
SELECT
    account_sid, day, listed, held, digest, billed, differences, is_complete, verified_at, billed_price, held_price,
    price_unit, unsettled
FROM account_days
WHERE account_sid = %(account_sid)s AND day = %(day)s

-- name: keep_proof
-- The calls of a day are proven before its recordings are read. A day whose recordings differed stays incomplete until
-- these are proven as well. Then `recordings_unread` says that its calls are complete. Returns what the row says then.
INSERT INTO account_days AS d (
    account_sid, day, listed, held, digest, billed, differences, is_complete, verified_at, billed_price, held_price,
    price_unit, unsettled
)
VALUES (
    %(account_sid)s, %(day)s, %(listed)s, %(held)s, %(digest)s, %(billed)s, %(differences)s, %(is_complete)s,
    %(verified_at)s, %(billed_price)s, %(held_price)s, %(price_unit)s, %(unsettled)s
)
ON CONFLICT (account_sid, day) DO UPDATE SET
    listed = EXCLUDED.listed, held = EXCLUDED.held, digest = EXCLUDED.digest, billed = EXCLUDED.billed,
    differences = EXCLUDED.differences || pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
        'recordings_not_told', d.differences -> 'recordings_not_told'::text,
        'recordings_shrunk', d.differences -> 'recordings_shrunk'::text,
        'recordings_unread', CASE WHEN EXCLUDED.is_complete
            AND d.differences ?| ARRAY['recordings_not_told', 'recordings_shrunk'] THEN 1 END
    )),
    is_complete = EXCLUDED.is_complete AND NOT d.differences ?| ARRAY['recordings_not_told', 'recordings_shrunk'],
    verified_at = EXCLUDED.verified_at,
    billed_price = EXCLUDED.billed_price, held_price = EXCLUDED.held_price, price_unit = EXCLUDED.price_unit,
    unsettled = EXCLUDED.unsettled
RETURNING differences, is_complete

-- name: sum_up
-- Two numbers of days since `first`: those not proven complete, and those that Twilio billed otherwise. Then the end of
-- the newest proven day.
--
-- Cost: reads account_days_pkey.
SELECT
    pg_catalog.count(*) FILTER (WHERE NOT is_complete),
    pg_catalog.count(*) FILTER (WHERE differences ? 'price_drift'::text),
    (pg_catalog.max(day) FILTER (WHERE is_complete) + 1)::timestamp AT TIME ZONE 'UTC'
FROM account_days
WHERE account_sid = %(account_sid)s AND day >= %(first)s
