"""The unembedding of a loaded model, and what its family does to the logits afterwards."""

from typing import cast

from torch import Tensor, nn
from torch._dynamo import OptimizedModule

from internal_policy.errors import InputError
from internal_policy.measure.transform import LogitTransform
from internal_policy.models.adapters import inside, of_peft, unwrapped
from internal_policy.models.families import family_of
from internal_policy.models.packed import is_packed


def unembedding(model: nn.Module) -> nn.Linear:
    """The unembedding of a loaded model: its weight is (d_vocab, d_model), with any adapter merged into it.

    Raises InputError for an adapter that isn't merged, and for a packed weight; see `one_matrix`.
    """
    return one_matrix(unwrapped(_output(model)))


def bias_of(module: nn.Linear) -> Tensor | None:
    """The bias of an unembedding, (d_vocab,); None if all of it is 0, as in each unembedding of TransformerLens."""
    bias = cast(Tensor | None, module.bias)
    return bias if bias is not None and (bias.is_meta or bias.any()) else None


def to_logits(model: nn.Module) -> nn.Module:
    """The module that computes logits: the unembedding with its bias and adapters. Raises InputError."""
    module = _output(model)
    return module if of_peft(module) else one_matrix(module)


def _output(model: nn.Module) -> nn.Module:
    module = inside(model).get_output_embeddings()
    if module is None:
        raise InputError("This model has no unembedding. Load it with AutoModelForCausalLM.")
    # accelerate's compile_regions compiles it by itself
    return cast(nn.Module, module._orig_mod) if isinstance(module, OptimizedModule) else module


def weight_alone(module: nn.Module) -> nn.Linear:
    """The unembedding, if it is a plain (d_vocab, d_model) matrix without a bias. Raises InputError otherwise."""
    module = one_matrix(module)
    if bias_of(module) is not None:
        raise InputError(
            "The unembedding has a bias, which only scans of the model itself, `hooked`, `as_policy` and "
            "`policy_logits` support, not lenses and other libraries."
        )
    return module


def one_matrix(module: nn.Module) -> nn.Linear:
    """The unembedding, if its weight is a plain (d_vocab, d_model) matrix.

    Raises InputError otherwise, for example if it is quantized; `internal_policy.load` dequantizes it.
    """
    if hasattr(getattr(module, "weight", None), "device_mesh"):
        raise InputError(
            "The unembedding is sharded over devices (tensor parallelism or FSDP), but it must be whole on one. Load "
            "the model with device_map='auto' instead of a tp_plan."
        )
    if (
        not isinstance(module, nn.Linear)
        or is_packed(module)
        or module.weight.shape != (module.out_features, module.in_features)
    ):
        raise InputError(
            f"The unembedding is a {type(module).__name__} whose weight isn't one plain matrix. Load the model "
            "without quantizing, sharding or adapting its unembedding (lm_head), or with internal_policy.load, which "
            "dequantizes it."
        )
    return module


def logit_transform(model: nn.Module) -> LogitTransform:
    """How a loaded model multiplies, divides or caps its logits."""
    config = inside(model).config
    family, text = family_of(config), config.get_text_config()
    cap = getattr(text, family.cap) if family.cap else None
    return LogitTransform(
        divisor=float(getattr(text, family.divisor)) if family.divisor else 1.0,
        cap=None if cap is None else float(cap),
        factor=float(getattr(text, family.factor)) if family.factor else 1.0,
    )
