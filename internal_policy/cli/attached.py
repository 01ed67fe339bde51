"""Run the command line until its stdin closes, so that a command ends with the program that started it."""

import os
import sys
import threading

from internal_policy.cli.main import main


def _wait_for_the_end() -> None:
    """End this process when stdin closes, which also happens when the other program is killed."""
    while os.read(0, 1024):  # sys.stdin would stay locked while this thread reads it
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_wait_for_the_end, daemon=True).start()
    sys.argv[0] = "internal-policy"
    sys.exit(main())
