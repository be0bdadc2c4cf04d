-- The budgets of requests to Twilio that processes share: one row for each account.

-- name: lock
SELECT budget, pg_catalog.clock_timestamp() FROM twilio_budgets WHERE account_sid = %(account_sid)s FOR UPDATE

-- name: create
INSERT INTO twilio_budgets (account_sid) VALUES (%(account_sid)s) ON CONFLICT DO NOTHING

-- name: keep
UPDATE twilio_budgets SET budget = %(budget)s WHERE account_sid = %(account_sid)s
