"""The commands of `python -m runtime`, one per file, which commands.py lists; arguments.py has what they share."""
