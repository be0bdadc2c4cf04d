"""What the command line can do: a module for each group of commands, each command a function that returns an exit code.

A command reads its arguments, makes one call of the modules that do the work, and prints. `cli` imports it to run it.
"""
