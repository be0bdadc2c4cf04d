"""PostgreSQL: connections, migrations and the merge. This package knows nothing of Twilio."""
