"""Rows of families whose FFN is a block of experts in some or all layers, other than Llama's and Qwen's."""

from dataclasses import replace

from internal_policy.models.family import Family
from internal_policy.models.rows.dense import OLMO2, SLIDING
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
JITTER = "; in training it multiplies what it reads by noise"

ROWS: dict[str, Family] = {
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
            "input_jitter_noise": 0.1,
            "sliding_window": 6,
        },
    ),
    "solar_open": replace(EXPERTS, tiny=GROUPED),
}
