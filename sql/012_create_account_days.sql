-- 012: the cold job's proof of each account and UTC day.
--
-- In the field there is no such table. If an earlier run made it, this file changes nothing.
--
-- lock: none that a writer could meet

CREATE TABLE IF NOT EXISTS account_days (
    account_sid text        NOT NULL,
    day         date        NOT NULL,                   -- the UTC day of the calls' start, or creation if never dialled
    listed      integer     NOT NULL,                   -- calls that Twilio listed
    held        integer     NOT NULL,                   -- calls that we held afterwards
    digest      text        NOT NULL,                   -- SHA-256 of the listed SIDs, sorted, one after another
    billed      integer,                                -- calls by Twilio's usage records; null if not available
    differences jsonb       NOT NULL DEFAULT '{}',      -- number of differences by kind
    is_complete boolean     NOT NULL,                   -- the same SIDs listed and held, and no further usage
    verified_at timestamptz NOT NULL,                   -- when the listing was read
    PRIMARY KEY (account_sid, day)
);
