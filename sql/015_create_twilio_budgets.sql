-- 015: the budgets that our processes share: how many requests of an account may run at once, and who may send them.
--
-- In the field there is no such table. If an earlier run made it, this file changes nothing. UNLOGGED: a budget is
-- useful for seconds, and one that is lost with the server is made again.
--
-- lock: none that a writer could meet

CREATE UNLOGGED TABLE IF NOT EXISTS twilio_budgets (
    account_sid text  PRIMARY KEY,
    budget      jsonb NOT NULL DEFAULT '{}'
);
