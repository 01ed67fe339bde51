"""Choose what samples responses in training: the trained model itself, vLLM in the same processes, or its server."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from internal_policy.cli.train_options import Engine, Train
from internal_policy.errors import InputError
from internal_policy.models.folder import is_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from internal_policy.train.configuration import BuPOConfig

ENGINES: dict[Engine, dict[str, Any]] = {
    "torch": {"use_vllm": False},
    "vllm": {"use_vllm": True, "vllm_mode": "colocate"},
    "vllm-server": {"use_vllm": True, "vllm_mode": "server"},
}
"""Engine -> the fields of BuPOConfig that choose it."""
UNREAD = {
    "gguf_file": "vLLM can't take the weights of a GGUF file",
    "quantize": "vLLM can't take weights that were quantized when they were loaded",
}
"""Options that exclude vLLM -> why."""


def fields(options: Train) -> dict[str, Any]:
    """The fields of BuPOConfig that the engine sets; none if it is left to --config. Raises InputError without vLLM."""
    if options.engine is None:
        return {}
    chosen = ENGINES[options.engine]
    if chosen["use_vllm"] and find_spec("vllm") is None:
        raise InputError(
            f"--engine {options.engine} needs vLLM, which isn't installed. Run `pip install 'trl[vllm]'`, or use "
            "--engine torch."
        )
    if chosen["use_vllm"] and options.trust_remote_code:
        return {**chosen, "trust_remote_code": True}
    return chosen


def check(options: Train, config: "BuPOConfig", about: "PreTrainedConfig") -> None:
    """Raise InputError for a model or machine with which vLLM can't sample; before the weights are loaded."""
    if not config.use_vllm:
        return
    for name, why in UNREAD.items():
        if getattr(options, name) is not None:
            raise InputError(f"{why}. Leave out --{name.replace('_', '-')}, or use --engine torch.")
    if config.vllm_mode == "server" and not has_gpu():
        raise InputError(
            "A vLLM server gets the weights over NCCL, which needs a GPU in this process. Use --engine torch."
        )
    if config.vllm_mode == "colocate" and options.revision != "main" and not options.checkpoint.folder.is_dir():
        raise InputError(
            "vLLM would load the model's main revision. Download the other one with `hf download --revision`, and "
            "give its folder as --model."
        )
    _check_merging(options, about, adapted=config.lora or is_adapter(options.checkpoint.folder))
    _check_names(options, about)


def has_gpu() -> bool:
    """Whether this machine has a CUDA device."""
    import torch

    return torch.cuda.is_available()


def _check_merging(options: Train, about: "PreTrainedConfig", *, adapted: bool) -> None:
    """Raise InputError for an adapter on half-precision weights, which change a little with every batch.

    Before each batch, TRL adds the adapter to the frozen weights, sends them, and subtracts it again, which rounds.
    """
    import torch

    from internal_policy.models import weights

    dtype = weights.dtype_of(about, options.checkpoint, options.dtype)
    if adapted and torch.finfo(dtype).bits < 32:
        raise InputError(
            "For vLLM, the adapter is added to the weights before each batch and subtracted again, which changes "
            f"{str(dtype).removeprefix('torch.')} weights a little each time. Use --dtype float32, or --engine torch."
        )


def _check_names(options: Train, about: "PreTrainedConfig") -> None:
    """Raise InputError for a family whose weights have other names in memory than on disk, which vLLM reads.

    Transformers packs experts, for example. Weights that vLLM doesn't know may be dropped without an error.
    """
    from internal_policy.models import checkpoint, weights

    known = weights.headers(checkpoint.base(options.checkpoint))
    named = weights.empty(options.checkpoint, about).named_parameters()
    if known and (other := [name for name, _ in named if name not in known]):
        raise InputError(
            f"vLLM knows weights by their names on disk, but in memory {options.model} has {other[0]}, which isn't one "
            "of them. Use --engine torch."
        )
