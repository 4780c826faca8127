"""``python -m sdpy``, and the ``sdpy`` command."""

from __future__ import annotations

import faulthandler
import io
import sys


def main() -> None:
    """Run the command line and leave with its exit code."""
    from sdpy.runtime.threads import wait_passively

    # Should the process die of what a file does to its mapping, something is said of it at least.
    faulthandler.enable(all_threads=False)
    wait_passively()  # before anything imports torch
    from sdpy.cli.app import run

    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names need not be text; they are printed byte by byte, as they are.
        sys.stdout.reconfigure(errors="surrogateescape")
    sys.exit(run())


if __name__ == "__main__":
    main()
