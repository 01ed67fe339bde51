"""Read GGUF files, the format of llama.cpp: which types their weights have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from internal_policy.errors import require

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights that aren't quantized."""


def settings(path: Path) -> dict[str, Any]:
    """What is quantized in a GGUF file, in the form of a checkpoint's quantization settings.

    Raises InputError without the package gguf.
    """
    require("gguf", "gguf")
    from gguf import GGUFReader  # pyright: ignore[reportMissingImports]

    kinds: Mapping[str, str] = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    quantized = {name: kind for name, kind in kinds.items() if kind not in FLOATS}
    head = "output.weight" if "output.weight" in kinds else "token_embd.weight"
    return {
        "quant_method": "gguf",
        "types": sorted(set(quantized.values())),
        "modules": list(dict.fromkeys(name.split(".")[-2] for name in quantized)),
        "unembedding": head in quantized,
    }
