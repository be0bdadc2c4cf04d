"""Output for a person at a terminal: consoles, tables and progress bars."""
