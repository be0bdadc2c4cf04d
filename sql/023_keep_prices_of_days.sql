-- 023: what the calls of an account and day cost: by Twilio's usage records, and by our rows.
--
-- In the field account_days has one row for each account and day. The columns are nullable and without default, so
-- nothing is rewritten; cold fills them when it proves a day again.
--
-- lock: ACCESS EXCLUSIVE on account_days for a moment

ALTER TABLE account_days
    ADD COLUMN IF NOT EXISTS billed_price numeric,      -- by Twilio's usage records; null if not available
    ADD COLUMN IF NOT EXISTS held_price   numeric,      -- the sum of our rows in the same currency, without trunk calls
    ADD COLUMN IF NOT EXISTS price_unit   text,         -- the currency, in capitals
    ADD COLUMN IF NOT EXISTS unsettled    integer;      -- calls whose price may still come, or never will
