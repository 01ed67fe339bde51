"""Rows of the Llama and Qwen families, and of those with the same modules."""

from dataclasses import replace

from internal_policy.models.family import Family

LLAMA = Family(
    layers="model.layers",
    final_norm="model.norm",
    sites={
        "resid_pre": ("", "input"),
        "attn_in": ("input_layernorm", "output"),
        "attn_out": ("self_attn", "output"),
        "resid_mid": ("post_attention_layernorm", "input"),
        "mlp_in": ("post_attention_layernorm", "output"),
        "mlp_out": ("mlp", "output"),
        "resid_post": ("", "output"),
    },
    norms="before",
)
EXPERTS = replace(LLAMA, note="the FFN is the block of experts")
QWEN_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DEEPSEEK = replace(
    EXPERTS,
    tiny={
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
    },
)
QWEN3_5 = replace(
    LLAMA,
    kinds={"linear_attention": {**LLAMA.sites, "attn_out": ("linear_attn", "output")}},
    note="the attention of most layers is linear: a gated delta net",
    tiny={
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
)
QWEN3_5_EXPERTS = replace(
    QWEN3_5,
    note=f"{QWEN3_5.note}, and the FFN is the block of experts",
    tiny={**QWEN3_5.tiny, **QWEN_EXPERTS, "shared_expert_intermediate_size": 16},
)
LLAMA4 = replace(
    LLAMA,
    sites={**LLAMA.sites, "mlp_out": ("feed_forward", "output")},
    note="the FFN of some layers is the block of experts",
    tiny={
        "num_local_experts": 4,
        "intermediate_size_mlp": 48,
        "moe_layers": [1],
        "no_rope_layers": [1, 0, 1],
        "attention_chunk_size": 4,
        "floor_scale": 4,
        "attn_scale": 2.0,
    },
)
MLLAMA = replace(
    LLAMA,
    kinds={"cross_attention": {}},
    kind="cross_attention_layers",
    absent=dict.fromkeys(LLAMA.sites, "the layers that read images are skipped in a text without any"),
    note="the layers that read images are skipped",
    tiny={"cross_attention_layers": [1]},
)

ROWS: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "smollm3": LLAMA,
    "qwen2_moe": replace(EXPERTS, tiny={**QWEN_EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3_moe": replace(EXPERTS, tiny=QWEN_EXPERTS),
    "mixtral": replace(EXPERTS, tiny={"num_local_experts": 4}),
    "gpt_oss": replace(
        EXPERTS,
        tiny={
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    ),
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "qwen3_next": QWEN3_5_EXPERTS,
    "qwen3_5_text": QWEN3_5,
    "qwen3_5_moe_text": QWEN3_5_EXPERTS,
    "llama4_text": LLAMA4,
}
