-- 012: what the cold job proved of each account and UTC day.
--
-- In the field there is no such table; one made by an earlier run is left as it is.
--
-- lock: none that a writer could meet

CREATE TABLE IF NOT EXISTS account_days (
    account_sid text        NOT NULL,
    day         date        NOT NULL,                   -- the UTC day a call started in; if never dialled, was made in
    listed      integer     NOT NULL,                   -- calls that Twilio listed
    held        integer     NOT NULL,                   -- calls that we held afterwards
    digest      text        NOT NULL,                   -- SHA-256 of the listed SIDs, sorted, one after another
    billed      integer,                                -- calls by Twilio's usage records; null if not to be had
    differences jsonb       NOT NULL DEFAULT '{}',      -- what the sweep found, by kind
    is_complete boolean     NOT NULL,                   -- the same SIDs listed and held, and no usage beyond them
    verified_at timestamptz NOT NULL,                   -- when the listing was read
    PRIMARY KEY (account_sid, day)
);
