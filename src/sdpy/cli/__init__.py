"""The command line: the only part that knows Typer and the terminal.

Nothing here imports torch before a command runs, so that ``sdpy --help`` answers at once.
"""
