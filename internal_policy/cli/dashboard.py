"""`internal-policy dashboard`: serve the dashboard on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar
from urllib.parse import urlencode

import tyro

from internal_policy import bundle, files
from internal_policy.cli import inventory, progress
from internal_policy.cli.common import Text
from internal_policy.errors import InputError, require
from internal_policy.scans import address

HOST = "127.0.0.1"
"""Address that only this machine can reach."""
Folders = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """Open the dashboard in a browser on this machine.

    It shows the scans in the cache, training runs, and what comes with the package. It opens no other folders than
    these and the ones that you name here.

    For example:
    $ internal-policy dashboard
    $ internal-policy dashboard --scan 3fa9 --port 8600
    $ internal-policy dashboard ./my-scans ./my-runs ./my-model
    """

    group: ClassVar = "Dashboard"
    folders: Folders = ()
    """Folders outside the cache that it may open: of scans, training runs or models, or with such folders in them. A
    scan on the Hub is named by its address, hf://datasets/org/name."""
    scan: Text = None
    """Scan to open first: its folder, the first digits of its name in `internal-policy ls`, or its address on the
    Hub."""
    port: int = 8501
    """Port on 127.0.0.1, where only this machine can reach it."""


def run(options: Dashboard) -> None:
    """Serve the dashboard until Ctrl-C."""
    require("app", "streamlit")
    if not 0 < options.port < 2**16:
        raise InputError(f"--port is {options.port}. Use a number from 1 to 65535.")
    for name in options.folders:
        if not address.is_address(name) and not files.is_folder(Path(name).expanduser()):
            raise InputError(f"There is no folder {name:.200}.")
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
    opened = [_opened(name) for name in (*options.folders, folder) if name]
    progress.note(
        f"http://{HOST}:{options.port}/{'?' + urlencode({'scan': folder}) if folder else ''} (stop with Ctrl-C)"
    )
    serve(options.port, opened)


def _opened(name: str | Path) -> str:
    """The path of a folder, that of the local copy if it is on the Hub."""
    from internal_policy.scans import store

    return str(store.find(str(name)) if address.is_address(str(name)) else Path(name).expanduser())


def serve(port: int, folders: Sequence[str]) -> None:
    """Serve the dashboard, which may open `folders`, in this process, so that it ends with it, however it ends."""
    from click import Abort
    from streamlit.web import cli

    here = ["--server.address", HOST, "--server.port", str(port)]  # stronger than the environment
    silent = ["--logger.hideWelcomeMessage", "true"]  # Streamlit's welcome has an address too
    try:
        cli.main(["run", str(bundle.APP / "main.py"), *here, *silent, "--", *folders], standalone_mode=False)
    except Abort:  # how click reports Ctrl-C, which is how the server is stopped
        return
    except SystemExit as error:
        if error.code:
            raise InputError(
                f"The dashboard didn't start on port {port}. If the port is in use, try another --port."
            ) from error
