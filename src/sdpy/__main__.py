"""``python -m sdpy``, and the ``sdpy`` command."""

from __future__ import annotations

import faulthandler
import gc
import sys


def main() -> None:
    """Run the command line and leave with its exit code.

    After a signal that asks the process to end, that is 128 and the signal's number.
    """
    from sdpy.cli.terminal import end_on_signals, prepare_streams, received, tell

    try:
        prepare_streams()
        # Should the process die of what a file does to its mapping, something is said of it.
        faulthandler.enable(all_threads=False)
        end_on_signals()
        from sdpy.runtime.threads import wait_passively

        wait_passively()  # before anything imports torch
        from sdpy.cli.app import run

        code = run()
    except KeyboardInterrupt:  # while all this is imported
        tell("sdpy: interrupted")
        code = 130
    # Python looks for garbage once more at its end, among all objects of PyTorch's: half a second.
    gc.freeze()
    sys.exit(128 + received[0] if received else code)


if __name__ == "__main__":
    main()
