"""The command line: arguments become one call of the packages below, and its result becomes an exit code."""
