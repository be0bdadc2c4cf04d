"""Read-only views: status, report, one call, dead letters, `check` and the status page."""
