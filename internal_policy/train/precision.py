"""The precision of trained weights: which updates it rounds away, and in which type a model is saved."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from internal_policy import files

HALF = (torch.bfloat16, torch.float16)
"""Types that are too coarse for small updates."""
SAMPLE = 2**16
"""Weights of each parameter that are looked at."""


def rounding(model: nn.Module, learning_rate: float) -> str | None:
    """A warning if updates of the size of the learning rate, as AdamW's are, change less than half of the weights.

    None if the trained weights are precise enough.
    """
    trained = [weight.detach().flatten()[:SAMPLE] for weight in model.parameters() if weight.requires_grad]
    changed = [(weight + learning_rate != weight) for weight in trained if weight.dtype in HALF]
    if not changed or (share := float(torch.cat(changed).float().mean())) >= 0.5:
        return None
    kind = next(str(weight.dtype).removeprefix("torch.") for weight in trained if weight.dtype in HALF)
    return (
        f"The weights are {kind}: an update of {learning_rate:g} changes {share:.1%} of them, and the others "
        "are rounded back. Use --dtype float32, with bf16: true in --config for speed."
    )


def save_as(folder: Path, dtype: torch.dtype) -> None:
    """Convert the float32 weights of a model that was saved in a folder, and the type that its configuration names.

    The folder of an adapter stays as it is.
    """
    if not (folder / "config.json").exists():
        return
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as saved:
            metadata, tensors = saved.metadata(), {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
        tensors = {name: value.to(dtype) if value.dtype == torch.float32 else value for name, value in tensors.items()}
        save_file(tensors, path, metadata)
        total += sum(value.nbytes for value in tensors.values())
    for name, change in (
        ("config.json", {"dtype": str(dtype).removeprefix("torch.")}),
        ("model.safetensors.index.json", {"metadata": {"total_size": total}}),
    ):
        if (folder / name).exists():
            files.write_json(folder / name, json.loads((folder / name).read_text()) | change)
