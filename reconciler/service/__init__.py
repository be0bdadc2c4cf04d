"""The daemon: schedule, worker threads, leadership, HTTP and systemd."""
