"""One run of a job: it reads slices from Twilio, merges pages into the database and keeps the job's cursor."""
