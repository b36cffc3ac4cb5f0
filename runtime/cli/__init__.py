"""The command line, `python -m runtime`: one file a command."""
