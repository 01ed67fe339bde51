"""Which weights of a model are quantized, and how."""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from internal_policy.errors import InputError, require

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig

Quantize = Literal["nf4", "int8"]
"""How bitsandbytes quantizes the weights when they are loaded: 4-bit NormalFloat (QLoRA's), or LLM.int8()."""
EXTRAS = {
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "compressed-tensors": "compressed_tensors",
    "gguf": "gguf",
}
"""Method that needs a package -> that package; the extra that installs it is called like the method."""
PACKED = ("I8", "U8", "I32", "F8_E4M3", "F8_E5M2", "F4")
"""Types of the quantized weights in a safetensors file."""
SCALE = re.compile(r"\.(weight_\w+|\w*(scale|absmax|quant|zero|g_idx|activation)\w*)$|_(scales|scale_inv|zeros)$")
"""Names of what belongs to a quantized weight."""


@dataclass(frozen=True)
class Quantization:
    """How the weights of a model are quantized."""

    method: str
    """The library or format: bitsandbytes, torchao, fp8, compressed-tensors, gptq, awq, mxfp4, gguf, ..."""
    scheme: str
    """What it calls the type of the weights: nf4, int8, float-quantized, Q4_0, ..."""
    bits: int | None
    """Bits of a weight, without its scales; None if they differ or aren't known."""
    modules: tuple[str, ...]
    """Kinds of modules with quantized weights, such as q_proj; empty if it isn't known."""
    loaded: str
    """`packed`, or the type that the weights were dequantized to when they were loaded, such as bfloat16."""
    unembedding: Literal["not quantized", "dequantized"]
    """Whether the unembedding was quantized; it is dequantized once, when the model is loaded."""

    def __str__(self) -> str:
        """The quantization in words."""
        scheme = "" if self.scheme == self.method else f" {self.scheme}"
        bits = "" if self.bits is None else f", {self.bits} bits"
        modules = f": {', '.join(self.modules)}" if self.modules else ""
        loaded = "" if self.loaded == "packed" else f"; weights dequantized to {self.loaded}"
        return f"{self.method}{scheme}{bits}{modules}{loaded}; unembedding {self.unembedding}"


_known: "WeakKeyDictionary[nn.Module, Quantization]" = WeakKeyDictionary()
"""Loaded model -> what was quantized when it was loaded; a model that was dequantized doesn't tell."""


def quantization(model: "nn.Module") -> Quantization | None:
    """How the weights of a loaded model are quantized; None if they aren't."""
    from internal_policy.models.adapters import inside

    model = inside(model)
    if model in _known:
        return _known[model]
    settings = settings_of(model.config)
    return None if settings is None else _of(model, settings, plain=True)


def check_trainable(model: "nn.Module", *, adapted: bool = False, merge: bool = False) -> None:
    """Raise InputError for a model whose quantized weights would be trained, or stop the gradient of its adapter.

    `adapted` tells that an adapter will be added, and `merge` that it will be merged in the end.
    """
    from internal_policy.models.adapters import inside, of_peft

    found = quantization(model)
    if found is not None and found.method == "bitsandbytes" and found.bits == 4 and inside(model).device.type == "cpu":
        raise InputError(
            "bitsandbytes passes no gradient through 4-bit weights on a CPU. Train on a GPU, or with 8 bits (int8)."
        )
    if found is None or found.loaded != "packed":
        return
    if not (adapted or of_peft(model)):
        raise InputError(
            f"Weights quantized by {found.method} can't be trained. Train an adapter on them (--lora), or train the "
            "model without quantization."
        )
    if merge:
        raise InputError(
            f"An adapter can't be merged exactly into weights quantized by {found.method}. Leave out --merge."
        )


def facts(model: "nn.Module") -> dict[str, Any]:
    """What the record of a scan says about the quantization of a model; nothing if it isn't quantized."""
    found = quantization(model)
    return {} if found is None else {"quantization": {**asdict(found), "words": str(found)}}


def settings_of(config: "PreTrainedConfig") -> dict[str, Any] | None:
    """The settings of a quantized checkpoint, as its config.json has them; None if it isn't quantized."""
    for one in (config, config.get_text_config()):
        settings = getattr(one, "quantization_config", None)
        if settings is not None:
            return dict(settings if isinstance(settings, Mapping) else settings.to_dict())
    return None


def method_of(settings: Mapping[str, Any]) -> str:
    """The method of a checkpoint's settings."""
    method = settings.get("quant_method") or "bitsandbytes"  # early files of bitsandbytes don't name it
    return str(getattr(method, "value", method))


def check(settings: Mapping[str, Any] | None, name: str, quantize: Quantize | None) -> None:
    """Raise InputError if a package is missing that quantized weights need, or if they would be quantized again.

    Also for a method that transformers doesn't know, which it would ignore.
    """
    if settings is not None and quantize is not None:
        raise InputError(f"{name} is already quantized ({method_of(settings)}). Don't quantize it to {quantize}.")
    method = "bitsandbytes" if quantize else None if settings is None else method_of(settings)
    if method is not None and method not in _known_methods():
        raise InputError(
            f"{name} has the quant_method '{method:.60}', which transformers doesn't know and would ignore. Remove "
            "quantization_config from its config.json if the weights aren't quantized, or get another checkpoint."
        )
    if method == "bitsandbytes":
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns in every int8 layer of every pass
    if method in EXTRAS:
        require(method, EXTRAS[method])


def _known_methods() -> set[str]:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    return {"gguf", *(name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZATION_CONFIG_MAPPING)}


def arguments(quantize: Quantize | None, dtype: "torch.dtype") -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantize the weights while they are loaded; `dtype` is what they multiply."""
    if quantize is None:
        return {}
    from transformers import BitsAndBytesConfig

    if quantize == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": nf4}


def dequantize_unembedding(model: "nn.Module") -> bool:
    """Replace a quantized unembedding by a plain one, and return whether it was quantized.

    The model's own logits, its internal policies and the statistics then use the same matrix; see `packed.dequantized`.
    """
    import torch

    from internal_policy.models import packed
    from internal_policy.models.adapters import inside

    inner = inside(model)
    module = inner.get_output_embeddings()
    if module is None or not packed.is_packed(module):
        return False
    if hasattr(module, "quantization_scheme"):  # compressed-tensors unpacks the weights in the first pass
        with torch.no_grad():
            inner(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=inner.device))
    plain = packed.dequantized(module, inner.config.get_text_config().hidden_size, inner.dtype, inner.device)
    inner.set_output_embeddings(plain)
    return True


def record(model: "nn.Module", settings: Mapping[str, Any], *, dequantized: bool, files: Iterable[Path]) -> None:
    """Remember how a model was quantized that was just loaded from `files`, which `quantization` then returns.

    `dequantized` tells whether its unembedding was quantized.
    """
    from internal_policy.models.adapters import inside

    _known[inside(model)] = _of(model, settings, plain=not dequantized, files=files)


def _of(model: Any, settings: Mapping[str, Any], *, plain: bool, files: Iterable[Path] = ()) -> Quantization:
    from internal_policy.models import packed

    if method_of(settings) == "gguf":
        dtype, head = str(model.dtype).removeprefix("torch."), settings["unembedding"]
        types, modules = ", ".join(settings["types"]), tuple(settings["modules"])
        return Quantization("gguf", types, None, modules, dtype, "dequantized" if head else "not quantized")
    kinds = _kinds(name for name, module in model.named_modules() if packed.is_packed(module))
    still = any(not packed.is_plain(weight) for module in model.modules() for weight in module.parameters(False))
    loaded = "packed" if still else str(model.dtype).removeprefix("torch.")
    if not kinds:
        kinds, plain = _stored(files)
    scheme, bits = scheme_of(settings)
    return Quantization(method_of(settings), scheme, bits, kinds, loaded, "not quantized" if plain else "dequantized")


def _stored(files: Iterable[Path]) -> tuple[tuple[str, ...], bool]:
    """The kinds of modules whose weights are quantized in safetensors files, and whether lm_head's is plain."""
    from safetensors import safe_open

    names: list[str] = []
    for path in files:
        with safe_open(path, "np") as file:
            names += [name for name in sorted(file.keys()) if file.get_slice(name).get_dtype() in PACKED]
    return _kinds(name.removesuffix(".weight").removesuffix("_blocks") for name in names), not any(
        "lm_head." in name for name in names
    )


def _kinds(names: Iterable[str]) -> tuple[str, ...]:
    """The last words of modules' names without the numbers of experts, each once."""
    words = (re.sub(r"(\.\d+)+$", "", name).rpartition(".")[2] for name in names if not SCALE.search(name))
    return tuple(dict.fromkeys(words))


def scheme_of(settings: Mapping[str, Any]) -> tuple[str, int | None]:
    """What a method calls the type of the weights, and how many bits they have."""
    match method_of(settings):
        case "bitsandbytes":
            four = settings.get("load_in_4bit") or settings.get("_load_in_4bit")
            return (str(settings.get("bnb_4bit_quant_type", "fp4")), 4) if four else ("int8", 8)
        case "torchao":
            named = str(settings["quant_type"]["default"]["_type"])
            bits = re.search(r"(?:Int|UInt|Float|NVFP|MXFP)(\d)", named)
            return named.removesuffix("Config"), int(bits[1]) if bits else None
        case "compressed-tensors":
            groups = [group["weights"] for group in (settings.get("config_groups") or {}).values()]
            bits = {group["num_bits"] for group in groups if group}
            return str(settings.get("format")), bits.pop() if len(bits) == 1 else None
        case "fp8" | "fbgemm_fp8" | "mxfp8":
            return "float8", 8
        case "mxfp4" | "nvfp4" as method:
            return method, 4
        case method:
            bits = settings.get("bits")
            return f"int{bits}" if bits else method, bits
