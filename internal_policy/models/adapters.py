"""Find the Hugging Face model inside a PEFT wrapper, and refuse adapters that can't be read layer by layer."""

from collections.abc import Mapping
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from internal_policy.errors import InputError

ADAPTERS = frozenset(["LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "HRA", "LN_TUNING", "VERA", "FOURIERFT"])
"""Types of adapters that only change the model's modules, which makes its own forward pass the adapted one.

tests/models/test_adapters.py proves each. Other types prepend tokens to the text, or choose what to add in each pass.
"""


def inside(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside a PEFT wrapper, with its adapters in place; any other model is returned unchanged.

    Raises InputError for adapters that change more than the model's modules, such as prompt tuning.
    """
    if not of_peft(model):
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


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that holds the weight in use inside an adapted module, such as the active copy of `modules_to_save`.

    Raises InputError for an adapter that isn't merged into that weight.
    """
    if not of_peft(module):
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


def of_peft(module: nn.Module) -> bool:
    """Whether PEFT made this module, around a model or one of its modules."""
    return any(kind.__module__.partition(".")[0] == "peft" for kind in type(module).__mro__)
