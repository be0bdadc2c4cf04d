"""Hot, warm, cold, freeze, inbox, housekeeping, backfill and thaw: the calls that each job reads, and its promise."""
