"""What the dashboard's server refuses: other hosts, other origins, other methods, and frames of other sites."""

import http.client
import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from browsing import ROOT, asked, stopped, tab, wait_for

pytest.importorskip("streamlit")
from starlette.datastructures import Headers

LOCAL = "127.0.0.1:8501"
FOREIGN_HOSTS = (
    "evil.example",
    "evil.example:8501",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "127.0.0.1.nip.io",
    "127.0.0.1@evil.example",
    "localhost:1@evil.example",
    "127.0.0.1, evil.example",
    "0.0.0.0:8501",
    "[::1]:8501",
    "localhost.",
    "",
)
FOREIGN_ORIGINS = (
    "https://evil.example",
    "http://127.0.0.1.evil.example:8501",
    "http://localhost:3000",
    "http://127.0.0.1",
    "http://0.0.0.0:8501",
    "file://",
    "null",
    "",
)
PATHS = (
    "/",
    "/tokens",
    "/plotly.min.js",
    "/media/x",
    "/component/x/y",
    "/static/index.html",
    "/app/static/x",
    "/_stcore/health",
    "/_stcore/script-health-check",
    "/_stcore/metrics",
    "/_stcore/host-config",
    "/_stcore/upload_file/a/b",
    "/_stcore/bidi-components/a/b",
    "/_stcore/agent/openapi.json",
)
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}
UNSAFE = """
[server]
address = "0.0.0.0"
allowedHosts = ["*"]
corsAllowedOrigins = ["https://evil.example"]
enableAgentApi = true
enableCORS = false
enableStaticServing = true
enableXsrfProtection = false
"""
"""Settings of Streamlit that someone else's folder could have."""
OUTSIDE = """
import socket, sys
def watch(event, arguments):
    if event == "socket.getaddrinfo" or event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[0] if event == "socket.getaddrinfo" else arguments[1][0]
        if host not in ("127.0.0.1", "localhost", "::1"):
            with open({file!r}, "a") as file:
                print(event, host, file=file)
sys.addaudithook(watch)
"""
"""Writes down every name that is looked up and every address that is connected to, but for this machine's."""


@pytest.fixture
def guard(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "app")
    return importlib.import_module("guard")


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_another_host_is_refused(guard, host):
    assert "only answers as localhost" in guard.refusal("GET", Headers({"host": host}))


@pytest.mark.parametrize("host", [LOCAL, "localhost:8501", "LOCALHOST", "127.0.0.1"])
def test_this_machine_is_answered(guard, host):
    assert guard.refusal("GET", Headers({"host": host})) is None
    assert guard.refusal("GET", Headers({"host": host, "origin": f"http://{host}".lower()})) is None


def test_two_hosts_are_refused(guard):
    raw = [(b"host", LOCAL.encode()), (b"host", b"evil.example")]
    assert guard.refusal("GET", Headers(raw=raw))
    assert guard.refusal("GET", Headers(raw=[*reversed(raw)]))
    assert guard.refusal("GET", Headers({}))


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_another_origin_is_refused(guard, origin):
    assert "its own pages" in guard.refusal("GET", Headers({"host": LOCAL, "origin": origin}))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_nothing_can_be_uploaded(guard, method):
    assert method in guard.refusal(method, Headers({"host": LOCAL}))


@pytest.mark.parametrize("address", [None, "", "0.0.0.0", "::", "192.168.1.5", "my-machine"])
def test_an_address_that_other_machines_reach_is_warned_about(guard, address):
    assert "no password" in guard.warning(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1"])
def test_an_address_of_this_machine_is_not_warned_about(guard, address):
    assert guard.warning(address) is None


@contextmanager
def started(command: list[str], folder: Path, **environment: str) -> Iterator[tuple[int, Path]]:
    """Start a dashboard in `folder`, and return its port and the file of what it looked up outside."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(OUTSIDE.format(file=str(folder / "outside")))
    (folder / "outside").touch()
    own = {"INTERNAL_POLICY_CACHE": str(folder / "cache"), "PYTHONPATH": f"{folder / 'hook'}{os.pathsep}{ROOT}"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, str(port)],
            cwd=folder,
            env={**os.environ, **own, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    with stopped(process):
        wait_for(process, port, folder / "server.log")
        yield port, folder / "outside"


def only_here(port: int) -> bool:
    """Whether a server listens on 127.0.0.1 but not on every address: 127.0.0.2 is this machine's too."""
    with socket.socket() as asking, socket.socket() as other:
        return asking.connect_ex(("127.0.0.1", port)) == 0 and other.connect_ex(("127.0.0.2", port)) != 0


COMMANDS = {
    "command": ["internal_policy", "dashboard", "--port"],
    "streamlit": ["streamlit", "run", str(ROOT / "app" / "main.py"), "--server.port"],
}


@pytest.mark.slow
@pytest.mark.parametrize("started_by", COMMANDS)
@pytest.mark.parametrize("settings", ["", UNSAFE], ids=["own settings", "unsafe settings"])
def test_another_site_gets_nothing_from_a_real_server_whatever_folder_it_starts_in(tmp_path, started_by, settings):
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "config.toml").write_text(settings)
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "x").write_text("a file")
    with started(COMMANDS[started_by], tmp_path) as (port, outside):
        own = f"http://127.0.0.1:{port}"
        assert asked(port, "/_stcore/health") == (200, b"ok")
        assert asked(port, "/_stcore/stream", **UPGRADE, Origin=own)[0] == 101
        assert b"a file" not in asked(port, "/app/static/x")[1]
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            connection.request("POST", "/_stcore/agent/interact", "{}", {"Content-Type": "application/json"})
            assert connection.getresponse().status == 403
        for path in PATHS:
            assert asked(port, path, Host="evil.example")[0] == 403
            assert asked(port, path, Origin="https://evil.example")[0] == 403
        for host in filter(None, FOREIGN_HOSTS):
            assert asked(port, "/_stcore/stream", **UPGRADE, Host=host)[0] == 403
        for origin in FOREIGN_ORIGINS:
            assert asked(port, "/_stcore/stream", **UPGRADE, Origin=origin)[0] == 403
        assert outside.read_text() == ""  # Streamlit itself would ask the network for this machine's address
        assert only_here(port)


@pytest.mark.slow
def test_the_command_stays_on_this_machine_whatever_the_environment_says(tmp_path):
    with started(COMMANDS["command"], tmp_path, STREAMLIT_SERVER_ADDRESS="0.0.0.0") as (port, _):
        assert only_here(port)


@pytest.mark.slow
def test_an_address_chosen_with_streamlit_is_warned_about_without_asking_the_network(tmp_path):
    with started(COMMANDS["streamlit"], tmp_path, STREAMLIT_SERVER_ADDRESS="0.0.0.0") as (port, outside):
        assert not only_here(port)
        assert asked(port, "/_stcore/health", Host="evil.example")[0] == 403
        assert "It has no password" in (tmp_path / "server.log").read_text()
        assert outside.read_text() == ""


@pytest.mark.slow
def test_another_site_cannot_show_the_dashboard_in_a_frame(server, browser, tmp_path):
    foreign = tmp_path / "page.html"
    foreign.write_text(f'<iframe src="{server}/" onload="window.loaded = 1"></iframe>')
    with tab(browser) as page:
        refused: list[str] = []
        page.on("console", lambda message: refused.append(message.text))
        page.goto(foreign.as_uri())
        page.wait_for_function("window.loaded === 1")
        assert any("frame-ancestors" in text for text in refused), refused
