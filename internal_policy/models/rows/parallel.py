"""Rows of families whose attention and FFN read the same stream and are added to it together."""

from dataclasses import replace

from internal_policy.models.family import Family
from internal_policy.models.rows.dense import NEOX_PARALLEL, PHI3, ROTATION, SLIDING, STABLELM
from internal_policy.models.rows.llama import EXPERTS, LLAMA

UNDROPPED = "in training, outputs are read before dropout"
PARALLEL = replace(
    LLAMA,
    sites={
        "resid_pre": ("", "input"),
        "attn_in": ("input_layernorm", "output"),
        "attn_out": ("self_attn", "output"),
        "mlp_in": ("mlp", "input"),
        "mlp_out": ("mlp", "output"),
        "resid_post": ("", "output"),
    },
    absent=NEOX_PARALLEL.absent,
)
COHERE = replace(PARALLEL, factor="logit_scale", tiny={"logit_scale": 0.25})
GPTJ = replace(
    PARALLEL,
    layers="transformer.h",
    final_norm="transformer.ln_f",
    sites={**PARALLEL.sites, "attn_in": ("ln_1", "output"), "attn_out": ("attn", "output")},
    note=PHI3.note,
    tiny={"rotary_dim": 4},
)
FALCON = replace(
    PARALLEL,
    layers="transformer.h",
    final_norm="transformer.ln_f",
    sites={**PARALLEL.sites, "attn_out": ("self_attention", "output")},
    overwritten=("mlp_out",),
    model_type="falcon",
    needs={
        "parallel_attn": (True,),
        "new_decoder_architecture": (False,),
        "hidden_dropout": (0.0,),
    },
    tiny={"multi_query": True, "head_dim": None},
)

ROWS: dict[str, Family] = {
    "cohere": COHERE,
    "cohere2": replace(COHERE, tiny={**COHERE.tiny, **SLIDING}),
    "cohere2_moe": replace(
        COHERE,
        note=EXPERTS.note,
        tiny={
            **COHERE.tiny,
            **SLIDING,
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "cohere_compass_text": replace(
        COHERE,
        tiny={
            **COHERE.tiny,
            **SLIDING,
            "rope_parameters": {"full_attention": None, "sliding_attention": ROTATION},
        },
    ),
    "stablelm_parallel": replace(
        PARALLEL,
        sites={**PARALLEL.sites, "mlp_out": ("dropout", "output")},
        note=STABLELM.note,
        model_type="stablelm",
        needs={"use_parallel_residual": (True,)},
        tiny={"use_parallel_residual": True},
    ),
    "phi": replace(PARALLEL, final_norm="model.final_layernorm", note=UNDROPPED, undropped=True),
    "gptj": GPTJ,
    "codegen": GPTJ,
    "falcon": FALCON,
    "falcon_two_norms": replace(
        FALCON,
        sites={**FALCON.sites, "attn_in": ("ln_attn", "output")},
        needs={**FALCON.needs, "new_decoder_architecture": (True,), "num_ln_in_parallel_attn": (2, None)},
        tiny={"head_dim": None, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon_one_norm": replace(
        FALCON,
        needs={**FALCON.needs, "new_decoder_architecture": (True,), "num_ln_in_parallel_attn": (1,)},
        tiny={"head_dim": None, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
}
