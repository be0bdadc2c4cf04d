-- Recordings: their events, the URL in the call's row, and the question whether an account has any.
--
-- `recordings` is a JSON array of objects. It costs the driver a tenth of what an array for each column costs.

-- name: tell
-- Write one event for each recording that is ready or deleted, unless call_events has it. Returns one row for each
-- recording that had no event; with `apply` false nothing is written. The first column is null, or the key of an event
-- that the statement did not write. Then another session was faster, or a trigger withheld the event.
--
-- An event names the conference, else the call. The Viewer may have written the event, without a dedupe_key and with a
-- payload of its own: a recording's SID in it is enough. A recording of a conference may have been told by its call.
-- The fixed order keeps writers from deadlocking.
--
-- Cost: each recording reads call_events_facts for its call and its conference.
WITH said AS MATERIALIZED (
    SELECT DISTINCT ON (r.recording_sid, r.state)
        r.recording_sid, r.state, r.call_sid, r.conference_sid, coalesce(r.conference_sid, r.call_sid) AS subject,
        r.happened_at, r.payload
    FROM pg_catalog.jsonb_to_recordset(%(recordings)s::jsonb) AS r (
        recording_sid text, state text, call_sid text, conference_sid text, happened_at timestamptz, payload jsonb
    )
    ORDER BY r.recording_sid, r.state, r.happened_at
),
news AS MATERIALIZED (
    SELECT
        s.recording_sid, s.state, s.subject, s.happened_at, s.payload,
        coalesce(s.happened_at < %(imported_before)s::timestamptz, false) AS is_imported,
        s.subject || CASE s.state WHEN 'deleted' THEN ':recording_deleted:' ELSE ':recording:' END || s.recording_sid AS dedupe_key
    FROM said AS s
    CROSS JOIN LATERAL (
        SELECT EXISTS (
            SELECT FROM call_events AS e
            WHERE e.call_sid::text = ANY(ARRAY[s.call_sid, s.conference_sid])
                AND e.event_type = 'recording.' || s.state
                AND pg_catalog.strpos(e.payload::text, s.recording_sid) > 0
        ) AS is_told
        OFFSET 0
    ) AS before
    WHERE NOT before.is_told AND s.subject IS NOT NULL
),
told AS (
    INSERT INTO call_events (call_sid, event_type, event_time, created_at, source, run_id, payload, dedupe_key)
    SELECT
        n.subject, 'recording.' || n.state, n.happened_at, %(now)s, %(source)s, %(run_id)s,
        CASE WHEN n.is_imported THEN n.payload || '{"imported": true}'::jsonb ELSE n.payload END, n.dedupe_key
    FROM news AS n
    WHERE %(apply)s
    ORDER BY n.dedupe_key
    ON CONFLICT DO NOTHING
    RETURNING dedupe_key
)
SELECT
    CASE WHEN %(apply)s AND n.dedupe_key NOT IN (SELECT t.dedupe_key FROM told AS t) THEN n.dedupe_key END,
    n.subject, n.recording_sid, n.state, n.is_imported, extract(epoch FROM %(now)s - n.happened_at)::double precision
FROM news AS n
ORDER BY n.dedupe_key

-- name: fill_urls
-- Fill recording_url with the URL of the call's newest recording. An existing value is the Viewer's and stays. Returns
-- the calls whose rows changed.
--
-- Cost: each recording looks its call up in messages_twilio_sid_key. Rows with a URL are not locked.
WITH said AS MATERIALIZED (
    SELECT DISTINCT ON (r.call_sid) r.call_sid, r.media_url
    FROM pg_catalog.jsonb_to_recordset(%(recordings)s::jsonb) AS r (call_sid text, media_url text, happened_at timestamptz)
    ORDER BY r.call_sid, r.happened_at DESC
),
held AS MATERIALIZED (
    SELECT m.twilio_sid, said.media_url
    FROM said JOIN messages AS m ON m.twilio_sid::text = said.call_sid
    WHERE nullif(m.recording_url, '') IS NULL
    -- All our writes use this order, so that two of them wait for one another instead of deadlocking.
    ORDER BY m.twilio_sid
    FOR UPDATE OF m
)
UPDATE messages AS m SET recording_url = held.media_url, updated_at = %(now)s
FROM held
WHERE m.twilio_sid::text = held.twilio_sid::text
RETURNING m.twilio_sid

-- name: has_recordings
-- Whether the account has recordings: one of its newest calls has a URL, or cold listed some lately.
--
-- Cost: reads messages_account_time backwards, at most `limit` rows, and account_days_pkey.
SELECT EXISTS (
    SELECT FROM (
        SELECT recording_url
        FROM messages
        WHERE account_sid = %(account_sid)s AND coalesce(start_time AT TIME ZONE 'UTC', date_created) >= %(since)s
        ORDER BY coalesce(start_time AT TIME ZONE 'UTC', date_created) DESC
        LIMIT %(limit)s
    ) AS newest
    WHERE nullif(recording_url, '') IS NOT NULL
) OR EXISTS (
    SELECT FROM account_days
    WHERE account_sid = %(account_sid)s AND day >= (%(since)s AT TIME ZONE 'UTC')::date AND recordings_listed > 0
)

-- name: listed_of_days
-- How many recordings Twilio last listed of the days that were proven.
--
-- Cost: reads account_days_pkey for each day.
SELECT day, recordings_listed FROM account_days
WHERE account_sid = %(account_sid)s AND day = ANY(%(days)s::date[]) AND recordings_listed IS NOT NULL

-- name: keep_proofs
-- Add what was proven of recordings to the proofs of days. A day whose calls were not proven has no proof to add to.
-- `recordings_unread` says that the day's calls are complete, see account_days.keep_proof. Returns
-- the rows in the order of account_days.DayProof.
--
-- Cost: reads account_days_pkey for each day.
UPDATE account_days AS d
SET
    recordings_listed = p.listed, recordings_held = p.held,
    is_complete = (d.is_complete OR d.differences ? 'recordings_unread'::text) AND p.listed = p.held AND p.shrunk = 0,
    differences = (d.differences - ARRAY['recordings_not_told', 'recordings_shrunk', 'recordings_unread']) || pg_catalog.jsonb_strip_nulls(
        pg_catalog.jsonb_build_object(
            'recordings_not_told', nullif(p.listed - p.held, 0), 'recordings_shrunk', nullif(p.shrunk, 0)
        )
    )
FROM unnest(%(days)s::date[], %(counts_listed)s::integer[], %(counts_held)s::integer[], %(counts_shrunk)s::integer[])
    AS p (day, listed, held, shrunk)
WHERE d.account_sid = %(account_sid)s AND d.day = p.day
RETURNING
    d.account_sid, d.day, d.listed, d.held, d.digest, d.billed, d.differences, d.is_complete, d.verified_at,
    d.billed_price, d.held_price, d.price_unit, d.unsettled
