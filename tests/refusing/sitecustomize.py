"""Refuse connections of this Python process to other machines, and write them to a file. Python imports this first."""

import os
import sys
from pathlib import Path
from typing import Any

HERE = ("127.", "::1", "localhost", "0.0.0.0", "::")
"""How hosts on this machine begin."""
LOOKUPS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
SENT = {"socket.connect", "socket.sendto", "socket.sendmsg"}


def host(event: str, given: tuple[Any, ...]) -> str | None:
    """The host of another machine that an audit event of Python would reach or look up; None for other events."""
    address = given[0] if event in LOOKUPS else given[1][0] if event in SENT and isinstance(given[1], tuple) else None
    name = address.decode() if isinstance(address, bytes) else address
    return None if not name or str(name).startswith(HERE) else str(name)


def refuse(event: str, given: tuple[Any, ...]) -> None:
    """Write the host of a connection to the file, and raise OSError."""
    if event.startswith("socket.") and (name := host(event, given)):
        with Path(os.environ["CONNECTIONS"]).open("a") as file:
            file.write(f"{event} {name}\n")
        raise OSError(f"a test refused a connection to {name}")


if "CONNECTIONS" in os.environ:
    sys.addaudithook(refuse)
