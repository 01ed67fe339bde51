"""A real configuration is made tiny without losing a feature."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from internal_policy.models.rows import FAMILIES
from internal_policy.models.shrink import shrunk
from internal_policy.models.tiny import EXACT, tiny_config

ALONE = [
    *(
        "bamba",
        "cohere_compass_text",
        "dbrx",
        "deepseek_v2",
        "dots1",
        "dots3_note",
        "emu3",
        "gemma3n",
        "gemma4_assistant",
    ),
    *(
        "gemma4_unified_assistant",
        "granitemoehybrid",
        "hunyuan_v1_dense",
        "hunyuan_v1_moe",
        "inkling2_text",
        "lfm2_moe",
    ),
    *(
        "ministral",
        "musicgen",
        "musicgen_melody",
        "nemotron",
        "qwen4_exp",
        "qwen4_exp_text",
        "reformer",
        "xglm",
        "xlnet",
    ),
    "xmod",
]
"""Types whose default configuration doesn't run in float64 either: it lacks a value, or needs a package."""
BROKEN = ["blt", "dots3_note_text", "hrm_text", "xlstm", "zamba"]
"""Types whose sizes have a relation that `shrunk` doesn't keep."""
SAMPLE = [
    "llama",
    "gpt2",
    "mistral",
    "qwen3_moe",
    "deepseek_v3",
    "gemma3",
    "mamba2",
    "jamba",
    "phi3",
    "gemma4_text",
    "bert",
]

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3-4B": (
        "qwen3",
        {
            "vocab_size": 151936,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "tie_word_embeddings": True,
        },
    ),
    "Llama-3.2-1B": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "max_position_embeddings": 131072,
            "bos_token_id": 128000,
            "eos_token_id": [128001, 128008, 128009],
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    "gpt-oss-20b": (
        "gpt_oss",
        {
            "vocab_size": 201088,
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": 24,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_local_experts": 32,
            "num_experts_per_tok": 4,
            "sliding_window": 128,
        },
    ),
    "gemma-3-1b": (
        "gemma3_text",
        {
            "vocab_size": 262144,
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "sliding_window": 512,
        },
    ),
    "DeepSeek-V3": ("deepseek_v3", {}),
    "Qwen2.5-0.5B": (
        "qwen2",
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "max_window_layers": 21,
            "tie_word_embeddings": True,
        },
    ),
    "Phi-3-mini-128k": (
        "phi3",
        {
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 48,
                "long_factor": [1.5] * 48,
            },
        },
    ),
}
"""Model -> its type, and published sizes."""


def run(config: PreTrainedConfig) -> torch.Tensor:
    """The logits of a random model for a short text."""
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, **EXACT).eval()
        assert sum(weight.numel() for weight in model.parameters()) < 12_000_000
        return model(torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]])).logits


def check(model_type: str) -> None:
    config = shrunk(AutoConfig.for_model(model_type))
    assert type(config).model_type == model_type
    assert run(config).isfinite().all()


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_default_configuration_runs_at_once(model_type):
    check(model_type)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {*ALONE, *BROKEN, "gpt-sw3"}))
def test_any_default_configuration_runs_at_once(model_type):
    check(model_type)


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_published_configuration_runs_at_once_and_stays_as_it_is(model):
    model_type, sizes = PUBLISHED[model]
    config = AutoConfig.for_model(model_type, **sizes)
    small = shrunk(config)
    run(small)
    assert small.num_hidden_layers <= 4
    assert small.hidden_size <= 128
    assert small.tie_word_embeddings == config.tie_word_embeddings
    assert shrunk(small).to_dict() == small.to_dict() | {"dtype": None}


def test_sizes_keep_their_relations():
    small = shrunk(AutoConfig.for_model("llama", **PUBLISHED["Llama-3.2-1B"][1]))
    assert small.hidden_size == small.num_attention_heads * small.head_dim
    assert small.num_attention_heads == 4 * small.num_key_value_heads
    assert small.intermediate_size == 4 * small.hidden_size
    rope = small.rope_parameters
    assert small.max_position_embeddings == 16 * rope["original_max_position_embeddings"]


def test_one_layer_of_each_kind_stays_in_order():
    small = shrunk(AutoConfig.for_model("deepseek_v3"))
    assert (small.num_hidden_layers, small.first_k_dense_replace) == (3, 1)
    small = shrunk(AutoConfig.for_model("gemma3_text", **PUBLISHED["gemma-3-1b"][1]))
    assert {*small.layer_types} == {"sliding_attention", "full_attention"}
    assert small.sliding_window == 6
    small = shrunk(AutoConfig.for_model("jamba"))
    assert small.attn_layer_offset < small.attn_layer_period <= small.num_hidden_layers
    small = shrunk(AutoConfig.for_model("qwen2", **PUBLISHED["Qwen2.5-0.5B"][1], use_sliding_window=True))
    assert small.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]


def test_settings_of_single_layers_stay_with_their_layers():
    config = AutoConfig.for_model("gemma4_text")
    small = shrunk(config)
    wide = [each.head_dim for each in small.per_layer_config]
    assert [kind == "full_attention" for kind in small.layer_types] == [width == max(wide) for width in wide]


def test_special_tokens_are_inside_the_vocabulary_and_out_of_the_way():
    small = shrunk(AutoConfig.for_model("llama", **PUBLISHED["Llama-3.2-1B"][1]))
    special = [small.bos_token_id, *small.eos_token_id]
    assert all(256 <= token < small.vocab_size for token in special)
    assert len({*special}) == 4


def test_a_quantized_configuration_becomes_plain():
    assert not hasattr(
        shrunk(AutoConfig.for_model("llama", quantization_config={"quant_method": "fp8"})), "quantization_config"
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "deepseek_v3", "gemma3"])
def test_a_small_configuration_stays_as_it_is(name):
    config = tiny_config(name)
    small = shrunk(config)
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    text, other = config.get_text_config(), small.get_text_config()
    assert [getattr(other, size) for size in sizes] == [getattr(text, size) for size in sizes]
    assert name in FAMILIES
