"""Rows of families whose norms, dropout or branches are elsewhere than in Llama."""

from dataclasses import replace

from internal_policy.models.family import Family
from internal_policy.models.rows.llama import LLAMA

GEMMA = replace(
    LLAMA,
    sites={
        **LLAMA.sites,
        "attn_out": ("post_attention_layernorm", "output"),
        "resid_mid": ("pre_feedforward_layernorm", "input"),
        "mlp_in": ("pre_feedforward_layernorm", "output"),
        "mlp_out": ("post_feedforward_layernorm", "output"),
    },
    norms="both",
    tiny={"sliding_window": 6, "query_pre_attn_scalar": 8},
)
CAUSAL = {"use_bidirectional_attention": (False, None)}
"""Tokens must not see later tokens, or there would be nothing left to predict."""
GEMMA3 = replace(GEMMA, needs=CAUSAL, tiny={**GEMMA.tiny, "sliding_window_pattern": 2})
OLMO2 = replace(
    LLAMA,
    sites={
        **LLAMA.sites,
        "attn_in": ("", "input"),
        "attn_out": ("post_attention_layernorm", "output"),
        "resid_mid": ("mlp", "input"),
        "mlp_in": ("mlp", "input"),
        "mlp_out": ("post_feedforward_layernorm", "output"),
    },
    norms="after",
    note="attn_in is resid_pre, mlp_in is resid_mid",
)
PHI3 = replace(
    LLAMA,
    sites={**LLAMA.sites, "attn_out": ("resid_attn_dropout", "output"), "mlp_out": ("resid_mlp_dropout", "output")},
    note="outputs are read after dropout",
)
ROTATION = {"rope_type": "default", "rope_theta": 10_000.0}
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GPT2 = replace(
    LLAMA,
    layers="transformer.h",
    final_norm="transformer.ln_f",
    sites={
        **LLAMA.sites,
        "attn_in": ("ln_1", "output"),
        "attn_out": ("attn", "output"),
        "resid_mid": ("ln_2", "input"),
        "mlp_in": ("ln_2", "output"),
    },
    tiny={"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
)
NEOX = replace(
    LLAMA,
    layers="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    sites={
        **LLAMA.sites,
        "attn_out": ("post_attention_dropout", "output"),
        "mlp_out": ("post_mlp_dropout", "output"),
    },
    note=PHI3.note,
    model_type="gpt_neox",
    needs={"use_parallel_residual": (False,)},
    tiny={"use_parallel_residual": False},
)
NEOX_PARALLEL = replace(
    NEOX,
    sites={site: place for site, place in NEOX.sites.items() if site != "resid_mid"},
    absent={"resid_mid": "attention and FFN read the same stream and are added to it together"},
    needs={"use_parallel_residual": (True,)},
    tiny={},
)

GRANITE = replace(
    LLAMA,
    multiplier="residual_multiplier",
    divisor="logits_scaling",
    tiny={
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.22,
        "logits_scaling": 2.0,
    },
)
GLM4 = replace(
    LLAMA,
    sites={
        **LLAMA.sites,
        "attn_out": ("post_self_attn_layernorm", "output"),
        "mlp_out": ("post_mlp_layernorm", "output"),
    },
    norms="both",
)
LATENT = {
    "num_key_value_heads": 4,
    "head_dim": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
"""Sizes of multi-head latent attention."""
STABLELM = replace(
    LLAMA,
    sites={**LLAMA.sites, "mlp_out": ("dropout", "output")},
    note=PHI3.note,
    model_type="stablelm",
    needs={"use_parallel_residual": (False,)},
)

ROWS: dict[str, Family] = {
    "granite": GRANITE,
    "granite_swa": replace(GRANITE, tiny={**GRANITE.tiny, **SLIDING}),
    "hyperclovax": replace(
        GRANITE,
        sites={**LLAMA.sites, "attn_out": ("post_norm1", "output"), "mlp_out": ("post_norm2", "output")},
        norms="both",
        divisor=None,
        factor="logits_scaling",
        tiny={**GRANITE.tiny, "use_post_norm": True},
    ),
    "minicpm3": replace(
        LLAMA,
        multiplier="scale_depth",
        by_depth=True,
        divisor="logits_scaling",
        note="logits are divided after the unembedding instead of before, which may round differently",
        tiny={**LATENT, "scale_emb": 3.0, "scale_depth": 0.4, "dim_model_base": 16},
    ),
    "nanochat": replace(
        LLAMA,
        norm_first=True,
        cap="final_logit_softcapping",
        note="the final norm also normalizes the embedding",
        tiny={"final_logit_softcapping": 3.0},
    ),
    "glm4": replace(GLM4, tiny={"attention_bias": True}),
    "apertus": replace(
        LLAMA,
        sites={
            **LLAMA.sites,
            "attn_in": ("attention_layernorm", "output"),
            "resid_mid": ("feedforward_layernorm", "input"),
            "mlp_in": ("feedforward_layernorm", "output"),
        },
    ),
    "vaultgemma": replace(
        LLAMA,
        sites={
            **LLAMA.sites,
            "resid_mid": ("pre_feedforward_layernorm", "input"),
            "mlp_in": ("pre_feedforward_layernorm", "output"),
        },
        cap="final_logit_softcapping",
        tiny={**GEMMA.tiny, "final_logit_softcapping": 3.0},
    ),
    "jais2": LLAMA,
    "youtu": replace(LLAMA, tiny=LATENT),
    "stablelm": STABLELM,
    "persimmon": replace(LLAMA, final_norm="model.final_layernorm", sites=STABLELM.sites, note=PHI3.note),
    "phi4_multimodal": replace(
        PHI3,
        note=f"{PHI3.note}; also reads images and sound; only text is measured",
        tiny={
            "vision_config": {
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 1,
            },
            "audio_config": {
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_blocks": 2,
                "num_attention_heads": 1,
                "ext_pw_out_channel": 8,
                "depthwise_separable_out_channel": 8,
                "nemo_conv_channels": 8,
            },
        },
    ),
    "gemma2": replace(GEMMA, cap="final_logit_softcapping", tiny={**GEMMA.tiny, "final_logit_softcapping": 3.0}),
    "gemma3_text": replace(GEMMA3, cap="final_logit_softcapping", tiny={**GEMMA3.tiny, "final_logit_softcapping": 3.0}),
    "gemma3": replace(
        GEMMA3,
        layers="model.language_model.layers",
        final_norm="model.language_model.norm",
        note="also reads images; only text is measured",
        nested="text_config",
        beside={
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
    ),
    "olmo2": OLMO2,
    "olmo3": replace(OLMO2, tiny=SLIDING),
    "exaone4": replace(OLMO2, tiny=SLIDING),
    "arcee": replace(LLAMA, tiny={"attention_bias": True, "mlp_bias": True}),
    "bitnet": LLAMA,
    "cwm": replace(LLAMA, tiny={**SLIDING, "rope_parameters": ROTATION}),
    "diffllama": LLAMA,
    "ernie4_5": replace(LLAMA, tiny={"use_bias": True}),
    "gemma": replace(LLAMA, needs=CAUSAL),
    "glm": replace(LLAMA, tiny={"attention_bias": True}),
    "helium": LLAMA,
    "hunyuan_v1_dense": LLAMA,
    "internlm3": replace(LLAMA, tiny={"attention_bias": True, "mlp_bias": True}),
    "iquestcoder": LLAMA,
    "ministral": replace(LLAMA, tiny=SLIDING),
    "ministral3": replace(
        LLAMA,
        tiny={
            "sliding_window": 6,
            "rope_parameters": {
                **ROTATION,
                "llama_4_scaling_beta": 0.1,
                "original_max_position_embeddings": 4,
            },
        },
    ),
    "nemotron": LLAMA,
    "olmo": replace(LLAMA, tiny={"clip_qkv": 2.0}),
    "seed_oss": replace(
        LLAMA, note=PHI3.note, tiny={"residual_dropout": 0.5, "attention_dropout": 0.0, "attention_out_bias": True}
    ),
    "starcoder2": replace(LLAMA, note=PHI3.note, tiny={"residual_dropout": 0.5, "sliding_window": 6}),
    "phi3": PHI3,
    "gpt2": GPT2,
    "gpt_neox": NEOX_PARALLEL,
    "gpt_neox_sequential": NEOX,
}
