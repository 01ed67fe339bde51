"""Sum the Jacobians of many sequences, and keep the sums in a file while the work goes on."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from internal_policy import files
from internal_policy.errors import InputError, counted
from internal_policy.lenses.lens import Jacobian, Map
from internal_policy.models.hooks import HookPoint
from internal_policy.scans.shard import WHOLE, Shard

EVERY = 60.0
"""Seconds between checkpoints, or more if writing them takes long."""
SHARE = 20
"""A checkpoint is written once the work since the last has taken so many times as long as writing it."""
ABOUT = "internal_policy"
"""Key in the metadata of a checkpoint."""
EXACT = torch.float64
"""The dtype of the sums."""


def check_memory(sources: int, points: int, d_model: int) -> None:
    """Raise InputError if the sums of two halves, and the lenses that are computed from them, don't fit into memory."""
    need, free = needed(sources, points, d_model), psutil.virtual_memory().available
    if need > free:
        raise InputError(
            f"The Jacobians of {counted(points, 'hook point')} need {need / 1e9:.1f} GB, but only {free / 1e9:.1f} GB "
            "is free. Use fewer --sites."
        )


def needed(sources: int, points: int, d_model: int) -> int:
    """Bytes of the sums at `sources` hook points in float64, and of three lenses of all `points` in float32."""
    return (2 * 8 * sources + 3 * 4 * points) * d_model**2


class Sums:
    """The sums over sequences of the rows of their Jacobians, for two halves of the sequences."""

    def __init__(self, points: Sequence[HookPoint], d_model: int) -> None:
        """Start at zero."""
        self.points = tuple(points)
        self.rows = {point: torch.zeros(2, d_model, d_model, dtype=EXACT) for point in points}
        """Hook point -> (half, output dimension, input dimension)."""
        self.counts = torch.zeros(2, d_model, dtype=torch.int64)
        """How many sequences gave each row: (half, output dimension)."""
        self.done = self.first = 0
        """Pieces of work in the sums, and those that an earlier run had added."""
        self.folder: Path | None = None
        self.shard, self.key = WHOLE, ""
        self.saved, self.took = time.monotonic(), 0.0

    @classmethod
    def opened(cls, folder: Path | None, shard: Shard, key: str, points: Sequence[HookPoint], d_model: int) -> "Sums":
        """The sums of a shard as they were last written to a folder; empty if there are none of the work `key`."""
        sums = cls(points, d_model)
        sums.folder, sums.shard, sums.key = folder, shard, key
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            sums.first = sums.done = sums._read(shard)
        return sums

    def add(
        self,
        gradients: Float[Tensor, "points batch some d_model"],
        wanted: Int[Tensor, "batch some"],
        halves: Int[Tensor, " batch"],
    ) -> None:
        """Add rows of the Jacobians of a batch: `wanted` are their output dimensions, `halves` the halves of each."""
        d_model = gradients.shape[-1]
        row = (halves.unsqueeze(1) * d_model + wanted).flatten()
        for total, one in zip(self.rows.values(), gradients.to(EXACT), strict=True):
            total.view(-1, d_model).index_add_(0, row, one.flatten(0, 1))
        self.counts.view(-1).index_add_(0, row, torch.ones_like(row))

    def finish(self, done: int, *, is_last: bool) -> None:
        """Note that `done` pieces of work are in the sums, which are written to the folder now and then."""
        self.done = done
        if self.folder is None or not (is_last or time.monotonic() - self.saved >= max(EVERY, SHARE * self.took)):
            return
        start = time.monotonic()
        tensors = {str(point): rows for point, rows in self.rows.items()} | {"counts": self.counts}
        about = {ABOUT: json.dumps({"done": done, "key": self.key})}
        with files.replacing(self._path(self.shard)) as temporary:
            save_file(tensors, temporary, about)
        self.saved, self.took = time.monotonic(), time.monotonic() - start

    def missing(self, sizes: Sequence[int]) -> int:
        """How many shards haven't finished. `sizes` are the numbers of pieces that each has to write."""
        if self.shard.count == 1:
            return 0
        shards = [Shard(number, self.shard.count) for number in range(self.shard.count)]
        done = [self._about(shard).get("done", 0) for shard in shards]
        return sum(one != size for one, size in zip(done, sizes, strict=True))

    def gather(self) -> None:
        """Replace these sums by those of all shards, in the order of the shards, so that all processes get the same."""
        if self.shard.count == 1:
            return
        for tensor in (*self.rows.values(), self.counts):
            tensor.zero_()
        for number in range(self.shard.count):
            self._read(Shard(number, self.shard.count))

    def jacobians(self, source: Mapping[HookPoint, HookPoint], dtype: torch.dtype) -> list[dict[HookPoint, Map]]:
        """The maps of all sequences and of each half, at each hook point by the sums of its source.

        Drops the sums. Raises InputError if a Jacobian isn't finite.
        """
        every: list[dict[HookPoint, Map]] = [{}, {}, {}]
        for point, rows in list(self.rows.items()):
            both = [(rows.sum(0), self.counts.sum(0)), *zip(rows, self.counts, strict=True)]
            del self.rows[point]
            for maps, (total, count) in zip(every, both, strict=True):
                mean = (total / count.unsqueeze(1)).to(dtype)
                if not mean.isfinite().all():
                    raise InputError(f"The Jacobian at {point} isn't finite. Use --dtype bfloat16 or float32.")
                maps |= {each: Jacobian(mean.clone()) for each, used in source.items() if used == point}
        return [{point: maps[point] for point in source} for maps in every]

    def _path(self, shard: Shard) -> Path:
        assert self.folder is not None
        return self.folder / f"jacobian-{shard.index}-of-{shard.count}.safetensors"

    def _about(self, shard: Shard) -> Mapping[str, Any]:
        """What the file of a shard tells about it; nothing if there is none, or if it is of other work."""
        try:
            with safe_open(self._path(shard), "pt") as file:
                about = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
        except (FileNotFoundError, SafetensorError):
            return {}
        return about if about.get("key") == self.key else {}

    def _read(self, shard: Shard) -> int:
        """Add what a shard has written to these sums; how many pieces of work that is."""
        done = self._about(shard).get("done", 0)
        if done:
            with safe_open(self._path(shard), "pt") as file:
                self.counts += file.get_tensor("counts")
                for point, rows in self.rows.items():
                    rows += file.get_tensor(str(point))
        return done
