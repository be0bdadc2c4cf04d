-- 016: Twilio's alerts on webhooks that failed, counted by hour, error code and URL.
--
-- In the field there is no such table. If an earlier run made it, this file changes nothing. Rows are deleted after
-- their retention.
--
-- lock: none that a writer could meet

CREATE TABLE IF NOT EXISTS webhook_alerts (
    hour        timestamptz NOT NULL,                   -- the UTC hour in which the webhooks failed
    account_sid text        NOT NULL,
    error_code  text        NOT NULL,                   -- as in https://www.twilio.com/docs/api/errors
    url         text        NOT NULL,                   -- what Twilio called, without login, query and fragment
    alerts      integer     NOT NULL,                   -- how many of them
    call_sids   text[]      NOT NULL,                   -- the calls that they name
    PRIMARY KEY (hour, account_sid, error_code, url)
);
