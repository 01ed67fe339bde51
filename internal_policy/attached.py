"""Run the command line for as long as its stdin is open, so that a command ends with the program that began it."""

import os
import sys
import threading

from internal_policy.__main__ import main


def _wait_for_the_end() -> None:
    """End this process when stdin closes, which the system does where the other program was killed."""
    while os.read(0, 1024):  # not sys.stdin, which is locked while a thread reads it
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_wait_for_the_end, daemon=True).start()
    sys.argv[0] = "internal-policy"
    sys.exit(main())
