"""Spread a model over devices, and find the weights that accelerate keeps elsewhere until they are used."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internal_policy.errors import InputError, first_line

if TYPE_CHECKING:
    from torch import nn

Sizes = Mapping[int | str, int | str]
"""Device (the number of a GPU, mps or cpu) -> memory in bytes, or a size such as 20GiB."""
SHARE = 0.9
"""Share of a device's free memory that weights may take by default."""


def limits(given: Sizes) -> dict[int | str, int]:
    """Bytes of weights that each device of this machine may hold; for a device that isn't given, SHARE of what is free.

    Raises InputError for a device that this machine doesn't have, and for a size that can't be read.
    """
    from accelerate.utils.modeling import convert_file_size_to_int, get_max_memory

    found = {device: int(SHARE * int(free)) for device, free in get_max_memory().items()}
    for device, size in given.items():
        if device not in found:
            raise InputError(
                f"--max-memory names the device '{device}', but this machine has {', '.join(map(str, found))}."
            )
        try:
            found[device] = convert_file_size_to_int(size)
        except ValueError as error:
            raise InputError(f"--max-memory gives {device} '{size}'. Write a size such as 20GiB or 800MB.") from error
    return found


@contextmanager
def temporary_folder(parent: Path | None) -> Iterator[Path]:
    """While open, a new folder for weights that transformers must convert before it can offload them to disk.

    It is private to this process, inside `parent`, or in the system's folder for temporary files. Raises InputError.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="internal-policy-offload-", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(f"Can't write to --offload-folder {parent} ({first_line(error)}). Choose another.") from error
    with folder as path:
        yield Path(path)


@contextmanager
def present(module: "nn.Module") -> Iterator[None]:
    """While open, a module's own weights are on the device where it runs, even if they are offloaded."""
    from accelerate.utils.modeling import align_module_device

    with align_module_device(module):
        yield


def is_offloaded(module: "nn.Module") -> bool:
    """Whether a module's own weights are on another device or the disk until it runs."""
    from accelerate.utils.modeling import has_offloaded_params

    return has_offloaded_params(module)


def has_offloaded(model: "nn.Module") -> bool:
    """Whether the weights of any module of a model are offloaded."""
    return any(map(is_offloaded, model.modules()))


def keep_unembedding(model: "nn.Module") -> None:
    """Keep the unembedding loaded if it is offloaded, because every hidden state is multiplied by it.

    It goes to the device where it runs, which is also where policies are measured.
    """
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
    from torch import nn

    from internal_policy.models.adapters import inside

    module: Any = inside(model).get_output_embeddings()
    if module is None or not is_offloaded(module):
        return
    device = module._hf_hook.execution_device
    with present(module):
        weights = {name: weight.detach() for name, weight in module.named_parameters(recurse=False)}
    remove_hook_from_module(module)
    for name, weight in weights.items():
        setattr(module, name, nn.Parameter(weight, requires_grad=False))
    add_hook_to_module(module, AlignDevicesHook(execution_device=device))


def check_trainable(model: "nn.Module") -> None:
    """Raise InputError for a model with offloaded weights, which no optimizer can change."""
    if has_offloaded(model):
        raise InputError(
            "Training changes weights in place, but --device-map offloads some of them. Use more or larger GPUs, a "
            "smaller model, or --dtype bfloat16."
        )


def check_adaptable(model: "nn.Module", name: str) -> None:
    """Raise InputError for a model with offloaded weights, to which PEFT can't add the adapter in the folder `name`."""
    if has_offloaded(model):
        raise InputError(
            f"{name} is an adapter, which can't be added to a model that --device-map offloads. Merge it into its base "
            "model (`merge_and_unload()`), or use more or larger GPUs."
        )


@contextmanager
def explained(model: "nn.Module") -> Iterator[None]:
    """While open, turn the error of a pass that reads offloaded weights outside of their module into an InputError."""
    try:
        yield
    except RuntimeError as error:
        if "meta" not in str(error) or not has_offloaded(model):
            raise
        raise InputError(
            f"{type(model).__name__} reads weights before they are loaded ({first_line(error)}), so it can't be "
            "offloaded. Use GPUs that hold the whole model, or a CPU with --device cpu."
        ) from error
