"""Prove a family's row on a tiny random model."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from internal_policy.models.families import FAMILIES, decoder_layers, sites_of
from internal_policy.models.hooks import FINAL, HookPoint, hooked
from internal_policy.models.policy import as_policy, policy_logits

TINY: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}
"""The configuration of every tiny model."""

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DEEPSEEK = {
    "num_key_value_heads": 4,
    "head_dim": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
GEMMA = {"sliding_window": 6, "query_pre_attn_scalar": 8}
GEMMA3 = {**GEMMA, "sliding_window_pattern": 2}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

OWN: dict[str, dict[str, Any]] = {
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": EXPERTS,
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.22,
        "logits_scaling": 2.0,
    },
    "gemma2": {**GEMMA, "final_logit_softcapping": 3.0},
    "gemma3_text": {**GEMMA3, "final_logit_softcapping": 3.0},
    "gemma3": GEMMA3,
    "olmo3": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gpt2": NO_DROPOUT,
    "gpt_neox_sequential": {"use_parallel_residual": False},
}
"""Row -> its own additions to TINY: sizes that are large by default, and features that the row must handle."""

INSIDE = {
    "gemma3": (
        "text_config",
        {
            "vision_config": {
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
        },
    )
}
"""Row whose language model has a nested configuration -> the nested one's name, and the other parts."""

SCALE = 0.3
"""Scale of the random weights; with the much smaller default, every policy would be uniform."""


def tiny(name: str, **changes: Any) -> PreTrainedModel:
    """A random float64 model of the row `name`, the same in every call, whose entropies vary from layer to layer.

    `changes` override its configuration; a name without a row is used as a `model_type`.
    """
    row = FAMILIES.get(name)
    model_type = (row.model_type if row else None) or name
    values = {**TINY, **OWN.get(name, {}), **changes}
    if name in INSIDE:
        inside, beside = INSIDE[name]
        values = {inside: values, "tie_word_embeddings": values["tie_word_embeddings"], **beside}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **values)
        # the faster experts don't support float64
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64, experts_implementation="eager")
        for parameter in model.parameters():
            parameter.data.normal_(0, SCALE) if parameter.dim() > 1 else parameter.data.uniform_(0.5, 1.5)
    return model.eval()


def points_of(model: PreTrainedModel) -> list[HookPoint]:
    """Every hook point of a model, in the order of a forward pass."""
    layers = range(len(decoder_layers(model)))
    return [*(HookPoint(layer, site) for layer in layers for site in sites_of(model.config)), FINAL]


def read(model: PreTrainedModel, input_ids: Tensor) -> dict[HookPoint, Tensor]:
    """The hidden states at every hook point, on the autograd graph, in the order they were reached."""
    seen: dict[HookPoint, Tensor] = {}
    with torch.random.fork_rng(devices=[]), hooked(model, reversed(points_of(model)), seen.__setitem__):
        model(input_ids)
    return seen


Contradictions = Iterator[str]
"""Descriptions of what contradicts a claim; empty if nothing does."""


def adds_up(model: PreTrainedModel, input_ids: Tensor) -> Contradictions:
    """The stream is its input plus what the modules add, bit for bit, also with dropout in training."""
    for when, each in (("", model), (" in training", dropping(model))):
        states = read(each, input_ids)
        for layer in range(len(decoder_layers(model))):
            pre, attn, mlp, post = (
                states[HookPoint(layer, site)] for site in ("resid_pre", "attn_out", "mlp_out", "resid_post")
            )
            if "resid_mid" in sites_of(model.config):
                mid = states[HookPoint(layer, "resid_mid")]
                yield from differs(f"{layer}.resid_mid is not resid_pre + attn_out{when}", mid, pre + attn)
                yield from differs(f"{layer}.resid_post is not resid_mid + mlp_out{when}", post, mid + mlp)
            else:
                added = mlp + attn + pre
                yield from differs(f"{layer}.resid_post is not mlp_out + attn_out + resid_pre{when}", post, added)


def dropping(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model in training mode, where every dropout drops half."""
    trained = copy.deepcopy(model).train()
    for module in trained.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    return trained


def reads(model: PreTrainedModel, input_ids: Tensor) -> Contradictions:
    """Attention and FFN see the stream only through attn_in and mlp_in, as gradients show."""
    states = read(model, input_ids)
    mid = "resid_mid" if "resid_mid" in sites_of(model.config) else "resid_pre"
    for layer in range(len(decoder_layers(model))):
        for stream, source, out in (("resid_pre", "attn_in", "attn_out"), (mid, "mlp_in", "mlp_out")):
            before, at, after = (states[HookPoint(layer, site)] for site in (stream, source, out))
            weights = torch.linspace(-1, 1, after.numel(), dtype=after.dtype).view_as(after)
            known, through = torch.autograd.grad(after, (before, at), weights, retain_graph=True)
            (seen,) = torch.autograd.grad(at, before, through, retain_graph=True)
            if not known.any():
                yield f"{layer}.{out} does not depend on {stream}"
            yield from differs(f"{layer}.{out} sees {stream} past {source}", seen, known)


def is_the_stream(model: PreTrainedModel, input_ids: Tensor) -> Contradictions:
    """resid_pre of each layer and final are transformers' own hidden states."""
    states, theirs = read(model, input_ids), model(input_ids, output_hidden_states=True).hidden_states
    points = [*(HookPoint(layer, "resid_pre") for layer in range(len(decoder_layers(model)))), FINAL]
    for number, point in enumerate(points):
        yield from differs(f"{point} is not hidden_states[{number}]", states[point], theirs[number])


def final_is_the_model(model: PreTrainedModel, input_ids: Tensor) -> Contradictions:
    """The policy at final is the model's own."""
    logits = policy_logits(model, FINAL, input_ids=input_ids)
    yield from differs("the policy at final is not the model's", logits, model(input_ids).logits)


def comes_in_order(model: PreTrainedModel, input_ids: Tensor) -> Contradictions:
    """A forward pass reaches the hook points in the order of `points_of`."""
    for point, expected in zip(read(model, input_ids), points_of(model), strict=True):
        if point != expected:
            yield f"{point} comes where {expected} should"


def leaves_nothing(model: PreTrainedModel, input_ids: Tensor) -> Contradictions:
    """No hook is left behind, even after an exception in the middle of a pass."""

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    before = hook_count(model)
    try:
        with hooked(model, points_of(model), fail):
            model(input_ids)
    except KeyboardInterrupt:
        pass
    else:
        yield "no hook point was visited"
    if left := hook_count(model) - before:
        yield f"{left} hooks are left behind"


def becomes(model: PreTrainedModel, input_ids: Tensor) -> Contradictions:
    """Inside `as_policy` the model returns the internal policy's logits, and afterwards its own again."""
    own = model(input_ids).logits
    for site in sites_of(model.config):
        for layer in range(len(decoder_layers(model)))[-2:]:
            point = HookPoint(layer, site)
            expected = policy_logits(model, point, input_ids=input_ids)
            with as_policy(model, point):
                yield from differs(f"as_policy at {point} isn't that policy", model(input_ids).logits, expected)
    yield from differs("as_policy leaves the model changed", model(input_ids).logits, own)


PROOFS: Mapping[str, Callable[[PreTrainedModel, Tensor], Contradictions]] = {
    "the stream is exactly what attention and FFN add to it": adds_up,
    "attention and FFN see the stream only through attn_in and mlp_in": reads,
    "resid_pre is transformers' own hidden state": is_the_stream,
    "the policy at final is the model's own": final_is_the_model,
    "a forward pass reaches the hook points in order": comes_in_order,
    "no hook is left behind after an exception": leaves_nothing,
    "as_policy turns the model into each of its policies": becomes,
}
"""Claim about every row -> the function that looks for contradictions."""


def prove(name: str) -> dict[str, str]:
    """Claim -> what contradicts it for the row `name`; empty if the claim is proved."""
    input_ids = torch.randint(5, 256, (2, 11), generator=torch.Generator().manual_seed(1))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waiting for a second thread takes longer than a whole tiny model
    try:
        model = tiny(name)
        return {claim: _contradiction(proof, model, input_ids) for claim, proof in PROOFS.items()}
    except Exception as error:  # the installed transformers may lack the family
        return dict.fromkeys(PROOFS, _first_line(error))
    finally:
        torch.set_num_threads(threads)


def _contradiction(
    proof: Callable[[PreTrainedModel, Tensor], Contradictions], model: PreTrainedModel, ids: Tensor
) -> str:
    try:
        return next(proof(model, ids), "")
    except Exception as error:  # a row may name a missing module, or one of another shape
        return _first_line(error)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def differs(what: str, actual: Tensor, expected: Tensor) -> Contradictions:
    """Yield `what` unless two tensors are equal, bit for bit."""
    if not torch.equal(actual, expected):
        apart = f"{(actual - expected).abs().max():.2g} apart" if actual.shape == expected.shape else "shapes differ"
        yield f"{what} ({apart})"


def hook_count(model: PreTrainedModel) -> int:
    """How many hooks the modules of a model carry."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
