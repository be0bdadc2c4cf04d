-- 003: the cursor of each job.
--
-- In the field the Viewer's own script may have made the table; then this file changes nothing.
--
-- lock: none that a writer could meet

CREATE TABLE IF NOT EXISTS sync_state (
    job_name        text PRIMARY KEY,                   -- hot, warm, cold, ...; hot:AC... for a subaccount
    cursor          jsonb NOT NULL DEFAULT '{}',        -- what was read completely; commits with the rows it speaks of
    last_success_at timestamptz,
    last_error_at   timestamptz,
    last_error      text,
    updated_at      timestamptz DEFAULT now()
);
