-- Undoes 015: each process then has a budget of its own again.
--
-- lock: ACCESS EXCLUSIVE on twilio_budgets

DROP TABLE IF EXISTS twilio_budgets;
