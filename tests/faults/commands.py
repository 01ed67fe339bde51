"""The commands that are broken, what they write, and what must be equal in the end."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open

from internal_policy import files

VARYING = ("created", "command")
"""Fields of scan.json that differ from run to run."""
TIMED = ("seconds", "per_second", "memory", "mfu")
"""Words in the names of columns of a training run that depend on the machine."""


@dataclass(frozen=True)
class Command:
    """A command with few rollouts. It runs in the folder `work` of a room, beside which `cache` is its cache."""

    words: tuple[str, ...]
    """The command."""
    output: str
    """What it writes, in `work`."""
    phases: Mapping[str, str]
    """Pattern of files in the room, the latest first -> how far a command was that has left them."""
    result: Callable[[Path], Any]
    """What it wrote, apart from times."""
    resumed: str = ""
    """Pattern of a file in the room from which on --resume continues the command."""
    refuses: bool = False
    """Whether the command is refused once it is finished."""

    def phase(self, room: Path) -> str:
        """How far the command has come."""
        return next((phase for pattern, phase in self.phases.items() if any(room.glob(pattern))), "nothing written")

    def again(self, room: Path) -> tuple[str, ...]:
        """The command that continues."""
        return (*self.words, "--resume") if self.resumed and any(room.glob(self.resumed)) else self.words


def hidden(room: Path) -> list[str]:
    """Files of ours that nothing needs any more."""
    return [str(path.relative_to(room)) for path in room.rglob(".*") if files.is_hidden(path.name)]


def scan(room: Path) -> Any:
    """The tables byte for byte, and the record."""
    folder = room / "work" / "out"
    record = json.loads((folder / "scan.json").read_text())
    kept = {name: value for name, value in record.items() if name not in (*VARYING, "checksum")}
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}, kept, hidden(room)


def generated(room: Path) -> Any:
    """The file byte for byte."""
    return (room / "work" / "out.parquet").read_bytes(), hidden(room)


def lens(room: Path) -> Any:
    """The tensors, and what the file tells about them."""
    with safe_open(room / "work" / "out.safetensors", "np") as file:
        return {name: file.get_tensor(name).tobytes() for name in sorted(file.keys())}, file.metadata(), hidden(room)


def run(room: Path) -> Any:
    """The trained weights, the tables without times, and the names of the checkpoints."""
    folder = room / "work" / "out"
    tables = {path.name: pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}
    kept = {
        name: table[[c for c in map(str, table) if not any(t in c for t in TIMED)]] for name, table in tables.items()
    }
    weights = {path.name: path.read_bytes() for path in sorted((folder / "model").glob("*.safetensors"))}
    rows = {name: table.to_json(orient="records", double_precision=15) for name, table in kept.items()}
    return weights, rows, sorted(path.name for path in folder.glob("checkpoint-*")), hidden(room)


def tables(room: Path) -> Any:
    """The tables byte for byte."""
    folder = room / "work" / "out"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}, hidden(room)


SAMPLED = ("--limit", "6", "--batch-size", "2", "--max-new-tokens", "6")
COMMANDS: Mapping[str, Command] = {
    "scan": Command(
        ("scan", *SAMPLED, "--output", "out"),
        "out",
        {
            "work/out/scan.json": "finished",
            "work/out/vocabulary.parquet": "closing",
            "work/out/part-00002.json": "last part",
            "work/out/rollouts-*.parquet": "parts",
            "work/out/asked.json": "begun",
        },
        scan,
    ),
    "generate": Command(
        ("generate", *SAMPLED, "--output", "out.parquet"),
        "out.parquet",
        {
            "work/out.parquet": "finished",
            "cache/rollouts/*/part-00002.json": "last part",
            "cache/rollouts/*/rollouts-*.parquet": "parts",
            "cache/rollouts/*/.*": "begun",
        },
        generated,
        refuses=True,
    ),
    "fit-lens": Command(
        ("fit-lens", *SAMPLED, "--steps", "10", "--skip-halves", "--output", "out.safetensors"),
        "out.safetensors",
        {
            "work/out.safetensors": "finished",
            "cache/rollouts/*/part-00002.json": "fitting",
            "cache/rollouts/*/rollouts-*.parquet": "sampling",
            "cache/rollouts/*/.*": "begun",
        },
        lens,
        refuses=True,
    ),
    "fit-lens jacobian": Command(
        ("fit-lens", "--kind", "jacobian", *SAMPLED, "--output", "out.safetensors"),
        "out.safetensors",
        {
            "work/out.safetensors": "finished",
            "cache/rollouts/*/jacobian-*": "fitting",
            "cache/rollouts/*/rollouts-*.parquet": "sampling",
            "cache/rollouts/*/.*": "begun",
        },
        lens,
        refuses=True,
    ),
    "evaluate": Command(
        ("evaluate", *SAMPLED, "--samples", "2", "--output", "out"),
        "out",
        {
            "work/out/digests.json": "finished",
            "work/out/evaluation.json": "closing",
            "cache/rollouts/*/*/rollouts-*.parquet": "sampling",
            "cache/rollouts/*/*/.*": "begun",
        },
        tables,
    ),
    "align": Command(
        (
            *(
                "align",
                "--limit",
                "16",
                "--samples",
                "4",
                "--max-new-tokens",
                "40",
                "--layers",
                "0",
                "--readout",
                "raw",
            ),
            *("--blocks", "4", "--output", "out"),
        ),
        "out",
        {
            "work/out/digests.json": "finished",
            "work/out/alignment.json": "closing",
            "cache/rollouts/*/rollouts-*.parquet": "sampling or measuring",
            "cache/rollouts/*/.*": "begun",
        },
        tables,
    ),
    "ablate": Command(
        ("ablate", "demo-qwen3", "--layers", "0,1", "--batch-size", "8", "--output", "out"),
        "out",
        {
            "work/out/ablation.json": "finished",
            "work/out/effects-*.parquet": "parts",
            "work/out/question.json": "begun",
        },
        tables,
    ),
    "train": Command(
        (
            *("train", "--layer", "3", "--internal-steps", "1", "--steps", "3", "--save-every", "1", "--output", "out"),
            *("--prompts", "2", "--samples", "4", "--micro-batch", "8", "--max-new-tokens", "6", "--limit", "20"),
            *("--reward", "format", "--temperature", "2", "--scan-every", "2", "--samples-every", "1"),
        ),
        "out",
        {
            "work/out/model/.files.json": "finished",
            "work/out/.partial": "saving",
            "work/out/checkpoint-*": "later steps",
            "work/out/metrics.parquet": "first step",
            "work/out/run.json": "begun",
        },
        run,
        resumed="work/out/run.json",
        refuses=True,
    ),
}
