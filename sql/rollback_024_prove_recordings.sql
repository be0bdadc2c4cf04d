-- rollback of 024: the proofs of days no longer cover recordings.
--
-- lock: ACCESS EXCLUSIVE on account_days for a moment

ALTER TABLE account_days DROP COLUMN IF EXISTS recordings_listed, DROP COLUMN IF EXISTS recordings_held;
