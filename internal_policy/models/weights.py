"""Count the weights of a model and the memory they take, from its configuration and the headers of its files."""

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from internal_policy.errors import InputError, first_line
from internal_policy.models import folder, quantized
from internal_policy.models.checkpoint import Checkpoint, base, config_folder
from internal_policy.models.classes import auto_class
from internal_policy.models.failures import explained
from internal_policy.models.families import family_of
from internal_policy.models.loading import code_options
from internal_policy.models.quantized import PACKED, SCALE, Quantize

NF4 = 0.5 + 4 / 64
"""Bytes of a weight in 4 bits, with its share of the scale of 64 weights, a float32."""
SCALED = 1.07
"""How much larger packed weights are with their scales, if the files can't be read."""
ONLY_ON_GPU = ("fp8", "mxfp4", "compressed-tensors")
"""Methods whose weights are dequantized when a CPU loads them."""
TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Types of plain weights in a safetensors file."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file."""

    dtype: str
    """Its type as the file calls it, such as BF16."""
    elements: int
    """How many numbers it has."""
    bytes: int
    """Its size in the file."""


@dataclass(frozen=True)
class Weights:
    """The weights of a model that isn't loaded yet, as they will be in memory."""

    plain: int
    """Elements that are loaded in the type that the user chooses."""
    linear: int
    """Those of `plain` that bitsandbytes can quantize: in all linear modules but the unembedding."""
    rows: int
    """Rows of these modules."""
    packed: int
    """Bytes of the weights that stay quantized, with their scales."""
    adapter: int
    """Bytes of an adapter."""
    largest: int
    """Elements of the largest weight."""

    def bytes(self, size: int, quantize: Quantize | None = None) -> int:
        """Their memory in bytes: plain weights take `size` bytes each, unless `quantize` makes them smaller."""
        each = {None: size * self.linear, "nf4": NF4 * self.linear, "int8": self.linear + 4 * self.rows}[quantize]
        return round((self.plain - self.linear) * size + each) + self.packed + self.adapter


def empty(checkpoint: Checkpoint, config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration, whose weights have shapes but no values. Raises InputError."""
    with explained(checkpoint.name, checkpoint.revision, "config.json"), torch.device("meta"):
        return auto_class(family_of(config)).from_config(config, **code_options(base(checkpoint), config))


def count(checkpoint: Checkpoint, config: PreTrainedConfig, model: PreTrainedModel, device: torch.device) -> Weights:
    """The weights of a checkpoint as this device loads them; `model` is the `empty` one.

    Quantized weights are counted as they are in the files or, if these can't be read before they are downloaded, by
    the bits in the configuration. Raises InputError for weights quantized in an unknown way.
    """
    source = base(checkpoint)
    settings = None if source.gguf_file is not None else quantized.settings_of(config)
    quantized.check(settings, checkpoint.name, checkpoint.quantize)
    head = model.get_output_embeddings()
    modules = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    shapes = [module.weight.shape for module in modules]
    linear, rows = sum(map(math.prod, shapes)), sum(shape[0] for shape in shapes)
    sizes = [weight.numel() for weight in model.parameters()]
    plain, largest = sum(sizes), max(sizes)
    packed = 0
    if settings is not None and not (device.type == "cpu" and quantized.method_of(settings) in ONLY_ON_GPU):
        if stored := headers(source):
            plain, packed = of_packed(stored)
            kept = {name: one for name, one in stored.items() if one.dtype in PACKED and "lm_head." in name}
            if head is not None and kept:  # it is dequantized when it is loaded
                plain, packed = plain + head.weight.numel(), packed - sum(one.bytes for one in kept.values())
        else:
            bits = quantized.scheme_of(settings)[1] or 8
            plain, packed = plain - linear, round(linear * bits / 8 * SCALED)
        linear = rows = 0
    return Weights(plain, linear, rows, packed, adapter_bytes(checkpoint.folder), largest)


def of_packed(stored: Mapping[str, Stored]) -> tuple[int, int]:
    """Of the tensors of a quantized checkpoint, the elements of those that are plain, and the bytes of the others."""
    plain = [one for name, one in stored.items() if one.dtype not in PACKED and not SCALE.search(name)]
    total = sum(one.bytes for one in stored.values())
    return sum(one.elements for one in plain), total - sum(one.bytes for one in plain)


def dtype_of(config: PreTrainedConfig, checkpoint: Checkpoint, name: str) -> torch.dtype:
    """The type that plain weights are loaded in; `auto` is the type in the configuration, or else in the files."""
    chosen: Any = getattr(torch, name) if name != "auto" else config.dtype
    if chosen is None:
        stored = {} if checkpoint.gguf_file is not None else headers(base(checkpoint))
        chosen = next((TYPES[one.dtype] for one in stored.values() if one.dtype in TYPES), torch.float32)
    return chosen


def adapter_bytes(path: Path) -> int:
    """Bytes of the adapter in a folder, whose half precision PEFT turns into float32; 0 without an adapter."""
    if not folder.is_adapter(path):
        return 0
    return sum(max(one.bytes, 4 * one.elements) for one in of_file(path / "adapter_model.safetensors").values())


def headers(checkpoint: Checkpoint) -> dict[str, Stored]:
    """The tensors of a model by name, from the headers of its files, on disk or else on the hub.

    Empty if the hub can't be reached or has no safetensors.
    """
    path = config_folder(checkpoint)
    named = folder.shards(path) or {"model.safetensors"}
    files = [path / name for name in sorted(named)] if all((path / name).exists() for name in named) else []
    files = files or sorted(path.glob("*.safetensors"))
    if files or checkpoint.folder.is_dir():
        return {name: one for file in files for name, one in of_file(file).items()}
    with suppress(InputError), explained(checkpoint.name, checkpoint.revision):
        from huggingface_hub import get_safetensors_metadata

        parts = get_safetensors_metadata(checkpoint.name, revision=checkpoint.revision).files_metadata.values()
        return dict(_stored((n, vars(t)) for part in parts for n, t in part.tensors.items()))
    return {}


def of_file(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name, from its header: a length of 8 bytes, then JSON of that length.

    Raises InputError for a file whose header can't be read.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        return dict(_stored((name, entry) for name, entry in header.items() if name != "__metadata__"))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise InputError(
            f"Can't read {path} as safetensors ({first_line(error)}). Get a complete copy of it."
        ) from error


def _stored(entries: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterable[tuple[str, Stored]]:
    for name, entry in entries:
        (start, end), shape = entry["data_offsets"], entry["shape"]
        if not all(type(number) is int and number >= 0 for number in (start, end - start, *shape)):
            raise ValueError(f"{name!r:.60} has no valid shape and place")
        yield name, Stored(str(entry["dtype"]), math.prod(shape), end - start)
