"""Load a model by its name, or say in one sentence why it can't be loaded."""

import warnings
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internal_policy.errors import MODELS, InputError, first_line, require
from internal_policy.jupyter.progress import without_text_bars
from internal_policy.models import folder, gguf_files, offload, quantized
from internal_policy.models.checkpoint import Checkpoint, base, config_folder, named_by
from internal_policy.models.failures import attending, explained
from internal_policy.models.kernels import one_sentence
from internal_policy.models.loaded import Loaded
from internal_policy.models.offload import Sizes
from internal_policy.models.quantized import Quantize
from internal_policy.models.tokenizers import load_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


def load(
    name: str,
    *,
    revision: str = "main",
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    max_memory: Sizes | None = None,
    offload_folder: Path | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    quantize: Quantize | None = None,
) -> Loaded:
    """Load a model and its tokenizer: any family that `internal-policy families` lists, from a folder or the hub.

        model, tokenizer = ip.load("demo-qwen3")
        model, tokenizer = ip.load("Qwen/Qwen3-4B", dtype="float32", device="cuda:1")

    `name` may also be a bundled model, demo-qwen3 or demo-llama, or the folder of a PEFT adapter. `dtype` is the type
    of the weights (auto: as saved), and `device` a name such as cuda:1 or cpu (auto: the accelerator if there is one).
    `device_map` spreads a large model over devices, the CPU and the disk, and `attn_implementation` chooses the
    attention, both as in transformers. `max_memory`, such as {0: "20GiB", "cpu": "60GiB"}, limits the weights on each
    device, and `offload_folder` is where weights are written that must be converted for the disk. `gguf_file` is the
    name of a GGUF file in the folder or on the hub, whose weights are dequantized, and `quantize` quantizes the
    weights with bitsandbytes (nf4 or int8). The model is in evaluation mode, and its weights are checked. A model
    type that isn't in the list is tried with the known rows. Raises InputError.
    """
    require("models", *MODELS)
    if device_map is None and (max_memory or offload_folder):
        raise InputError("max_memory and offload_folder have no effect without device_map. Add device_map='auto'.")
    checkpoint = Checkpoint(name, revision, trust_remote_code, gguf_file, quantize)
    config_folder(checkpoint)
    config = load_config(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    with without_text_bars():
        model = load_model(
            checkpoint,
            config,
            dtype=dtype,
            device=device,
            device_map=device_map,
            max_memory=max_memory,
            offload_folder=offload_folder,
            attn_implementation=attn_implementation,
        )
    return Loaded(model, tokenizer)


def load_config(checkpoint: Checkpoint) -> "PreTrainedConfig":
    """The configuration of the model or of an adapter's base model.

    A model type without a row is tried with the known rows. Raises InputError, also if none fits.
    """
    config = read_config(checkpoint)
    from internal_policy.models.families import has_row, row_of

    if not has_row(config.model_type):
        from internal_policy.models.trial import admit_config

        admit_config(config, **code_options(checkpoint, config))
    row_of(config)
    return config


def code_options(checkpoint: Checkpoint, config: "PreTrainedConfig") -> dict[str, Any]:
    """Which code of the model, if any, builds a tiny one of its configuration, as options of `from_config`."""
    own = checkpoint.trust_remote_code and "--" not in str(getattr(config, "auto_map", None))
    code = {"code_revision": checkpoint.revision} if own else {}
    return {"trust_remote_code": checkpoint.trust_remote_code, **code}


def read_config(checkpoint: Checkpoint) -> "PreTrainedConfig":
    """The configuration of the model or of an adapter's base model, of any type. Raises InputError."""
    given, checkpoint = checkpoint, base(checkpoint)
    if checkpoint.gguf_file is not None:
        require("gguf", "gguf")
    with named_by(given.folder):
        config_folder(checkpoint)  # transformers doesn't say that a name is mistyped or the hub can't be reached
    with explained(checkpoint.name, checkpoint.revision, "config.json"):
        from transformers import AutoConfig

        file = {} if checkpoint.gguf_file is None else {"gguf_file": checkpoint.gguf_file}
        config = AutoConfig.from_pretrained(
            checkpoint.place, revision=checkpoint.revision, trust_remote_code=checkpoint.trust_remote_code, **file
        )
        size = getattr(config.get_text_config(), "vocab_size", None)
        if isinstance(size, int) and size < 1:
            raise InputError(
                f"The configuration of {checkpoint.name} claims a vocabulary of {size} tokens; a model has at "
                "least one. Get a complete copy."
            )
        if checkpoint.folder.is_dir() and checkpoint.gguf_file is None:
            folder.check_depth(checkpoint.folder, config.get_text_config().num_hidden_layers)
    return config


def load_model(
    checkpoint: Checkpoint,
    config: "PreTrainedConfig | None" = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    max_memory: Sizes | None = None,
    offload_folder: Path | None = None,
    attn_implementation: str | None = None,
) -> "nn.Module":
    """The model, with its weights checked: safetensors or GGUF only, and no NaN. Raises InputError.

    `config` is the result of `load_config`, if the caller already has it. The other arguments are those of `load`.

    An adapter's folder gives its base model with the adapter, not merged, as a PeftModel whose adapter can be trained.
    A quantized unembedding is dequantized; `quantized.quantization` tells what is quantized. An offloaded
    unembedding is loaded and stays loaded.
    """
    import torch

    from internal_policy.models import origin
    from internal_policy.models.adapters import inside

    one_sentence()
    place = device_named(device)
    arguments = {"dtype": dtype, "device_map": device_map or place, "attn_implementation": attn_implementation}
    source, config = base(checkpoint), config or load_config(checkpoint)
    settings = _settings(source, config)
    quantized.check(settings, checkpoint.name, checkpoint.quantize)
    with ExitStack() as stack:
        if device_map is not None:
            arguments["max_memory"] = offload.limits(max_memory or {})
            arguments["offload_folder"] = stack.enter_context(offload.temporary_folder(offload_folder))
        model = _loaded(source, config, arguments)
        weakref.finalize(model, stack.pop_all().close)
    offload.keep_unembedding(model)
    dequantized = quantized.dequantize_unembedding(model)
    if folder.is_adapter(checkpoint.folder):
        offload.check_adaptable(model, checkpoint.name)
        model = _adapted(model, checkpoint)
    _check_weights(model, checkpoint.name)
    files = _files(source)
    if checkpoint.quantize is not None:  # 4 bits can't hold NaN
        _check_files(files, checkpoint.name)
    if inside(model).dtype == torch.float64:
        inside(model).set_experts_implementation("eager")  # the fast one doesn't support float64
    with explained(checkpoint.name, checkpoint.revision, "config.json and generation_config.json"):
        _try(inside(model.eval()))
    origin.record(model, checkpoint)
    settings = settings or quantized.settings_of(inside(model).config)
    if settings is not None:
        quantized.record(model, settings, dequantized=dequantized, files=files)
    return model


def _settings(checkpoint: Checkpoint, config: "PreTrainedConfig") -> dict[str, Any] | None:
    """How the weights of a checkpoint are quantized; None if they aren't."""
    if checkpoint.gguf_file is not None:
        return gguf_files.settings(config_folder(checkpoint) / checkpoint.gguf_file)
    return quantized.settings_of(config)


def _files(checkpoint: Checkpoint) -> list[Path]:
    """The safetensors files of a model that was loaded; none if that was a GGUF file."""
    return [] if checkpoint.gguf_file is not None else sorted(config_folder(checkpoint).glob("*.safetensors"))


def _check_weights(model: "nn.Module", name: str) -> None:
    """Raise InputError for a weight that was left out of memory, NaN or infinite, or packed with such a scale."""
    from internal_policy.models import packed

    seen: set[int] = set()
    for place, module in model.named_modules():
        with offload.present(module):
            for called, weight in packed.numbers(module):
                where = f"{place}.{called}"
                if weight.is_meta:
                    raise InputError(f"{name} doesn't fit in memory on these devices ({where} was left out).")
                if weight.data_ptr() not in seen and not weight.isfinite().all():
                    raise InputError(f"{name} has NaN or infinite weights in {where}. Get a complete checkpoint.")
                if not offload.is_offloaded(module):  # another weight may be read to where an offloaded one was
                    seen.add(weight.data_ptr())


def _check_files(files: Sequence[Path], name: str) -> None:
    """Raise InputError for a NaN or infinity in the safetensors files of a model."""
    from safetensors import safe_open

    for path in files:
        with safe_open(path, "pt") as file:
            for called in sorted(file.keys()):
                if not file.get_tensor(called).isfinite().all():
                    raise InputError(f"{name} has NaN or infinite weights in {called}. Get a complete checkpoint.")


def _try(model: "PreTrainedModel") -> None:
    """Read one token, because some mistakes only show up then. Raises ValueError and others.

    If weights are offloaded, the backbone also runs alone, as in a scan: errors may not show when the whole model runs.
    """
    import torch

    from internal_policy.models.modules import backbone
    from internal_policy.models.passes import device_of

    generation = model.generation_config.eos_token_id if model.generation_config else None
    ends = [] if generation is None else generation if isinstance(generation, list) else [generation]
    if not all(type(end) is int and 0 <= end < 2**31 for end in ends):
        raise ValueError(f"eos_token_id is {generation!r:.60}, but token ids are expected")
    with torch.inference_mode(), offload.explained(model):
        ids = torch.zeros(1, 1, dtype=torch.int64, device=device_of(model))
        for run in [model, backbone(model)] if offload.has_offloaded(model) else [model]:
            run(input_ids=ids, use_cache=True)


def device_named(name: str) -> str:
    """The name of an available device; auto is the accelerator if there is one. Raises InputError."""
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        name = accelerator.type if accelerator else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"Device '{name}' isn't available ({first_line(error)}). Try device auto.") from error
    return name


def device_numbered(process: int) -> str:
    """The name of the accelerator that a process with this number on its machine uses; cpu if there is none.

    A process that sees only one accelerator, as srun arranges it, uses that. Raises InputError if there are too few.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count() if accelerator else 0
    if accelerator is None or count == 1:
        return device_named("auto")
    if process >= count:
        raise InputError(
            f"Process {process} of this machine has no device of its own, because there are {count}. Start {count} "
            "processes, or name a --device."
        )
    return device_named(f"{accelerator.type}:{process}")


def _loaded(checkpoint: Checkpoint, config: "PreTrainedConfig", arguments: dict[str, Any]) -> "PreTrainedModel":
    """The model of the Hugging Face folder or repository."""
    from transformers import GgufConfig

    from internal_policy.models.classes import auto_class
    from internal_policy.models.families import family_of

    if checkpoint.gguf_file is not None:
        file = {"gguf_file": checkpoint.gguf_file, "quantization_config": GgufConfig(dequantize=True)}
    else:
        file = quantized.arguments(checkpoint.quantize, dtype_named(config, arguments["dtype"]))
    files = "config.json, generation_config.json and weights"
    with explained(checkpoint.name, checkpoint.revision, files), attending(arguments["attn_implementation"]):
        loaded: Any = auto_class(family_of(config)).from_pretrained(
            checkpoint.place,
            config=config,
            revision=checkpoint.revision,
            trust_remote_code=checkpoint.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **arguments,
            **file,
        )
    model, report = loaded
    if report["missing_keys"]:
        missing = min(report["missing_keys"])
        raise InputError(f"{checkpoint.name} has no weights for {missing}. Get a complete checkpoint.")
    return model


def _adapted(model: "PreTrainedModel", checkpoint: Checkpoint) -> "nn.Module":
    """The model with the adapter from a folder. Raises InputError unless all of the adapter's weights were loaded."""
    import peft

    from internal_policy.models.adapters import check_adapters

    path = checkpoint.folder
    with explained(checkpoint.name, checkpoint.revision, "adapter_config.json and weights"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about keys, which are checked below, and deprecated names
        config = peft.PeftConfig.from_pretrained(str(path))
        check_adapters({path.name: config})
        config.inference_mode = False
        adapted = peft.PeftModel.from_pretrained(model, path, config=config, is_trainable=True, torch_device="cpu")
        file = set(peft.utils.load_peft_weights(str(path), device="cpu"))
        own = set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if missing := sorted(own - file):
        raise InputError(f"{path} has no weights for {missing[0]}. Get the complete adapter.")
    if foreign := sorted(file - own - set(adapted.state_dict())):
        raise InputError(f"{path} has {foreign[0]}, which its base model lacks. Use the model it was trained on.")
    return adapted


def dtype_named(config: "PreTrainedConfig", name: str) -> "torch.dtype":
    """The dtype that weights are loaded as; auto is the one that they were saved as."""
    import torch

    chosen: Any = getattr(torch, name) if name != "auto" else config.dtype
    return chosen or torch.float32
