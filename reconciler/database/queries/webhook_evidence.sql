-- The evidence for lost webhooks: Twilio's alerts by hour, and endpoints that send no webhook at a call's end.

-- name: forget_alerts
-- Delete the hours that were read again, and those past their retention.
--
-- Cost: reads webhook_alerts_pkey.
DELETE FROM webhook_alerts
WHERE (hour >= %(since)s AND account_sid = %(account_sid)s) OR hour < %(kept_since)s

-- name: keep_alerts
INSERT INTO webhook_alerts (hour, account_sid, error_code, url, alerts, call_sids)
VALUES (%(hour)s, %(account_sid)s, %(error_code)s, %(url)s, %(alerts)s, %(call_sids)s::text[])

-- name: keep_fault
-- Store an endpoint at fault; one that is there gets a new time.
INSERT INTO endpoint_faults (account_sid, address, endpoint_sid, kind, fault, url, first_seen, last_seen)
VALUES (%(account_sid)s, %(address)s, %(endpoint_sid)s, %(kind)s, %(fault)s, %(url)s, %(now)s, %(now)s)
ON CONFLICT (account_sid, address) DO UPDATE SET
    endpoint_sid = EXCLUDED.endpoint_sid, kind = EXCLUDED.kind, fault = EXCLUDED.fault, url = EXCLUDED.url,
    last_seen = EXCLUDED.last_seen

-- name: forget_faults
-- Delete endpoints that were last seen at fault before the retention.
--
-- Cost: reads endpoint_faults_pkey.
DELETE FROM endpoint_faults WHERE account_sid = %(account_sid)s AND last_seen < %(kept_since)s

-- name: lost_calls
-- The lost calls, counted by hour and by the evidence for their causes.
--
-- A call counts once, in the hour of its last gap. Four things are no gap: a missing price (webhooks never carry it), a
-- difference younger than the grace, an event of others (without dedupe_key), and an imported call. An endpoint at
-- fault explains no call that ended long after the fault was last seen.
--
-- Cost: reads the events since `since` by call_events_created_at, and messages_twilio_sid_key once for each call found.
-- Then webhook_inbox_unsettled, which holds no completed row, and webhook_alerts_pkey from the oldest of these calls
-- on.
WITH found AS MATERIALIZED (
    SELECT
        call_sid::text AS call_sid, pg_catalog.max(event_time) AS lost_at,
        pg_catalog.bool_or(event_type = 'call.created') AS was_missing
    FROM call_events
    WHERE source = ANY(%(sources)s::text[]) AND created_at >= %(since)s AND created_at <= %(now)s
        AND dedupe_key IS NOT NULL
        AND event_type IN ('call.created', 'call.status_changed', 'call.corrected')
        AND created_at - event_time >= %(webhook_grace)s AND NOT payload ? 'imported'::text
    GROUP BY 1
),
lost AS MATERIALIZED (
    SELECT
        f.call_sid, f.lost_at, m.account_sid,
        pg_catalog.starts_with(m.direction::text, 'trunking') AS is_of_trunk,
        CASE WHEN pg_catalog.starts_with(m.direction::text, 'trunking') THEN m.other_fields ->> 'trunk_sid'::text END AS trunk_sid,
        f.was_missing AND coalesce(m.parent_call_sid::text, '') <> '' AS is_silent_leg,
        CASE
            WHEN pg_catalog.starts_with(m.direction::text, 'outbound') THEN NULL
            WHEN pg_catalog.starts_with(m.to_number::text, 'app:') THEN pg_catalog.substr(m.to_number::text, 5)
            WHEN pg_catalog.starts_with(m.to_number::text, 'sip') THEN pg_catalog.lower(pg_catalog.split_part(
                pg_catalog.split_part(pg_catalog.split_part(m.to_number::text, '@', 2), ';', 1), ':', 1
            ))
            ELSE m.to_number::text
        END AS address
    FROM found AS f
    CROSS JOIN LATERAL (
        SELECT * FROM messages WHERE twilio_sid::text = f.call_sid OFFSET 0
    ) AS m
    WHERE %(account_sid)s::text IS NULL OR m.account_sid = %(account_sid)s::text
),
failed AS MATERIALIZED (
    SELECT DISTINCT ON (call_sid::text) call_sid::text AS call_sid, coalesce(error, '') AS reason
    FROM twilio_webhook_inbox
    WHERE processing_status IN ('failed', 'dead_letter') AND call_sid IS NOT NULL
        AND source <> 'twilio_rest' AND event_type NOT IN ('dial-action', 'recording-complete')
    ORDER BY call_sid::text, id DESC
),
named AS MATERIALIZED (
    SELECT DISTINCT ON (a.account_sid, c.call_sid) a.account_sid, c.call_sid, a.hour, a.error_code, a.url
    FROM webhook_alerts AS a
    CROSS JOIN LATERAL pg_catalog.unnest(a.call_sids) AS c (call_sid)
    WHERE a.hour >= (SELECT pg_catalog.date_trunc('hour', pg_catalog.min(lost_at), 'UTC') FROM lost)
    ORDER BY a.account_sid, c.call_sid, a.hour DESC, a.alerts DESC, a.error_code, a.url
)
SELECT
    l.account_sid, pg_catalog.date_trunc('hour', l.lost_at, 'UTC'), l.is_of_trunk, l.trunk_sid, f.reason, n.hour, n.error_code, n.url,
    e.endpoint_sid, e.kind, e.address, e.fault, e.url, l.is_silent_leg,
    pg_catalog.count(*), pg_catalog.min(l.lost_at), pg_catalog.max(l.lost_at),
    (pg_catalog.array_agg(l.call_sid ORDER BY l.lost_at DESC, l.call_sid))[1:%(examples)s::integer]
FROM lost AS l
LEFT JOIN failed AS f ON f.call_sid = l.call_sid
LEFT JOIN named AS n ON n.call_sid = l.call_sid AND n.account_sid = l.account_sid
LEFT JOIN endpoint_faults AS e
    ON e.account_sid = l.account_sid AND e.address = l.address AND l.lost_at <= e.last_seen + %(fault_lasts)s::interval
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14

-- name: count_imported
-- The number of calls that were found, but that reached their status before any job ran for their account. Recordings
-- that were imported are no calls.
--
-- Cost: reads the events since `since` by call_events_created_at, and messages_twilio_sid_key once for each call found.
SELECT pg_catalog.count(*)
FROM (
    SELECT DISTINCT call_sid::text AS call_sid
    FROM call_events
    WHERE source = ANY(%(sources)s::text[]) AND created_at >= %(since)s AND created_at <= %(now)s
        AND dedupe_key IS NOT NULL AND payload ? 'imported'::text AND event_type LIKE 'call.%%'
) AS i
WHERE %(account_sid)s::text IS NULL OR EXISTS (
    SELECT FROM messages WHERE twilio_sid::text = i.call_sid AND account_sid = %(account_sid)s::text
)

-- name: alerts_by_hour
-- Cost: reads webhook_alerts_pkey between the two times.
SELECT account_sid, hour, error_code, url, alerts
FROM webhook_alerts
WHERE hour >= %(since)s AND hour <= %(until)s
    AND (%(account_sid)s::text IS NULL OR account_sid = %(account_sid)s::text)
ORDER BY account_sid, hour, alerts DESC, error_code, url
