"""Start the command line: `python -m internal_policy`."""

import sys

from internal_policy.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
