"""Read hidden states at TransformerLens's hook points, while a bridge runs or from an existing cache."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens import ActivationCache
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from internal_policy.errors import InputError
from internal_policy.measure import metrics
from internal_policy.measure.sites import SITES
from internal_policy.models import rows
from internal_policy.models.families import row_of
from internal_policy.models.head import weight_alone
from internal_policy.models.hooks import FINAL, HookPoint, Visit
from internal_policy.models.policy import READOUTS, Readout
from internal_policy.readers import compared
from internal_policy.scans import scan
from internal_policy.scans.reader import Reader
from internal_policy.scans.selection import canonical
from internal_policy.scans.store import Tables
from internal_policy.tasks.rollouts import of_ids

NAMES = {
    "resid_pre": "hook_resid_pre",
    "attn_in": "ln1.hook_out",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_in": "ln2.hook_out",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
"""Site -> TransformerLens's name inside a block."""

FAMILIES = tuple(compared.SAME.split())
"""Rows that can be read here."""


def name(point: HookPoint) -> str:
    """TransformerLens's name of a hook point, such as `blocks.5.hook_attn_out`."""
    return "ln_final.hook_out" if point == FINAL else f"blocks.{point.layer}.{NAMES[point.site]}"


def boot(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TransformerBridge:
    """A bridge over a loaded model, without a copy of its weights.

    The bridge takes over the model, which then computes attention eagerly and can't be saved. Raises InputError for a
    family that can't be read here.
    """
    _known(model)
    model.config.architectures = [type(model).__name__]  # missing from a model that was never saved
    own = copy.deepcopy(tokenizer)  # booting changes its padding and its special tokens
    return TransformerBridge.boot_transformers(
        model.config.name_or_path, hf_model=model, tokenizer=own, dtype=model.dtype
    )


def reader(bridge: TransformerBridge) -> Reader:
    """A reader for a bridge, at TransformerLens's hook points and without its final logits.

    Existing hooks on the bridge run and are kept. Raises InputError for a bridge whose weights were folded, and for a
    family that can't be read here.
    """
    model = bridge.original_model
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"The bridge wraps a {type(model).__name__}. Boot it with a Hugging Face model.")
    if bridge._weights_processed:
        raise InputError(
            "The bridge's weights were folded, which changes its raw policies: the final norm is in its unembedding. "
            "Boot it again without enable_compatibility_mode() or process_weights()."
        )
    _known(model)
    return Reader(model, weight_alone(bridge.unembed.original_component), partial(_run, bridge, model))


def obstacle(config: PreTrainedConfig) -> str:
    """Why models of this configuration can't be read here; empty if they can. Raises InputError without a row."""
    row, how = row_of(config)
    if how == "here":
        return "it was only compared with our hooks for families in the table"
    if row in FAMILIES:
        return ""
    if row in compared.WITHOUT.split():
        return "it has no hook point for some states of these layers"
    if row in compared.OTHERWISE.split():
        return "it computes other hidden states than the model"
    if rows.FAMILIES[row].nested or rows.FAMILIES[row].beside:
        return "it would install packages by itself for a model that also reads images"
    return "it doesn't know this family"


def _known(model: PreTrainedModel) -> None:
    if why := obstacle(model.config):
        name = model.config.model_type
        raise InputError(f"TransformerLens can't read {name}, because {why}. Scan the model itself.")


def _run(
    bridge: TransformerBridge, model: PreTrainedModel, points: Iterable[HookPoint], visit: Visit, **inputs: Any
) -> None:
    with ExitStack() as stack:
        for point in points:
            hook = bridge.hook_dict[name(point)].register_forward_hook(partial(_report, visit, point))
            stack.callback(hook.remove)  # TransformerLens's own method would remove the user's hooks too
        model.get_decoder()(**inputs)


def _report(visit: Visit, point: HookPoint, _: nn.Module, __: Any, hidden: Tensor) -> None:
    visit(point, hidden)


def measure_cache(
    bridge: TransformerBridge,
    cache: ActivationCache,
    tokens: Any,
    *,
    prompt: int = 1,
    layers: Sequence[int] | None = None,
    sites: Sequence[str] | None = None,
    readouts: Sequence[Readout] = READOUTS,
    measures: Sequence[str] = metrics.MEASURES,
    top_k: int = 5,
) -> Tables:
    """Measure what `bridge.run_with_cache(tokens)` has cached, at every token after the first `prompt` of each row.

    `tokens` are ids (batch, seq). `sites=None` takes those that are cached at every layer. The rows must not be padded;
    scan padded rows instead. Raises InputError for hidden states that the cache lacks, with the names to cache, for a
    cache of other tokens, and for tokens of the wrong type or shape.
    """
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.is_floating_point():
        what = f"of shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else f"a {type(tokens).__name__}"
        raise InputError(
            f"tokens is {what}; expected token ids of shape (batch, seq). Pass the result of bridge.to_tokens(text), "
            "or ids[None] for a single row."
        )
    live = reader(bridge)
    layers = range(live.n_layers) if layers is None else layers
    if sites is None:
        sites = [site for site in SITES if all(_cached(cache, canonical(layer, site)) is not None for layer in layers)]
    if bridge.tokenizer is None:
        raise InputError("This bridge has no tokenizer, which is needed to label tokens. Boot it with one.")
    rollouts = of_ids(bridge.tokenizer, tokens.tolist(), prompt)
    replayed = replace(live, run=partial(_replay, cache, tokens, iter(range(tokens.shape[1]))))
    return scan.scan(
        replayed,
        bridge.tokenizer,
        rollouts,
        layers=layers,
        sites=sites,
        readouts=readouts,
        measures=measures,
        top_k=top_k,
        batch_size=len(rollouts),
    )


def _cached(cache: ActivationCache, point: HookPoint) -> Tensor | None:
    """The hidden states at a point, if they are cached, perhaps as the next layer's input."""
    following = HookPoint(point.layer + 1, "resid_pre") if point.site == "resid_post" else point
    return cache.cache_dict.get(name(point), cache.cache_dict.get(name(following)))


def _replay(
    cache: ActivationCache,
    tokens: Tensor,
    position: Iterator[int],
    points: Iterable[HookPoint],
    visit: Visit,
    *,
    input_ids: Tensor,
    **_: Any,
) -> None:
    """Visit the cached hidden states of the next `input_ids`, which come in order and in any number of pieces."""
    if len(input_ids) != len(tokens):  # a scan halves the rows when memory runs out
        raise InputError("The cache doesn't fit into memory. Measure fewer rows at a time, or fewer layers or sites.")
    here = slice((span := list(islice(position, input_ids.shape[1])))[0], span[-1] + 1)
    assert torch.equal(input_ids, tokens[:, here].to(input_ids.device))
    for point in points:
        hidden = _cached(cache, point)
        if hidden is None:
            raise InputError(
                f"The cache lacks {name(point)}. Use names_filter=None or that name to cache it, or measure fewer "
                "layers, sites or measures."
            )
        batched = hidden if cache.has_batch_dim else hidden.unsqueeze(0)
        if batched.shape[:2] != tokens.shape:
            raise InputError(
                f"{name(point)} is cached for {' x '.join(map(str, batched.shape[:2]))} tokens, but the given tokens "
                f"are {' x '.join(map(str, tokens.shape))}. Pass the tokens that run_with_cache read."
            )
        visit(point, batched[:, here])
