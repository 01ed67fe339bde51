"""Where each model family keeps its residual stream: one row of data per family."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from torch import nn
from torch._dynamo import OptimizedModule
from transformers import PreTrainedConfig, PreTrainedModel

from internal_policy.errors import InputError
from internal_policy.measure.transform import LogitTransform

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Family:
    """Where a Hugging Face causal language model keeps its modules, and how its configuration changes their states."""

    layers: str
    """The list of decoder layers."""
    final_norm: str
    """The norm between the last layer and the unembedding."""
    sites: Mapping[str, tuple[str, Side]]
    """Site -> (module inside the decoder layer, its side), in the order of a forward pass; "" is the layer itself.

    `attn_in` and `mlp_in` are what the module reads; `attn_out` and `mlp_out` are what is added to the stream.
    """
    norms: Literal["before", "after", "both"]
    """Whether a layer normalizes a module's input, its output, or both."""
    note: str = ""
    """What else is special about this family, in words."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Site that the family lacks -> the reason."""
    multiplier: str | None = None
    """Configuration attribute that multiplies `attn_out` and `mlp_out` before they are added to the stream."""
    divisor: str | None = None
    """Configuration attribute that divides the logits."""
    cap: str | None = None
    """Configuration attribute that caps the logits; they aren't capped if its value is None."""
    model_type: str | None = None
    """`config.model_type`, if it isn't the row's own name."""
    needs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Configuration attribute -> the values that the row supports."""


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
)
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
)
NEOX_PARALLEL = replace(
    NEOX,
    sites={site: place for site, place in NEOX.sites.items() if site != "resid_mid"},
    absent={"resid_mid": "attention and FFN read the same stream and are added to it together"},
    needs={"use_parallel_residual": (True,)},
)

CAUSAL = {"use_bidirectional_attention": (False, None)}
"""Tokens must not see later tokens, or there would be nothing left to predict."""

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "smollm3": LLAMA,
    "qwen2_moe": EXPERTS,
    "qwen3_moe": EXPERTS,
    "mixtral": EXPERTS,
    "gpt_oss": EXPERTS,
    "deepseek_v2": EXPERTS,
    "deepseek_v3": EXPERTS,
    "granite": replace(LLAMA, multiplier="residual_multiplier", divisor="logits_scaling"),
    "gemma2": replace(GEMMA, cap="final_logit_softcapping"),
    "gemma3_text": replace(GEMMA, cap="final_logit_softcapping", needs=CAUSAL),
    "gemma3": replace(
        GEMMA,
        layers="model.language_model.layers",
        final_norm="model.language_model.norm",
        note="also reads images; only text is measured",
        needs=CAUSAL,
    ),
    "olmo2": OLMO2,
    "olmo3": OLMO2,
    "phi3": PHI3,
    "gpt2": GPT2,
    "gpt_neox": NEOX_PARALLEL,
    "gpt_neox_sequential": NEOX,
}
"""Name of a row, which is its `config.model_type` unless the row gives another -> the row.

`internal-policy families` and tests/models/test_families.py prove every row on a tiny random model from `proofs`.
A model's name doesn't tell its family: DeepSeek-Math-7B and DeepSeek-R1-Distill-Llama-8B are llama,
DeepSeek-R1-Distill-Qwen-7B is qwen2, and Pythia is gpt_neox.
"""

ADAPTERS = frozenset(["LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "HRA", "LN_TUNING", "VERA", "FOURIERFT"])
"""Types of adapters that only change the model's modules, which makes its own forward pass the adapted one.

tests/models/test_adapters.py proves each. Other types prepend tokens to the text, or choose what to add in each pass.
"""


def family_of(config: PreTrainedConfig) -> Family:
    """The row for a model with this configuration. Raises InputError if there is none."""
    rows = [row for name, row in FAMILIES.items() if (row.model_type or name) == config.model_type]
    if not rows:
        known = sorted({row.model_type or name for name, row in FAMILIES.items()})
        raise InputError(
            f"Unknown model family '{config.model_type}'. Known families are {', '.join(known)}. "
            "To support it, add a row to FAMILIES in internal_policy/models/families.py."
        )
    text = config.get_text_config()
    for row in rows:
        if all(getattr(text, name) in values for name, values in row.needs.items()):
            return row
    values = ", ".join(f"{name} {getattr(text, name)}" for name in rows[0].needs)
    raise InputError(
        f"{config.model_type} with {values} isn't supported. Add a row to FAMILIES in "
        "internal_policy/models/families.py."
    )


def sites_of(config: PreTrainedConfig) -> tuple[str, ...]:
    """The sites of a model with this configuration, in the order a forward pass reaches them."""
    return tuple(family_of(config).sites)


def place(config: PreTrainedConfig, site: str) -> tuple[str, Side]:
    """The module of a decoder layer at `site`, and its side. Raises InputError for a site that the family lacks."""
    family = family_of(config)
    if site in family.absent:
        raise InputError(
            f"{config.model_type} has no {site} because {family.absent[site]}. Its sites are {', '.join(family.sites)}."
        )
    return family.sites[site]


def multiplier(config: PreTrainedConfig, site: str) -> float:
    """What the state at `site` is multiplied by before it is added to the stream; 1 if it isn't."""
    name = family_of(config).multiplier
    return float(getattr(config.get_text_config(), name)) if name and site in ("attn_out", "mlp_out") else 1.0


def logit_transform(model: nn.Module) -> LogitTransform:
    """How a loaded model divides or caps its logits."""
    config = inside(model).config
    family, text = family_of(config), config.get_text_config()
    cap = getattr(text, family.cap) if family.cap else None
    return LogitTransform(
        divisor=float(getattr(text, family.divisor)) if family.divisor else 1.0, cap=None if cap is None else float(cap)
    )


def inside(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside a PEFT wrapper, with its adapters in place; any other model is returned unchanged.

    Raises InputError for adapters that change more than the model's modules, such as prompt tuning.
    """
    if not _of_peft(model):
        return cast(PreTrainedModel, model)
    wrapper = cast(Any, model)
    check_adapters(wrapper.peft_config)
    return wrapper.base_model.model


def check_adapters(configs: Mapping[str, Any]) -> None:
    """Raise InputError for the first adapter that changes more than the modules of its model."""
    for name, config in configs.items():
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        activated = getattr(config, "alora_invocation_tokens", None) is not None
        if kind not in ADAPTERS or activated:
            raise InputError(
                f"The adapter '{name}' is {'an activated LoRA' if activated else kind}, which can't be read layer by "
                f"layer. Use one of {', '.join(sorted(ADAPTERS))}, or use the model without the adapter."
            )


def backbone(model: nn.Module) -> nn.Module:
    """The module of a loaded model that runs the decoder layers and the final norm. Raises InputError."""
    model = inside(model)
    return part(model, family_of(model.config).layers.rpartition(".")[0])


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a loaded model, first to last. Raises InputError."""
    model = inside(model)
    layers = part(model, path := family_of(model.config).layers)
    if not isinstance(layers, nn.ModuleList):
        raise InputError(
            f"{path} of this {type(model).__name__} is a {type(layers).__name__}, but internal policies need a "
            "torch.nn.ModuleList of decoder layers. Load the model with AutoModelForCausalLM."
        )
    return layers


def final_norm(model: nn.Module) -> nn.Module:
    """The norm between the last layer and the unembedding of a loaded model. Raises InputError."""
    model = inside(model)
    return part(model, family_of(model.config).final_norm)


def part(module: nn.Module, path: str) -> nn.Module:
    """The module at `path` inside another. Raises InputError if there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        raise InputError(
            f"This {type(module).__name__} has no module {path}. Load the whole model with AutoModelForCausalLM."
        ) from error


def unembedding(model: nn.Module) -> nn.Linear:
    """The unembedding of a loaded model: its weight is (d_vocab, d_model), with any adapter merged into it.

    Raises InputError for an adapter that isn't merged, and for a bias; see `weight_alone`.
    """
    return weight_alone(_unwrapped(_output(model)))


def to_logits(model: nn.Module) -> nn.Module:
    """The module that computes logits: the unembedding with its adapters. Raises InputError."""
    module = _output(model)
    return module if _of_peft(module) else weight_alone(module)


def _output(model: nn.Module) -> nn.Module:
    module = inside(model).get_output_embeddings()
    if module is None:
        raise InputError("This model has no unembedding. Load it with AutoModelForCausalLM.")
    # accelerate's compile_regions compiles it by itself
    return cast(nn.Module, module._orig_mod) if isinstance(module, OptimizedModule) else module


def weight_alone(module: nn.Module) -> nn.Linear:
    """The unembedding, if it is a plain (d_vocab, d_model) matrix without a bias.

    Raises InputError otherwise, for example if it is quantized, which packs its weight. A bias of 0 counts as none,
    because TransformerLens gives every unembedding one.
    """
    if not isinstance(module, nn.Linear) or module.weight.shape != (module.out_features, module.in_features):
        raise InputError(
            f"The unembedding is a {type(module).__name__} whose weight isn't one plain matrix. Load the model "
            "without quantizing, sharding or adapting its unembedding (lm_head)."
        )
    if module.bias is not None and (module.bias.is_meta or module.bias.any()):
        raise InputError("The unembedding has a bias, which isn't supported. Use a model without one.")
    return module


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module that holds the weight in use inside an adapted module, such as the active copy of `modules_to_save`.

    Raises InputError for an adapter that isn't merged into that weight.
    """
    if not _of_peft(module):
        return module
    from peft.utils import ModulesToSaveWrapper

    wrapper = cast(Any, module)
    on = not wrapper.disable_adapters and wrapper.active_adapters
    if isinstance(module, ModulesToSaveWrapper):
        copies, name = wrapper.modules_to_save, on and wrapper.active_adapters[0]
        return cast(nn.Module, copies[name] if on else wrapper.original_module)
    layer = getattr(wrapper, "token_adapter", wrapper)  # trainable_token_indices
    if on and not layer.merged:
        raise InputError(
            "The unembedding has an adapter that isn't merged into its weight. Call `merge_adapter()` on the PEFT "
            "model first, or save the result of `merge_and_unload()` and use that folder."
        )
    return layer.base_layer


def _of_peft(module: nn.Module) -> bool:
    """Whether PEFT made this module, around a model or one of its modules."""
    return any(kind.__module__.partition(".")[0] == "peft" for kind in type(module).__mro__)
