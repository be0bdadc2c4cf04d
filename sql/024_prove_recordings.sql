-- 024: the proof of a day covers its recordings.
--
-- In the field account_days has a row for each account and day. The new columns are null there, which means that nobody
-- has compared the day's recordings. A column without a default rewrites no row.
--
-- lock: ACCESS EXCLUSIVE on account_days for a moment

ALTER TABLE account_days
    ADD COLUMN IF NOT EXISTS recordings_listed integer,  -- recordings that Twilio listed as ready or deleted
    ADD COLUMN IF NOT EXISTS recordings_held   integer;  -- those of them that call_events tells of
