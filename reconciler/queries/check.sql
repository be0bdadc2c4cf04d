-- What `reconcile check` asks the database about itself.

-- name: lacking_privileges
-- What the role may not do that a run does.
SELECT privilege || ' on ' || name
FROM (
    VALUES
        ('messages', 'SELECT'), ('messages', 'INSERT'), ('messages', 'UPDATE'),
        ('call_events', 'SELECT'), ('call_events', 'INSERT'),
        ('twilio_webhook_inbox', 'SELECT'), ('twilio_webhook_inbox', 'INSERT'), ('twilio_webhook_inbox', 'UPDATE'),
        ('sync_state', 'SELECT'), ('sync_state', 'INSERT'), ('sync_state', 'UPDATE'),
        ('account_days', 'SELECT'), ('account_days', 'INSERT'), ('account_days', 'UPDATE')
) AS needed (name, privilege)
WHERE NOT has_table_privilege(name, privilege)
UNION ALL
-- Pages are staged in a temporary table.
SELECT 'TEMPORARY on database ' || current_database()
WHERE NOT has_database_privilege(current_database(), 'TEMPORARY')
