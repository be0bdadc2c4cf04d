-- Undoes 023: drops the columns. Twilio's usage records and the rows of messages have the values.
--
-- lock: ACCESS EXCLUSIVE on account_days for a moment

ALTER TABLE IF EXISTS account_days
    DROP COLUMN IF EXISTS billed_price,
    DROP COLUMN IF EXISTS held_price,
    DROP COLUMN IF EXISTS price_unit,
    DROP COLUMN IF EXISTS unsettled;
