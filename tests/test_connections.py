"""No command, page or notebook connects to another machine, or asks for its address, if the model is a local folder."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import huggingface_hub.constants as hub
import pytest
from browsing import ROOT, stopped, wait_for
from conftest import slow
from IPython.core.inputtransformer2 import TransformerManager
from refusing import sitecustomize as guard  # pyright: ignore[reportMissingImports]

from internal_policy import bundle
from internal_policy.__main__ import main
from internal_policy.cli.main import PRIVATE

FEW = ["--limit", "2", "--max-new-tokens", "4"]
STEP = ["--layer", "1", "--steps", "1", "--internal-steps", "1", "--prompts", "2", "--samples", "2"]
TRAIN = ["train", *STEP, "--max-new-tokens", "4", "--model", "model"]
COMMANDS = {
    "looking": [
        ["ls"],
        ["show", "demo-qwen3"],
        ["check", "demo-qwen3"],
        ["plot", "demo-qwen3", "flow", "-o", "flow.html"],
        ["report", "demo-qwen3", "-o", "report.html"],
        ["export", "demo-qwen3", "--output", "table.csv"],
    ],
    "measuring": [
        ["scan", "--model", "model", *FEW, "--output", "scan"],
        ["ablate", "scan"],
        ["generate", "--model", "model", *FEW, "--output", "rollouts.parquet"],
        ["evaluate", "--model", "model", *FEW, "--samples", "2"],
        ["lens", "1 + 1 =", "--model", "model"],
        ["fit-lens", "--model", "model", *FEW, "--output", "lens.safetensors"],
    ],
    "training": [
        [*TRAIN, "--scan-every", "1", "--output", "run"],
        [*TRAIN, "--scan-every", "0", "--lora", "--merge", "--output", "lora"],
        [
            *("align", "--model", "model", "--limit", "16", "--samples", "4", "--max-new-tokens", "40"),
            *("--layers", "0", "--readout", "raw", "--blocks", "4", "--output", "alignment"),
        ],
    ],
    "pictures": [["plot", "demo-qwen3", "flow", "-o", "flow.png"]],
}
RUN = """
import sys
from internal_policy.__main__ import main
for words in {}:
    print(words[0], main(words), file=sys.stderr)
"""
ONLY_ASKED = "2001:4860:4860::8888"
"""Chromium asks the kernel for a route to this address, with a datagram socket that it sends nothing through."""
NETWORK = re.compile(r'sin6?_port=htons\((?!0\)).*?"([0-9a-f.:]+)"')


def foreign(folder: Path) -> list[str]:
    """The connections to other machines that the guard and strace saw."""
    seen = (folder / "connections").read_text().splitlines() if (folder / "connections").exists() else []
    for trace in folder.glob("trace*"):
        for line in trace.read_text(errors="replace").splitlines():
            if (found := NETWORK.search(line)) and not found[1].startswith(guard.HERE) and found[1] != ONLY_ASKED:
                seen.append(line)
    return seen


def watched(words: list[str], folder: Path) -> list[str]:
    """A command line under strace where there is one, which also sees what isn't Python."""
    if shutil.which("strace") is None:
        return words
    quiet = ["-f", "--seccomp-bpf", "-qq", "-e", "signal=none", "-e", "trace=connect,sendto,sendmsg,sendmmsg"]
    return ["strace", *quiet, "-o", str(folder / "trace"), *words]


def environment(folder: Path, *paths: Path) -> dict[str, str]:
    """That of a user who is online and has set nothing, with the guard."""
    online = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_", "CI"))}
    path = os.pathsep.join(map(str, (ROOT / "tests" / "refusing", ROOT, *paths)))
    named = {"INTERNAL_POLICY_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "hub"), "PYTHONPATH": path}
    return online | named | {"CONNECTIONS": str(folder / "connections"), "PLOTLY_RENDERER": "json"}


def run(code: str, folder: Path, *paths: Path) -> str:
    """The output of a Python program under the guard; it must not fail."""
    shutil.copytree(bundle.DATA / "models" / "demo-qwen3", folder / "model")
    done = subprocess.run(
        watched([sys.executable, "-c", code], folder),
        env=environment(folder, *paths), cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_guard_sees_connections_and_lookups(tmp_path):
    code = """
import socket, urllib.request
for ask in (lambda: urllib.request.urlopen("http://example.com"), lambda: socket.create_connection(("10.1.1.1", 1), 1),
            lambda: socket.socket().connect(("127.0.0.1", 9))):
    try: ask()
    except OSError: pass
"""
    subprocess.run([sys.executable, "-c", code], env=environment(tmp_path), check=True)
    assert foreign(tmp_path) == ["socket.getaddrinfo example.com", "socket.getaddrinfo 10.1.1.1"]


def test_a_command_turns_off_what_libraries_report_about_their_use(tmp_path):
    code = """
from internal_policy.__main__ import main
main(["--version"])
import os, huggingface_hub.constants as hub
print(hub.HF_HUB_DISABLE_TELEMETRY, os.environ["VLLM_NO_USAGE_STATS"], os.environ["RAY_USAGE_STATS_ENABLED"])
"""
    unset = {name: value for name, value in environment(tmp_path).items() if name not in PRIVATE}
    done = subprocess.run([sys.executable, "-c", code], env=unset, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True 1 0"


@pytest.fixture
def online(monkeypatch) -> list[str]:
    """The hosts that this process looks up or connects to, which fails, while libraries think that they are online."""
    hosts: list[str] = []

    def refused(event: str):
        def ask(*given, **named):
            if (host := guard.host(event, given)) is None:
                return real[event](*given, **named)
            hosts.append(host)
            raise OSError("refused")

        return ask

    real = {"socket.getaddrinfo": socket.getaddrinfo, "socket.connect": socket.socket.connect}
    monkeypatch.setattr(socket, "getaddrinfo", refused("socket.getaddrinfo"))
    monkeypatch.setattr(socket.socket, "connect", refused("socket.connect"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("CI", raising=False)
    return hosts


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("command", ["scan", *slow("train")])
def test_a_command_with_a_local_model_looks_up_no_host(command, online, here, folder, problems):
    few = ["--model", str(folder), "--problems", str(problems), "--max-new-tokens", "2", "--output", "new"]
    assert main([command, *few, *(STEP if command == "train" else ["--limit", "1"])]) == 0
    assert online == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMMANDS)
def test_commands_connect_to_no_other_machine(kind, tmp_path):
    said = run(RUN.format(COMMANDS[kind]), tmp_path)
    codes = re.findall(r"^(\S+) (\d+)$", said, re.MULTILINE)
    assert [name for name, _ in codes] == [words[0] for words in COMMANDS[kind]]
    assert {code for _, code in codes} == {"0"}, said
    assert foreign(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_connects_to_no_other_machine(path, tmp_path):
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    code = "\n".join(map(TransformerManager().transform_cell, sources))  # `%pip` as Python
    run(code, tmp_path, ROOT / "notebooks")
    assert foreign(tmp_path) == []


@pytest.mark.slow
def test_a_dashboard_connects_to_no_other_machine(tmp_path):
    from streamlit.proto.BackMsg_pb2 import BackMsg
    from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
    from websockets.sync.client import connect
    from websockets.typing import Subprotocol

    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "internal_policy", "dashboard", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            watched(words, tmp_path), env=environment(tmp_path), cwd=tmp_path, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    with stopped(server):
        wait_for(server, port, tmp_path / "log")
        asked = BackMsg()
        asked.rerun_script.query_string = "scan=demo-qwen3"
        with connect(
            f"ws://127.0.0.1:{port}/_stcore/stream", subprotocols=[Subprotocol("streamlit")], max_size=None
        ) as socket_:
            socket_.send(asked.SerializeToString())
            while ForwardMsg.FromString(socket_.recv(timeout=60, decode=False)).WhichOneof("type") != "script_finished":
                pass
    assert foreign(tmp_path) == []
