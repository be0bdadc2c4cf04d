-- Undoes 012: drops the proofs. The next cold runs make those of the last 35 days again.
--
-- lock: ACCESS EXCLUSIVE on account_days
-- drops: account_days

DROP TABLE IF EXISTS account_days;
