"""Prove that what a model computes for a text depends neither on how it is cut into pieces nor on its batch."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from internal_policy.models.modules import backbone
from internal_policy.models.passes import continuing, sampled_together

NEAR = 1e-3
"""Largest difference from rounding, as a share of the largest value: recurrent states are computed in float32."""
PIECES = (4, 5)
"""Lengths of the first pieces of a text; the last piece is the rest."""
SHORT, NEW = 5, 3
"""Tokens of the shortest prompt, and of a response."""


def continues(model: PreTrainedModel, input_ids: Tensor) -> Iterator[str]:
    """Passes over the pieces of a text that share a cache give the hidden states of one pass over the whole text."""
    if not (options := continuing(model.config)):
        return
    with torch.no_grad():
        whole = backbone(model)(input_ids=input_ids, use_cache=False).last_hidden_state
        pieces = input_ids.split([*PIECES, input_ids.shape[1] - sum(PIECES)], dim=1)
        parts = [backbone(model)(input_ids=piece, **options).last_hidden_state for piece in pieces]
    yield from _apart("a text in pieces has other hidden states than the whole text", torch.cat(parts, 1), whole)


def samples_alike(model: PreTrainedModel, input_ids: Tensor) -> Iterator[str]:
    """Prompts sampled in one left-padded batch get the policies that the model has for each text alone."""
    prompts = [input_ids[0], input_ids[1, :SHORT]]
    for group in sampled_together(model.config, [len(prompt) for prompt in prompts], NEW):
        width = max(len(prompts[n]) for n in group)
        ids = torch.stack([torch.nn.functional.pad(prompts[n], (width - len(prompts[n]), 0), value=1) for n in group])
        mask = torch.stack([(torch.arange(width) >= width - len(prompts[n])).long() for n in group])
        with torch.no_grad():
            sampled = cast(Any, model).generate(
                inputs=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                pad_token_id=1,
                output_logits=True,
                return_dict_in_generate=True,
            )
            for row, n in enumerate(group):
                text = sampled.sequences[row, width - len(prompts[n]) :]
                alone = model(text[None], use_cache=False).logits[0, len(prompts[n]) - 1 : -1]
                together = torch.stack([logits[row] for logits in sampled.logits])
                if not together.isnan().any():  # sampling from NaN is refused
                    yield from _apart(f"a prompt of {len(prompts[n])} tokens is continued otherwise", together, alone)


def _apart(what: str, actual: Tensor, expected: Tensor) -> Iterator[str]:
    """Yield `what` if two tensors differ by more than rounding."""
    apart = (actual - expected).abs().max() / expected.abs().max()
    if not apart <= NEAR:
        yield f"{what} ({apart:.2g} of the largest apart)"
