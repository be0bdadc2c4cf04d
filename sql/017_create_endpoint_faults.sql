-- 017: numbers, SIP domains and TwiML apps that send us no webhook at a call's end.
--
-- In the field there is no such table. If an earlier run made it, this file changes nothing. Rows are deleted after
-- their retention.
--
-- lock: none that a writer could meet

CREATE TABLE IF NOT EXISTS endpoint_faults (
    account_sid  text        NOT NULL,
    address      text        NOT NULL,                  -- a phone number, the name of a SIP domain, the SID of a TwiML app
    endpoint_sid text        NOT NULL,
    kind         text        NOT NULL,                  -- phone_number, sip_domain, application
    fault        text        NOT NULL,                  -- no_callback, other_host
    url          text        NOT NULL,                  -- its status callback, without query; empty if it has none
    first_seen   timestamptz NOT NULL,
    last_seen    timestamptz NOT NULL,
    PRIMARY KEY (account_sid, address)
);
