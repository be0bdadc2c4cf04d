-- 017: numbers, SIP domains and TwiML apps that do not tell us how their calls end.
--
-- In the field there is no such table; one made by an earlier run is left as it is. Rows go after their retention.
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
