"""Files and folders that the commands write have the permissions that the umask leaves."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from internal_policy.__main__ import main

FEW = "--limit 2 --max-new-tokens 4"
LOOKS = (
    "report demo-qwen3 -o out/report.html",
    "plot demo-qwen3 flow -o out/flow.html",
    "export demo-qwen3 -o out/tokens.csv",
    "export demo-qwen3 -o out/tokens.parquet",
)
WORK = (
    f"scan {FEW} --samples 2",
    f"generate {FEW} -o out/responses.jsonl",
    f"evaluate {FEW} --samples 2 -o out/evaluation",
    f"fit-lens {FEW} --steps 2 --skip-halves -o out/lens.safetensors",
    "ablate {scan} --limit 2",
    "train --steps 1 --prompts 2 --samples 2 --max-new-tokens 4 --layer 2 --internal-steps 1 --samples-every 1 -o run",
)
CODE = """
import os, sys
from internal_policy.__main__ import main
from internal_policy.scans import store
os.umask(int(sys.argv[1], 8))
for command in sys.argv[2:]:
    words = [str(store.scans()[0]) if word == "{scan}" else word for word in command.split()]
    code = main(words)
    assert code == 0, (command, code)
"""
TORCH = "torchinductor_"
"""How the folder that PyTorch itself makes among temporary files begins."""


@pytest.fixture
def umask(request) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def wrong(folder: Path, umask: int) -> list[str]:
    """Files and folders below a folder whose permissions aren't those that the umask leaves."""
    found = [(path, stat.S_IMODE(path.lstat().st_mode)) for path in folder.rglob("*")]
    return [f"{mode:o} {path}" for path, mode in found if mode != ((0o777 if path.is_dir() else 0o666) & ~umask)]


@pytest.mark.parametrize("umask", [0o077], indirect=True, ids=["077"])
def test_an_exported_file_has_the_permissions_of_the_umask(umask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    assert main(["export", "demo-qwen3", "-o", "out/tokens.csv"]) == 0
    assert list((tmp_path / "out").iterdir())
    assert wrong(tmp_path, umask) == []


@pytest.mark.slow
@pytest.mark.parametrize("umask", ["077", "027", "002"])
def test_whatever_a_command_writes_has_the_permissions_of_the_umask(umask, tmp_path):
    for name in ("work/out", "tmp", "cache"):
        (tmp_path / name).mkdir(parents=True)
    places = {"TMPDIR": str(tmp_path / "tmp"), "INTERNAL_POLICY_CACHE": str(tmp_path / "cache")}
    for folder in (tmp_path, *tmp_path.rglob("*")):
        folder.chmod(0o777 & ~int(umask, 8))
    command = [sys.executable, "-c", CODE, umask, *WORK, *LOOKS]
    done = subprocess.run(
        command, env={**os.environ, **places}, cwd=tmp_path / "work", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "cache").rglob("*.parquet"))) > 4
    assert (tmp_path / "work" / "run" / "metrics.parquet").exists()
    assert wrong(tmp_path, int(umask, 8)) == []
    assert [path.name for path in (tmp_path / "tmp").iterdir() if not path.name.startswith(TORCH)] == []
