-- The budgets of requests to Twilio that processes share: one row for each account.

-- name: lock
-- With the server's time, our server process, and the processes of all sessions: a client without a session was killed.
SELECT
    budget, pg_catalog.clock_timestamp(), pg_catalog.pg_backend_pid(),
    ARRAY(SELECT pid FROM pg_catalog.pg_stat_activity WHERE datname = pg_catalog.current_database())
FROM twilio_budgets
WHERE account_sid = %(account_sid)s
FOR UPDATE

-- name: create
INSERT INTO twilio_budgets (account_sid) VALUES (%(account_sid)s) ON CONFLICT DO NOTHING

-- name: keep
UPDATE twilio_budgets SET budget = %(budget)s WHERE account_sid = %(account_sid)s
