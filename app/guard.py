"""Refuse requests that aren't from this machine's own dashboard page, before Streamlit sees them."""

import logging
import re
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG = logging.getLogger(__name__)
HOST = re.compile(r"(localhost|127\.0\.0\.1)(:\d+)?", re.IGNORECASE)
"""Names under which the dashboard answers. Any other could be a foreign name that points to this machine."""
METHODS = ("GET", "HEAD")
"""The dashboard takes no files and no commands over HTTP, so every other method is refused."""
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"
"""The browser only asks this server for anything, and no other site can show the dashboard in a frame."""


class Guard:
    """Refuse requests of other sites and programs, whatever Streamlit's own settings are.

    Streamlit accepts the origin of any program on this machine, every origin if a configuration file in the working
    directory turns CORS protection off, and asks the network for this machine's address before it refuses another.
    """

    def __init__(self, app: ASGIApp) -> None:
        """`app` answers what isn't refused."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it with a sentence."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        why = refusal(scope.get("method", "GET"), Headers(scope=scope))

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        if why is None:
            await self.app(scope, receive, with_policy)
        elif scope["type"] == "http":
            await PlainTextResponse(why, status_code=403)(scope, receive, with_policy)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": why})  # the server answers 403


def refusal(method: str, headers: Headers) -> str | None:
    """Why a request is refused, or None."""
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not HOST.fullmatch(hosts[0]):
        return "The dashboard only answers as localhost or 127.0.0.1."
    if method not in METHODS:
        return f"The dashboard doesn't take {method[:20]} requests."
    own = {f"{scheme}://{hosts[0]}".lower() for scheme in ("http", "https")}
    if any(origin.lower() not in own for origin in headers.getlist("origin")):
        return "The dashboard only answers its own pages."
    return None


def warning(address: str | None) -> str | None:
    """What to say about the address that the server listens on; None if only this machine can reach it."""
    try:
        private = address == "localhost" or (bool(address) and ip_address(str(address)).is_loopback)
    except ValueError:
        private = False
    if private:
        return None
    return (
        f"The dashboard listens on {address or 'every address'}, where other machines can reach it. It has no "
        "password, so everyone who reaches it sees your scans. Leave out --server.address, and reach it with "
        "`ssh -L 8501:127.0.0.1:8501 MACHINE`."
    )


MIDDLEWARE = [Middleware(Guard)]
"""What every request passes first."""
