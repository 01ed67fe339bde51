"""Rows of Gemma 4, whose layers also add a per-layer embedding and rescale the stream."""

from dataclasses import replace

from internal_policy.models.family import Family
from internal_policy.models.rows.dense import GEMMA

CAUSAL = {"use_bidirectional_attention": (None, "vision")}
"""Only tokens of an image may see later tokens."""
NO_EMBEDDING = {"hidden_size_per_layer_input": (None, 0)}
DENSE = {"enable_moe_block": (False,)}
SHARED = {"num_kv_shared_layers": 2}
RESCALED = "each layer ends by multiplying the stream by its layer_scalar"

PLAIN = replace(
    GEMMA,
    scale="layer_scalar",
    cap="final_logit_softcapping",
    needs={**CAUSAL, **DENSE, **NO_EMBEDDING},
    note=RESCALED,
    tiny={
        **GEMMA.tiny,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 0,
        "final_logit_softcapping": 3.0,
    },
)
EMBEDDED = replace(
    PLAIN,
    extra="post_per_layer_input_norm",
    needs={**CAUSAL, **DENSE},
    note="after the FFN, each layer adds an embedding of the token to the stream, which isn't in mlp_out, and "
    "multiplies the stream by its layer_scalar",
    tiny={**PLAIN.tiny, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 320, **SHARED},
)
EXPERTS = replace(
    PLAIN,
    sites={**PLAIN.sites, "mlp_in": ("pre_feedforward_layernorm", "input")},
    needs={**CAUSAL, **NO_EMBEDDING, "enable_moe_block": (True,)},
    note=f"the FFN is a dense block plus experts, each with its own norm, so mlp_in is resid_mid; {RESCALED}",
    tiny={**PLAIN.tiny, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
)
UNIFIED = replace(
    PLAIN,
    needs=CAUSAL,
    tiny={**PLAIN.tiny, **SHARED},
)


def beside_images(row: Family, model_type: str) -> Family:
    """The row of the language model inside a model that also reads images and sound."""
    return replace(
        row,
        layers="model.language_model.layers",
        final_norm="model.language_model.norm",
        note=f"also reads images and sound, but only text is measured; {row.note}",
        model_type=model_type,
        nested="text_config",
    )


ROWS: dict[str, Family] = {
    "gemma4_text": EMBEDDED,
    "gemma4_text_plain": replace(PLAIN, model_type="gemma4_text"),
    "gemma4_text_experts": replace(EXPERTS, model_type="gemma4_text"),
    "gemma4": beside_images(EMBEDDED, "gemma4"),
    "gemma4_plain": beside_images(PLAIN, "gemma4"),
    "gemma4_experts": beside_images(EXPERTS, "gemma4"),
    "gemma4_unified_text": UNIFIED,
    "gemma4_unified": beside_images(UNIFIED, "gemma4_unified"),
}
