"""The commands of `python -m runtime`, one a file: `add_arguments(parser)` and `run(args)`, which calls one public function and prints.

commands.py lists them, arguments.py is what they share.
"""
