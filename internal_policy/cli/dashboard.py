"""`internal-policy dashboard`: serve the dashboard on this machine."""

from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlencode

from internal_policy import bundle
from internal_policy.cli import inventory, progress
from internal_policy.cli.common import Text
from internal_policy.errors import InputError, require

HOST = "127.0.0.1"
"""Address that only this machine can reach."""


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """Open the dashboard in a browser on this machine.

    It shows the scans in the cache, training runs, and what comes with the package.

    For example:
    $ internal-policy dashboard
    $ internal-policy dashboard --scan 3fa9 --port 8600
    """

    group: ClassVar = "Dashboard"
    scan: Text = None
    """Scan to open first: its folder, or the first digits of its name in `internal-policy ls`."""
    port: int = 8501
    """Port on 127.0.0.1, where only this machine can reach it."""


def run(options: Dashboard) -> None:
    """Serve the dashboard until Ctrl-C."""
    require("app", "streamlit")
    if not 0 < options.port < 2**16:
        raise InputError(f"--port is {options.port}. Use a number from 1 to 65535.")
    from internal_policy.look.view import check, default
    from internal_policy.scans import store

    folder = None
    if options.scan is not None:
        if run := inventory.run_named(options.scan):
            raise InputError(
                f"{run} is a training run, not a scan. Leave out --scan, and choose the run on the Training page."
            )
        folder = store.find(options.scan).absolute()
    if folder:
        check(default(folder))
    progress.note(
        f"http://{HOST}:{options.port}/{'?' + urlencode({'scan': folder}) if folder else ''} (stop with Ctrl-C)"
    )
    from click import Abort
    from streamlit.web import cli

    try:  # in this process, so that the server ends with it, however it ends
        silent = ["--logger.hideWelcomeMessage", "true"]  # Streamlit's welcome has an address too
        here = ["--server.address", HOST, "--server.port", str(options.port)]  # stronger than the environment
        command = ["run", str(bundle.APP / "main.py"), *here, *silent]
        cli.main(command, standalone_mode=False)
    except Abort:  # how click reports Ctrl-C, which is how the server is stopped
        return
    except SystemExit as error:
        if error.code:
            raise InputError(
                f"The dashboard didn't start on port {options.port}. If the port is in use, try another --port."
            ) from error
