-- 015: what our processes share about Twilio: how many requests of an account may run at once, and who may send them.
--
-- In the field there is no such table; one made by an earlier run is left as it is. UNLOGGED: a budget is of use for
-- seconds, and one that is lost with the server is made anew.
--
-- lock: none that a writer could meet

CREATE UNLOGGED TABLE IF NOT EXISTS twilio_budgets (
    account_sid text  PRIMARY KEY,
    budget      jsonb NOT NULL DEFAULT '{}'
);
