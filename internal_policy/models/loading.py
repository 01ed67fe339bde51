"""Load a model by its name, or say in one sentence why it can't be loaded."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internal_policy import bundle
from internal_policy.errors import MODELS, InputError, first_line, require
from internal_policy.models import folder
from internal_policy.models.failures import attending, explained
from internal_policy.models.templates import DATE, Template

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
TEMPLATES = ("chat_template.jinja", "tokenizer_config.json")
"""Files that hold a model's chat template."""


@dataclass(frozen=True)
class Checkpoint:
    """Which files a model is loaded from."""

    name: str
    """A folder, a hub id, or the name of a bundled model."""
    revision: str = "main"
    """Branch, tag or commit of a model on the hub."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""

    @property
    def place(self) -> str:
        """Its folder or hub id; a bundled model is a folder."""
        return str(bundle.model(self.name) or self.name)

    @property
    def folder(self) -> Path:
        """Where its files are if it isn't on the hub."""
        return Path(self.place)


def load(
    name: str,
    *,
    revision: str = "main",
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> "tuple[nn.Module, PreTrainedTokenizerBase]":
    """Load a model and its tokenizer: any family that `internal-policy families` lists, from a folder or the hub.

        model, tokenizer = ip.load("demo-qwen3")
        model, tokenizer = ip.load("Qwen/Qwen3-4B", dtype="float32", device="cuda:1")

    `name` may also be a bundled model, demo-qwen3 or demo-llama, or the folder of a PEFT adapter. `dtype` is the type
    of the weights (auto: as saved), and `device` a name such as cuda:1 or cpu (auto: the accelerator if there is one).
    `device_map` spreads a large model over devices, and `attn_implementation` chooses the attention, both as in
    transformers. The model is in evaluation mode, and its weights are checked. Raises InputError.
    """
    require("models", *MODELS)
    checkpoint = Checkpoint(name, revision, trust_remote_code)
    _checked(checkpoint)
    config = load_config(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    model = load_model(
        checkpoint, config, dtype=dtype, device=device, device_map=device_map, attn_implementation=attn_implementation
    )
    return model, tokenizer


def identity(checkpoint: Checkpoint) -> str:
    """A text that identifies a model's content: the commit of a hub model, or a digest of the files in a folder.

    It covers the base model of an adapter, and with `trust_remote_code` also the model's Python code. Raises
    InputError for a folder without a model, and for a hub model that can't be downloaded.
    """
    path = _checked(checkpoint)
    if checkpoint.folder.is_dir():
        content = f"sha256 {folder.digest(path, checkpoint.trust_remote_code)}"
        if folder.is_adapter(path):
            with _named_by(path):
                return f"{content} on {identity(base(checkpoint))}"
    else:
        content = f"commit {path.name}"
    elsewhere = sorted(folder.code_elsewhere(path)) if checkpoint.trust_remote_code else []
    code = (f" with {place} at {_commit(checkpoint, place, file, 'main').name}" for place, file in elsewhere)
    return content + "".join(code)


def _checked(checkpoint: Checkpoint) -> Path:
    """The folder that holds its configuration, in the local hub cache for a model on the hub. Raises InputError."""
    try:
        wrong = not checkpoint.name or checkpoint.folder.is_file()
    except OSError:  # the name isn't a valid path
        wrong = True
    if wrong:
        raise InputError(
            f"Can't load a model from '{checkpoint.name:.80}'. Use a model folder, or a hub id such as Qwen/Qwen3-0.6B."
        )
    if checkpoint.folder.is_dir():
        folder.check(checkpoint.folder)
        return checkpoint.folder
    return _commit(checkpoint, checkpoint.place, "config.json", checkpoint.revision)


def _commit(checkpoint: Checkpoint, name: str, file: str, revision: str) -> Path:
    """The folder of the local hub cache that holds a file; the folder is named after the commit."""
    with explained(checkpoint.name, checkpoint.revision):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils.logging import set_verbosity_error

        set_verbosity_error()  # otherwise it reports every retry
        return Path(hf_hub_download(name, file, revision=revision)).parent


def base(checkpoint: Checkpoint) -> Checkpoint:
    """The base model of an adapter, or the checkpoint itself if it isn't one. Raises InputError without PEFT."""
    if not folder.is_adapter(checkpoint.folder):
        return checkpoint
    if find_spec("peft") is None:
        raise InputError(
            f"{checkpoint.place} holds an adapter, which needs peft. Install it with "
            "`pip install 'internal-policy[peft]'`."
        )
    return Checkpoint(*folder.base_of(checkpoint.folder), checkpoint.trust_remote_code)


@contextmanager
def _named_by(path: Path) -> Iterator[None]:
    """Add the adapter, if the folder is one, to an error about its base model."""
    try:
        yield
    except InputError as error:
        why = f" {path / folder.ADAPTER} names it as the base model." if folder.is_adapter(path) else ""
        raise InputError(f"{error}{why}") from error


def load_config(checkpoint: Checkpoint) -> "PreTrainedConfig":
    """The configuration of the model or of an adapter's base model. Raises InputError, also for an unknown family."""
    given, checkpoint = checkpoint, base(checkpoint)
    with _named_by(given.folder):
        _checked(checkpoint)  # transformers' own errors don't say that a name is mistyped or the hub can't be reached
    with explained(checkpoint.name, checkpoint.revision, "config.json"):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(
            checkpoint.place, revision=checkpoint.revision, trust_remote_code=checkpoint.trust_remote_code
        )
        if checkpoint.folder.is_dir():
            folder.check_depth(checkpoint.folder, config.get_text_config().num_hidden_layers)
    from internal_policy.models.families import family_of

    family_of(config)
    return config


def load_tokenizer(checkpoint: Checkpoint, chat_template: str | None = None) -> "PreTrainedTokenizerBase":
    """The model's tokenizer, with the chat template from the file `chat_template` if given. Raises InputError.

    An adapter's folder may hold a tokenizer of its own; otherwise the base model's is loaded.
    """
    checkpoint = _with_tokenizer(checkpoint)
    with explained(checkpoint.name, checkpoint.revision, "tokenizer.json and tokenizer_config.json"):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.place, revision=checkpoint.revision, trust_remote_code=checkpoint.trust_remote_code
        )
        tokenizer("tried")
        for token, number in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True):
            if not isinstance(number, int):
                raise ValueError(f"its special token {token!r} is not in the vocabulary")
    if len(tokenizer) < 2:
        raise InputError(f"{checkpoint.name} has no tokenizer: tokenizer.json is missing. Copy the whole model.")
    if chat_template not in (None, "none"):
        try:
            tokenizer.chat_template = Template(Path(chat_template).read_text(), chat_template)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"Can't read the chat template {chat_template} ({error}). Use a Jinja file.") from error
    return tokenizer


def _with_tokenizer(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, or its base model if it is an adapter without a tokenizer of its own."""
    own = any((checkpoint.folder / name).is_file() for name in TOKENIZER)
    return checkpoint if own else base(checkpoint)


def inserts_date(checkpoint: Checkpoint, chat_template: str | None) -> bool:
    """Whether the chat template writes the date, as Llama 3.2's does, without loading the tokenizer, which is slow.

    Raises InputError for a hub model that can't be downloaded.
    """
    if chat_template == "none":
        return False
    checkpoint = _with_tokenizer(checkpoint)
    if chat_template is not None:
        paths = [Path(chat_template)]
    elif checkpoint.folder.is_dir():
        paths = [checkpoint.folder / name for name in TEMPLATES]
    else:
        paths = [path for name in TEMPLATES if (path := _of_hub(checkpoint, name))]
    return any(DATE.encode() in path.read_bytes() for path in paths if path.is_file())


def _of_hub(checkpoint: Checkpoint, name: str) -> Path | None:
    with explained(checkpoint.name, checkpoint.revision):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(hf_hub_download(checkpoint.name, name, revision=checkpoint.revision))
        except EntryNotFoundError:  # or an offline cache without the file
            return None


def load_model(
    checkpoint: Checkpoint,
    config: "PreTrainedConfig | None" = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    attn_implementation: str | None = None,
) -> "nn.Module":
    """The model, with its weights checked: safetensors only, and no NaN. Raises InputError.

    `config` is the result of `load_config`, if the caller already has it. The other arguments are those of `load`.

    An adapter's folder gives its base model with the adapter, not merged, as a PeftModel whose adapter can be trained.
    """
    import torch

    from internal_policy.models.adapters import inside

    place = device_named(device)
    arguments = {"dtype": dtype, "device_map": device_map or place, "attn_implementation": attn_implementation}
    model = _loaded(base(checkpoint), config or load_config(checkpoint), arguments)
    if folder.is_adapter(checkpoint.folder):
        model = _adapted(model, checkpoint)
    for name, weight in model.named_parameters():
        if weight.is_meta:
            raise InputError(
                f"{checkpoint.name} doesn't fit in memory on these devices ({name} was left out). Try dtype bfloat16."
            )
        if not weight.isfinite().all():
            raise InputError(f"{checkpoint.name} has NaN or infinite weights in {name}. Get a complete checkpoint.")
    if inside(model).dtype == torch.float64:
        inside(model).set_experts_implementation("eager")  # the fast one doesn't support float64
    with explained(checkpoint.name, checkpoint.revision, "config.json and generation_config.json"):
        _try(inside(model.eval()))
    return model


def _try(model: "PreTrainedModel") -> None:
    """Read one token, because some configuration mistakes only show up then. Raises ValueError and others."""
    import torch

    generation = model.generation_config.eos_token_id if model.generation_config else None
    ends = [] if generation is None else generation if isinstance(generation, list) else [generation]
    if not all(type(end) is int and 0 <= end < 2**31 for end in ends):
        raise ValueError(f"eos_token_id is {generation!r:.60}, but token ids are expected")
    with torch.inference_mode():
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=True)


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


def _loaded(checkpoint: Checkpoint, config: "PreTrainedConfig", arguments: dict[str, Any]) -> "PreTrainedModel":
    """The model of the Hugging Face folder or repository."""
    from transformers import AutoModelForCausalLM

    files = "config.json, generation_config.json and weights"
    with explained(checkpoint.name, checkpoint.revision, files), attending(arguments["attn_implementation"]):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.place,
            config=config,
            revision=checkpoint.revision,
            trust_remote_code=checkpoint.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **arguments,
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


def weight_bytes(config: "PreTrainedConfig", dtype: str) -> int:
    """Memory of the weights, in bytes."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype_named(config, dtype))
    return sum(math.prod(weight.shape) * weight.element_size() for weight in model.parameters())
