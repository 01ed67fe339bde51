"""Rows of models that also read images; only their language model is measured."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from internal_policy.models.family import Family
from internal_policy.models.rows.llama import EXPERTS, LLAMA, LLAMA4, MLLAMA, QWEN3_5, QWEN3_5_EXPERTS, QWEN_EXPERTS

TOWER: Mapping[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 28,
    "patch_size": 14,
}
"""The configuration of a tiny vision tower, by the names of CLIP."""
QWEN_TOWER: Mapping[str, Any] = {
    "depth": 1,
    "embed_dim": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_heads": 1,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
"""The same by Qwen's names."""


def reading(language: Family, tower: Mapping[str, Any], **tiny: Any) -> Family:
    """The row of a model whose language model has the row `language`, with a tiny vision tower.

    `tiny` are settings of the tiny language model, beside those of its row.
    """
    return replace(
        language,
        layers="model.language_model.layers",
        final_norm="model.language_model.norm",
        note="; ".join(filter(None, [language.note, "also reads images; only text is measured"])),
        tiny={**language.tiny, **tiny},
        nested="text_config",
        beside={"vision_config": tower},
    )


def any_llama(name: str) -> Family:
    """The row of a model whose language model may be of several families, all with Llama's modules."""
    families = ("llama", "mistral", "qwen2", "qwen3")
    return replace(reading(LLAMA, TOWER, model_type="llama"), needs={"model_type": families}, model_type=name)


def mrope(*sections: int) -> dict[str, Any]:
    """Parameters of a rotary embedding of time, height and width, which are the same in a text."""
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": list(sections)}


def thinker(language: Family, **tiny: Any) -> Family:
    """The row of the model inside Qwen's omni models that reads texts, images and sounds, and writes texts."""
    row = reading(language, QWEN_TOWER, **tiny, rope_parameters=mrope(1, 1, 2))
    sound = {"d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 1, "encoder_ffn_dim": 8, "output_dim": 32}
    note = row.note.replace("also reads images", "also reads images and sounds")
    # transformers reads this id from the configuration, but has no default for it
    return replace(row, note=note, beside={**row.beside, "audio_config": sound, "vision_start_token_id": 310})


ROWS: dict[str, Family] = {
    "qwen2_vl": reading(LLAMA, QWEN_TOWER, rope_parameters=mrope(1, 1, 2)),
    "qwen2_5_vl": reading(LLAMA, QWEN_TOWER, rope_parameters=mrope(1, 1, 2)),
    "qwen3_vl": reading(LLAMA, QWEN_TOWER, rope_parameters=mrope(2, 1, 1)),
    "qwen3_vl_moe": reading(EXPERTS, QWEN_TOWER, **QWEN_EXPERTS, rope_parameters=mrope(2, 1, 1)),
    "qwen2_5_omni_thinker": thinker(LLAMA),
    "qwen3_omni_moe_thinker": thinker(EXPERTS, **QWEN_EXPERTS),
    "qwen3_5": reading(QWEN3_5, QWEN_TOWER),
    "qwen3_5_moe": reading(QWEN3_5_EXPERTS, QWEN_TOWER),
    "llama4": replace(
        reading(LLAMA4, {**TOWER, "vision_output_dim": 8, "projector_input_dim": 8, "projector_output_dim": 8}),
        layers="language_model.model.layers",
        final_norm="language_model.model.norm",
    ),
    "mllama": reading(MLLAMA, TOWER),
    "llava": any_llama("llava"),
    "llava_next": any_llama("llava_next"),
    "llava_onevision": any_llama("llava_onevision"),
    "mistral3": any_llama("mistral3"),
    "internvl": any_llama("internvl"),
}
