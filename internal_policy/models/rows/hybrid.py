"""Rows of hybrids and state-space models, whose layers have a Mamba block, a convolution or linear attention.

Such a block mixes tokens like attention does, so it is read as the attention of its layer.
"""

from collections.abc import Mapping
from dataclasses import replace

from internal_policy.models.family import Family, Place
from internal_policy.models.rows.dense import OLMO2
from internal_policy.models.rows.llama import DEEPSEEK, LLAMA

LINEAR = ["linear_attention", "full_attention", "linear_attention"]
MAMBA_SIZES = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 4}
MIXED = "the attention of most layers is a Mamba block"


def named(attention: str, ffn: str, norms: tuple[str, str]) -> Mapping[str, Place]:
    """The sites of a layer with Llama's order and other module names; `norms` come before attention and FFN."""
    before_attention, before_ffn = norms
    return {
        "resid_pre": ("", "input"),
        "attn_in": (before_attention, "output"),
        "attn_out": (attention, "output"),
        "resid_mid": (before_ffn, "input"),
        "mlp_in": (before_ffn, "output"),
        "mlp_out": (ffn, "output"),
        "resid_post": ("", "output"),
    }


def alone(attention: str, norm: str) -> Mapping[str, Place]:
    """The sites of a layer that has attention but no FFN."""
    return {
        "resid_pre": ("", "input"),
        "attn_in": (norm, "output"),
        "attn_out": (attention, "output"),
        "resid_post": ("", "output"),
    }


GRANITE = ("input_layernorm", "post_attention_layernorm")
GRANITE_DENSE = replace(
    LLAMA,
    sites=named("self_attn", "shared_mlp", GRANITE),
    kinds={"linear_attention": named("mamba", "shared_mlp", GRANITE)},
    multiplier="residual_multiplier",
    divisor="logits_scaling",
    model_type="granitemoehybrid",
    needs={"num_local_experts": (0,)},
    note=MIXED,
    tiny={
        **MAMBA_SIZES,
        "layer_types": LINEAR,
        "num_local_experts": 0,
        "shared_intermediate_size": 48,
        "position_embedding_type": "rope",
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.22,
        "logits_scaling": 2.0,
    },
)
GRANITE_EXPERTS = replace(
    GRANITE_DENSE,
    sites=named("self_attn", "block_sparse_moe+shared_mlp", GRANITE),
    kinds={"linear_attention": named("mamba", "block_sparse_moe+shared_mlp", GRANITE)},
    needs={},
    note=f"{MIXED}; the FFN is the experts plus a shared block",
    tiny={**GRANITE_DENSE.tiny, "num_local_experts": 4, "num_experts_per_tok": 2},
)

JAMBA_NORMS = ("input_layernorm", "pre_ff_layernorm")
JAMBA = replace(
    LLAMA,
    final_norm="model.final_layernorm",
    sites=named("self_attn", "feed_forward", JAMBA_NORMS),
    kinds={"linear_attention": named("mamba", "feed_forward", JAMBA_NORMS)},
    note=f"{MIXED}; the FFN of some layers is the block of experts",
    cache="",
    tiny={
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
)
BAMBA = replace(JAMBA, note=MIXED, tiny={**MAMBA_SIZES, "mamba_n_groups": 1, "attn_layer_indices": [1]})
FALCON_H1 = replace(
    JAMBA,
    sites=named("mamba*ssm_out_multiplier+self_attn*attention_out_multiplier", "feed_forward", JAMBA_NORMS),
    kinds={},
    cache=LLAMA.cache,
    factor="lm_head_multiplier",
    note="attention is the sum of an attention and a Mamba block, each multiplied by a number",
    tiny={
        **MAMBA_SIZES,
        "mamba_n_groups": 1,
        "mamba_d_ssm": 64,
        "ssm_in_multiplier": 1.2,
        "ssm_multipliers": [0.9, 0.8, 0.7, 0.6, 0.5],
        "ssm_out_multiplier": 0.3,
        "attention_in_multiplier": 1.3,
        "attention_out_multiplier": 0.7,
        "key_multiplier": 0.7,
        "mlp_multipliers": [0.7, 0.6],
        "embedding_multiplier": 3.0,
        "lm_head_multiplier": 0.4,
    },
)

EITHER = {
    "resid_pre": ("", "input"),
    "mlp_in": ("norm", "output"),
    "mlp_out": ("mixer", "output"),
    "resid_post": ("", "output"),
}
NEMOTRON = replace(
    LLAMA,
    final_norm="model.norm_f",
    sites=alone("mixer", "norm"),
    kinds=dict.fromkeys(("mlp", "moe"), EITHER),
    absent=dict.fromkeys(
        ("attn_in", "attn_out", "resid_mid", "mlp_in", "mlp_out"),
        "each of its layers is either attention, a Mamba block or an FFN",
    ),
    note="a Mamba block counts as attention",
    tiny={
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "chunk_size": 4,
        "n_groups": 2,
        "n_routed_experts": 4,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
    },
)
MAMBA = replace(
    LLAMA,
    layers="backbone.layers",
    final_norm="backbone.norm_f",
    sites=alone("mixer", "norm"),
    absent=dict.fromkeys(
        ("resid_mid", "mlp_in", "mlp_out"), "its layers have no FFN, only a Mamba block, which is read as attention"
    ),
    note="with residual_in_fp32, the stream is in float32 whatever the weights",
    cache="",
    tiny={"residual_in_fp32": False, "state_size": 8, "time_step_rank": 4, "intermediate_size": 64},
)
MAMBA2 = replace(
    MAMBA, cache="cache_params", tiny={**MAMBA.tiny, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 4}
)
ZAMBA = replace(
    MAMBA,
    layers="model.layers",
    final_norm="model.final_layernorm",
    sites=alone("mamba", "input_layernorm"),
    kinds={"hybrid": alone("mamba_decoder.mamba", "mamba_decoder.input_layernorm")},
    absent=dict.fromkeys(MAMBA.absent, "its layers only add a Mamba block to the stream, which is read as attention"),
    note="in hybrid layers the Mamba block also reads the shared transformer block, which isn't added to the stream",
    tiny={
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "n_mamba_heads": 2,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
)
ZAMBA2 = replace(
    ZAMBA,
    cache=LLAMA.cache,
    tiny={
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "hybrid_layer_ids": [1, 2],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "num_query_groups": 4,
        "kv_channels": 8,
        "n_mamba_heads": 4,
        "mamba_d_state": 8,
        "mamba_ngroups": 1,
        "chunk_size": 4,
        "use_mem_rope": True,
        "use_shared_attention_adapter": True,
        "adapter_rank": 4,
    },
)

LFM_NORMS = ("operator_norm", "ffn_norm")
LFM2 = replace(
    LLAMA,
    final_norm="model.embedding_norm",
    sites=named("self_attn", "feed_forward", LFM_NORMS),
    kinds={"conv": named("conv", "feed_forward", LFM_NORMS)},
    note="the attention of most layers is a short convolution",
    tiny={"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
)
LFM2_EXPERTS = replace(
    LFM2,
    note=f"{LFM2.note}, and the FFN of most layers is the block of experts",
    tiny={
        "layer_types": ["conv", "full_attention", "conv"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "num_dense_layers": 1,
    },
)
LFM3 = replace(
    LFM2,
    sites=named("post_operator_norm", "post_ffn_norm", LFM_NORMS),
    kinds={},
    norms="both",
    tiny={"layer_types": ["conv", "full_attention", "sliding_attention"], "sliding_window": 6},
)

KIMI = replace(
    DEEPSEEK,
    note="the attention of most layers is linear: a gated delta net; the FFN of most is the block of experts",
    tiny={
        "layer_types": LINEAR,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "model_max_length": 512,
        "num_key_value_heads": 4,
        "head_dim": 4,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "num_experts": 4,
        "num_experts_per_token": 2,
        "num_expert_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
    },
)
OLMO_HYBRID = replace(
    OLMO2,
    kinds={"linear_attention": named("linear_attn", "mlp", ("input_layernorm", "post_attention_layernorm"))},
    norms="both",
    note="linear attention (a gated delta net) and its FFN have norms before them; in layers with full attention, "
    "norms come after, so attn_in is resid_pre and mlp_in is resid_mid",
    tiny={
        "layer_types": LINEAR,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
)
RECURRENT_GEMMA = replace(
    LLAMA,
    final_norm="model.final_norm",
    sites=named("temporal_block", "mlp_block", ("temporal_pre_norm", "channel_pre_norm")),
    cap="logits_soft_cap",
    note="the attention of most layers is a gated linear recurrence",
    cache="",
    together="equally long",
    tiny={"attention_window_size": 6, "lru_width": 32, "logits_soft_cap": 3.0},
)
RWKV = replace(
    LLAMA,
    layers="rwkv.blocks",
    final_norm="rwkv.ln_out",
    sites={**named("attention", "feed_forward", ("ln1", "ln2")), "resid_pre": ("ln1", "input")},
    needs={"rescale_every": (0,)},
    note="resid_pre of layer 0 is the normalized embedding",
    cache="",
    together="never",
    tiny={"rescale_every": 0, "attention_hidden_size": 32, "context_length": 512},
)
XLSTM = replace(
    LLAMA,
    layers="backbone.blocks",
    final_norm="backbone.out_norm",
    sites=named("mlstm_layer", "ffn", ("norm_mlstm", "norm_ffn")),
    cap="output_logit_soft_cap",
    note="attention is an mLSTM, a linear recurrence with a matrix as its state",
    cache="",
    together="equally long",
    tiny={"hidden_size": 128, "embedding_dim": 128, "num_blocks": 3, "num_heads": 2, "output_logit_soft_cap": 3.0},
)

ROWS: dict[str, Family] = {
    "granitemoehybrid": GRANITE_EXPERTS,
    "granitemoehybrid_dense": GRANITE_DENSE,
    "jamba": JAMBA,
    "bamba": BAMBA,
    "falcon_h1": FALCON_H1,
    "nemotron_h": NEMOTRON,
    "mamba": MAMBA,
    "falcon_mamba": MAMBA,
    "mamba2": MAMBA2,
    "zamba": ZAMBA,
    "zamba2": ZAMBA2,
    "lfm2": LFM2,
    "lfm2_moe": LFM2_EXPERTS,
    "lfm3": LFM3,
    "kimi_linear": KIMI,
    "bailing_hybrid": replace(KIMI, tiny={**KIMI.tiny, "q_lora_rank": 12}),
    "olmo_hybrid": OLMO_HYBRID,
    "recurrent_gemma": RECURRENT_GEMMA,
    "rwkv": RWKV,
    "xlstm": XLSTM,
}
