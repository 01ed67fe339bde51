"""Rows of families whose FFN is a block of experts in some or all layers, other than Llama's and Qwen's."""

from dataclasses import replace

from internal_policy.models.family import Family
from internal_policy.models.rows.dense import GLM4, GRANITE, LATENT, OLMO2, SLIDING
from internal_policy.models.rows.llama import EXPERTS

SPARSE = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
GROUPED = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
}
"""Experts in groups, as in DeepSeek V3."""
INDEXED = {"index_topk": 4, "index_n_heads": 16, "index_head_dim": 8}
"""Attention that reads few tokens, chosen by an index; with fewer heads, many tokens would tie."""
JITTER = "; in training it multiplies what it reads by noise"

GRANITE_EXPERTS = replace(
    GRANITE,
    sites={**GRANITE.sites, "mlp_out": ("block_sparse_moe", "output")},
    note=EXPERTS.note,
    tiny={**GRANITE.tiny, "num_local_experts": 4, "num_experts_per_tok": 2},
)
GRANITE_SHARED = replace(
    GRANITE_EXPERTS,
    sites={**GRANITE.sites, "mlp_out": ("block_sparse_moe+shared_mlp", "output")},
    note="the FFN is the block of experts and the MLP that all tokens share",
    tiny={**GRANITE_EXPERTS.tiny, "shared_intermediate_size": 16},
)

ROWS: dict[str, Family] = {
    "afmoe": replace(
        EXPERTS,
        sites={
            **EXPERTS.sites,
            "attn_out": ("post_attention_layernorm", "output"),
            "resid_mid": ("pre_mlp_layernorm", "input"),
            "mlp_in": ("pre_mlp_layernorm", "output"),
            "mlp_out": ("post_mlp_layernorm", "output"),
        },
        norms="both",
        tiny={
            **SLIDING,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_dense_layers": 1,
            "moe_intermediate_size": 16,
            "mup_enabled": True,
            "num_shared_experts": 1,
        },
    ),
    "granitemoe": GRANITE_EXPERTS,
    "granitemoeshared": GRANITE_SHARED,
    "granitemoe_swa": GRANITE_EXPERTS,
    "jetmoe": replace(
        EXPERTS,
        sites={**EXPERTS.sites, "attn_out": ("self_attention", "output")},
        tiny={"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8},
    ),
    "dots1": replace(EXPERTS, tiny={**GROUPED, **SLIDING, "first_k_dense_replace": 1}),
    "glm4_moe_lite": replace(EXPERTS, tiny={**GROUPED, **SPARSE, **LATENT}),
    "glm_moe_dsa": replace(
        EXPERTS,
        tiny={
            **GROUPED,
            **SPARSE,
            **LATENT,
            **INDEXED,
        },
    ),
    "deepseek_v32": replace(
        EXPERTS,
        tiny={
            **GROUPED,
            **SPARSE,
            **LATENT,
            **INDEXED,
        },
    ),
    "axk1": replace(EXPERTS, tiny={**GROUPED, **SPARSE, **LATENT}),
    "axk2": replace(EXPERTS, tiny={**GROUPED, **SPARSE, **LATENT}),
    "laguna": replace(
        EXPERTS, tiny={**SPARSE, **SLIDING, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    ),
    "kolibri1": replace(
        GLM4, note=EXPERTS.note, tiny={"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    ),
    "flint": replace(
        EXPERTS, tiny={"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [0]}
    ),
    "minimax_m3_vl_text": replace(
        EXPERTS,
        tiny={
            **SPARSE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "dense_intermediate_size": 48,
            "shared_intermediate_size": 16,
            "rotary_dim": 4,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_block_size": 2,
            "index_topk_blocks": 2,
        },
    ),
    "dots3_note_text": replace(
        EXPERTS,
        tiny={
            **SPARSE,
            **GROUPED,
            **LATENT,
            **INDEXED,
            "shared_experts_intermediate_size": 16,
            "sliding_window": 6,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 4,
            "swa_q_lora_rank": 12,
            "swa_kv_lora_rank": 8,
            "swa_head_dim": 12,
            "swa_qk_nope_head_dim": 8,
            "swa_v_head_dim": 8,
        },
    ),
    "aria_text": replace(EXPERTS, tiny={"moe_num_experts": 4, "moe_num_shared_experts": 1}),
    "ernie4_5_moe": replace(
        EXPERTS,
        tiny={
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_num_shared_experts": 1,
            "moe_intermediate_size": 16,
            "moe_layer_end_index": 2,
        },
    ),
    "exaone_moe": replace(
        EXPERTS,
        tiny={
            **SPARSE,
            **SLIDING,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_shared_experts": 1,
            "moe_intermediate_size": 16,
        },
    ),
    "flex_olmo": replace(
        OLMO2, note=f"{OLMO2.note}; {EXPERTS.note}", tiny={"num_experts": 4, "num_experts_per_tok": 2}
    ),
    "glm4_moe": replace(EXPERTS, tiny={**GROUPED, "first_k_dense_replace": 1, "use_qk_norm": True}),
    "hunyuan_v1_moe": replace(EXPERTS, tiny={"num_experts": 4, "moe_topk": 2}),
    "hy_v3": replace(
        EXPERTS,
        tiny={
            **SPARSE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_shared_experts": 1,
            "moe_intermediate_size": 16,
        },
    ),
    "mellum": replace(
        EXPERTS,
        tiny={**SPARSE, **SLIDING, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "mimo_v2_flash": replace(EXPERTS, tiny={**SPARSE, **SLIDING, **GROUPED, "v_head_dim": 4}),
    "minimax_m2": replace(
        EXPERTS,
        note=f"{EXPERTS.note}{JITTER}",
        tiny={"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.1},
    ),
    "olmoe": replace(EXPERTS, tiny={"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 2.0}),
    "phimoe": replace(
        EXPERTS,
        note=f"{EXPERTS.note}{JITTER}",
        tiny={
            "num_local_experts": 4,
            "attention_bias": True,
            "lm_head_bias": True,
            "input_jitter_noise": 0.1,
            "sliding_window": 6,
        },
    ),
    "solar_open": replace(EXPERTS, tiny=GROUPED),
}
