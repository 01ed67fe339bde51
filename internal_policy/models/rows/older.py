"""Rows of families from before Llama whose attention and FFN follow each other."""

from dataclasses import replace

from internal_policy.models.family import Family
from internal_policy.models.rows.dense import GPT2, PHI3
from internal_policy.models.rows.llama import EXPERTS, LLAMA
from internal_policy.models.rows.parallel import FALCON, UNDROPPED

BLOOM = replace(
    LLAMA,
    layers="transformer.h",
    final_norm="transformer.ln_f",
    sites={
        **LLAMA.sites,
        "attn_out": ("self_attention.dense", "output"),
        "mlp_out": ("mlp.dense_4h_to_h", "output"),
    },
    needs={
        "apply_residual_connection_post_layernorm": (False,),
        "slow_but_exact": (False,),
        "hidden_dropout": (0.0,),
    },
)
BIOGPT = replace(
    LLAMA,
    layers="biogpt.layers",
    final_norm="biogpt.layer_norm",
    sites={
        "resid_pre": ("", "input"),
        "attn_in": ("self_attn_layer_norm", "output"),
        "attn_out": ("self_attn", "output"),
        "resid_mid": ("final_layer_norm", "input"),
        "mlp_in": ("final_layer_norm", "output"),
        "mlp_out": ("fc2", "output"),
        "resid_post": ("", "output"),
    },
    note=UNDROPPED,
    undropped=True,
    tiny={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
)

ROWS: dict[str, Family] = {
    "gpt_neo": replace(
        GPT2,
        note=PHI3.note,
        tiny={"attention_types": [[["global", "local", "global"], 1]], "window_size": 6},
    ),
    "gpt_bigcode": replace(GPT2, note=PHI3.note),
    "bloom": BLOOM,
    "mpt": replace(
        LLAMA,
        layers="transformer.blocks",
        final_norm="transformer.norm_f",
        sites={
            **LLAMA.sites,
            "attn_in": ("norm_1", "output"),
            "attn_out": ("resid_attn_dropout", "output"),
            "resid_mid": ("norm_2", "input"),
            "mlp_in": ("norm_2", "output"),
            "mlp_out": ("ffn.down_proj", "output"),
        },
        note=UNDROPPED,
        undropped=True,
    ),
    "falcon_sequential": replace(
        FALCON,
        sites={**LLAMA.sites, "attn_out": ("self_attention", "output")},
        absent={},
        needs={
            "parallel_attn": (False,),
            "new_decoder_architecture": (False,),
            "hidden_dropout": (0.0,),
            "attention_dropout": (0.0,),
        },
        tiny={"head_dim": None, "parallel_attn": False, "alibi": True, "multi_query": False, "bias": True},
    ),
    "biogpt": BIOGPT,
    "xglm": replace(
        BIOGPT,
        layers="model.layers",
        final_norm="model.layer_norm",
        tiny={"dropout": 0.0, "attention_dropout": 0.0, "ffn_dim": 48, "dtype": "float32"},
    ),
    "opt": replace(
        BIOGPT,
        layers="model.decoder.layers",
        final_norm="model.decoder.final_layer_norm",
        flat=("resid_mid", "mlp_in", "mlp_out"),
        needs={"do_layer_norm_before": (True,), "_remove_final_layer_norm": (False,)},
        tiny={"dropout": 0.0, "ffn_dim": 48, "word_embed_proj_dim": 32},
    ),
    "ctrl": replace(
        LLAMA,
        layers="transformer.h",
        final_norm="transformer.layernorm",
        sites={
            **LLAMA.sites,
            "attn_in": ("layernorm1", "output"),
            "attn_out": ("dropout1", "output"),
            "resid_mid": ("layernorm2", "input"),
            "mlp_in": ("layernorm2", "output"),
            "mlp_out": ("dropout2", "output"),
        },
        note=PHI3.note,
        tiny={"dff": 48},
    ),
    "dbrx": replace(
        LLAMA,
        layers="transformer.blocks",
        final_norm="transformer.norm_f",
        sites={
            **LLAMA.sites,
            "attn_in": ("norm_attn_norm.norm_1", "output"),
            "attn_out": ("norm_attn_norm.attn", "output"),
            "resid_mid": ("norm_attn_norm.norm_2", "input"),
            "mlp_in": ("norm_attn_norm.norm_2", "output"),
            "mlp_out": ("ffn", "output"),
        },
        note=EXPERTS.note,
        needs={"resid_pdrop": (0.0,)},
        tiny={
            "hidden_size": None,
            "d_model": 32,
            "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 2.0},
        },
    ),
}
