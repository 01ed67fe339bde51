"""Train on prompts of different lengths, which are padded on the left, as if each prompt were alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from internal_policy.errors import InputError
from internal_policy.models.adapters import inside
from internal_policy.models.families import row_of

COUNTED = (
    "biogpt",
    "ctrl",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "hunyuan_v1_dense",
    "hunyuan_v1_moe",
    "ministral3",
    "xglm",
)
"""Rows whose models count positions from the first column, padding or not, unless they are given."""
DECODER = "TRL doesn't find its decoder"
UNTRAINABLE = {
    "llama4": DECODER,
    "llama4_text": DECODER,
    "phimoe": "it draws experts at random in training, so that the ratio of the same policy isn't 1",
}
"""Row -> why its models can't be trained."""


def check(config: PreTrainedConfig) -> None:
    """Raise InputError for a model that can't be trained."""
    if reason := UNTRAINABLE.get(row_of(config)[0]):
        raise InputError(f"{config.model_type} can't be trained, because {reason}. Choose a model of another family.")


@contextmanager
def counting(model: nn.Module) -> Iterator[None]:
    """While open, a model with a row in COUNTED counts positions from the first token that isn't padding."""
    causal = inside(model)
    if row_of(causal.config)[0] not in COUNTED:
        yield
        return

    def count(_: nn.Module, args: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = options.get("attention_mask")
        if mask is None or options.get("position_ids") is not None:
            return args, dict(options)
        return args, {**options, "position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}

    handle = causal.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
