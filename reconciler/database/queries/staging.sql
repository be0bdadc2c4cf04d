-- The table by which the observations of a page get into the merge; each connection that merges has its own.

-- name: create_staging
-- One row for each observation, with the fields of model.Observation in order. Each commit empties the table. Every
-- statement names pg_temp: without it, a table of that name in our schema would get the rows, and run its triggers as us.
-- No column is NOT NULL: from PostgreSQL 18 on each such constraint is a row of a catalog, with six entries of indexes.
CREATE TEMPORARY TABLE IF NOT EXISTS pg_temp.staged_observations (
    call_sid        text,
    account_sid     text,
    parent_call_sid text,
    direction       text,
    status          text,
    from_number     text,
    to_number       text,
    duration        bigint,  -- binary COPY silently truncates a value too wide for an integer; messages refuses it
    price           numeric,
    price_unit      text,
    start_time      timestamptz,
    end_time        timestamptz,
    answered_by     text,
    date_created    timestamptz,
    status_at       timestamptz,
    observed_at     timestamptz,
    via             text,
    other_fields    text  -- a JSON object without nulls
) ON COMMIT DELETE ROWS

-- name: empty_staging
-- Empty the staging table between two merges of one transaction.
DELETE FROM pg_temp.staged_observations

-- name: copy_into_staging
COPY pg_temp.staged_observations FROM STDIN (FORMAT BINARY)
-- True for every row. A volatile condition makes COPY insert row by row. Without it COPY collects a thousand rows, and
-- holds a reference to the table's description for each. To release one it searches a list of them all: 0.6 ms a page.
WHERE pg_catalog.random() IS NOT NULL
