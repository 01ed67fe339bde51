"""Load a model by its name, or say in one sentence why it cannot be."""

import dataclasses
import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internal_policy.bundle import DATA
from internal_policy.cli.common import ModelOptions
from internal_policy.errors import InputError, first_line
from internal_policy.models import folder
from internal_policy.models.templates import DATE, Template

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
TEMPLATES = ("chat_template.jinja", "tokenizer_config.json")
"""Files that hold a model's chat template."""


def resolve(name: str) -> str:
    """The folder of a bundled model by its name, else the name itself."""
    bundled = DATA / "models" / name
    return str(bundled) if name.startswith("demo-") and bundled.is_dir() else name


def identity(options: ModelOptions) -> str:
    """What tells this model from any other: the commit of one on the hub, a digest of the files of a folder.

    That of an adapter covers its base model, and with `trust_remote_code` the Python that is run counts too. Raises
    InputError for a folder that holds no model, and for one on the hub that cannot be had.
    """
    name = resolve(options.model)
    path = Path(name)
    if not name or path.is_file():
        raise InputError(f"--model is '{name}'; give a folder that holds a model, or a hub id such as Qwen/Qwen3-0.6B.")
    if path.is_dir():
        folder.check(path)
        found = f"sha256 {folder.digest(path, options.trust_remote_code)}"
        if folder.is_adapter(path):
            with _named_by(path):
                return f"{found} on {identity(base(options))}"
    else:
        path = _commit(options, name, "config.json", options.revision)
        found = f"commit {path.name}"
    elsewhere = sorted(folder.code_elsewhere(path)) if options.trust_remote_code else []
    code = (f" with {place} at {_commit(options, place, file, 'main').name}" for place, file in elsewhere)
    return found + "".join(code)


def _commit(options: ModelOptions, name: str, file: str, revision: str) -> Path:
    """The folder of the local hub cache that holds a file; its name is the commit's."""
    with explained(options):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils.logging import set_verbosity_error

        set_verbosity_error()  # it would tell of every retry
        return Path(hf_hub_download(name, file, revision=revision)).parent


def base(options: ModelOptions) -> ModelOptions:
    """The same options for the base model where --model is an adapter's folder. Raises InputError without PEFT."""
    path = Path(resolve(options.model))
    if not folder.is_adapter(path):
        return options
    if find_spec("peft") is None:
        raise InputError(
            f"{path} holds an adapter, for which peft is needed; `pip install 'internal-policy[peft]'` adds it."
        )
    name, revision = folder.base_of(path)
    return dataclasses.replace(options, model=name, revision=revision)


@contextmanager
def _named_by(path: Path) -> Iterator[None]:
    """Say in an error about a base model which adapter names it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error} It is the base model that {path / folder.ADAPTER} names.") from error


def load_config(options: ModelOptions) -> "PreTrainedConfig":
    """The model's configuration, or its base's. Raises InputError, also for a family that is not known."""
    options = base(options)
    with explained(options, "config.json"):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(
            resolve(options.model), revision=options.revision, trust_remote_code=options.trust_remote_code
        )
        if (path := Path(resolve(options.model))).is_dir():
            folder.check_depth(path, config.get_text_config().num_hidden_layers)
    from internal_policy.models.families import family_of

    family_of(config)
    return config


def load_tokenizer(options: ModelOptions, chat_template: str | None = None) -> "PreTrainedTokenizerBase":
    """The model's tokenizer, with the chat template in the file `chat_template` if that is given. Raises InputError.

    An adapter's folder may hold a tokenizer of its own; if not it is the base model's.
    """
    if not any((Path(resolve(options.model)) / name).is_file() for name in TOKENIZER):
        options = base(options)
    with explained(options, "tokenizer.json and tokenizer_config.json"):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            resolve(options.model), revision=options.revision, trust_remote_code=options.trust_remote_code
        )
        tokenizer("tried")
        for token, number in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True):
            if not isinstance(number, int):
                raise ValueError(f"its special token {token!r} is not in the vocabulary")
    if len(tokenizer) < 2:
        raise InputError(f"{options.model} has no tokenizer: there is no tokenizer.json in it; copy the whole model.")
    if chat_template not in (None, "none"):
        try:
            tokenizer.chat_template = Template(Path(chat_template).read_text(), chat_template)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"The chat template {chat_template} cannot be read ({error}); give a Jinja file."
            ) from error
    return tokenizer


def chat_of(chat_template: str | None, chat_template_kwargs: str) -> dict[str, Any] | None:
    """Arguments for the chat template, None for no template. Raises InputError if they are no JSON object."""
    try:
        given = json.loads(chat_template_kwargs)
    except ValueError as error:
        raise InputError(f"--chat-template-kwargs is no JSON ({error}); write '{{\"name\": value}}'.") from error
    if not isinstance(given, dict):
        raise InputError(f"--chat-template-kwargs is {chat_template_kwargs}; a JSON object is expected.")
    return None if chat_template == "none" else given


def inserts_date(options: ModelOptions, chat_template: str | None) -> bool:
    """Whether the chat template writes the date, as Llama 3.2's does: told without the tokenizer, which takes seconds.

    Raises InputError for a model on the hub that cannot be had.
    """
    if chat_template == "none":
        return False
    if not any((Path(resolve(options.model)) / name).is_file() for name in TOKENIZER):
        options = base(options)
    place = Path(resolve(options.model))
    if chat_template is not None:
        paths = [Path(chat_template)]
    elif place.is_dir():
        paths = [place / name for name in TEMPLATES]
    else:
        paths = [path for name in TEMPLATES if (path := _of_hub(options, name))]
    return any(DATE.encode() in path.read_bytes() for path in paths if path.is_file())


def _of_hub(options: ModelOptions, name: str) -> Path | None:
    with explained(options):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(hf_hub_download(options.model, name, revision=options.revision))
        except EntryNotFoundError:  # also one that an offline cache does not have
            return None


def load_model(options: ModelOptions, config: "PreTrainedConfig | None" = None) -> "nn.Module":
    """The model, with its weights checked: safetensors only, and no NaN. Raises InputError.

    `config` is what `load_config` returned, where the caller has read it already.

    An adapter's folder gives its base model with the adapter, not merged, as a PeftModel whose adapter can be trained.
    """
    import torch

    from internal_policy.models.families import inside

    model = _loaded(base(options), config or load_config(options))
    if folder.is_adapter(path := Path(resolve(options.model))):
        model = _adapted(model, path, options)
    for name, weight in model.named_parameters():
        if weight.is_meta:
            raise InputError(
                f"{options.model} does not fit on the devices here ({name} was left out); try --dtype bfloat16."
            )
        if not weight.isfinite().all():
            raise InputError(f"{options.model} has NaN or infinite weights in {name}; get a whole checkpoint.")
    if inside(model).dtype == torch.float64:
        inside(model).set_experts_implementation("eager")  # the fast one multiplies no float64
    with explained(base(options), "config.json and generation_config.json"):
        _try(inside(model.eval()))
    return model


def _try(model: "PreTrainedModel") -> None:
    """Read one token: some of what a configuration says wrong comes out here alone. Raises ValueError and others."""
    import torch

    generation = model.generation_config.eos_token_id if model.generation_config else None
    ends = [] if generation is None else generation if isinstance(generation, list) else [generation]
    if not all(type(end) is int and 0 <= end < 2**31 for end in ends):
        raise ValueError(f"eos_token_id is {generation!r:.60}, which are no token ids")
    with torch.inference_mode():
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=True)


def _loaded(options: ModelOptions, config: "PreTrainedConfig") -> "PreTrainedModel":
    """The model of the Hugging Face folder or repository."""
    import torch
    from transformers import AutoModelForCausalLM

    device = options.device
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = accelerator.type if accelerator else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"There is no device '{device}' here ({first_line(error)}); try --device auto.") from error
    with explained(options, "config.json, generation_config.json and weights"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            resolve(options.model),
            config=config,
            revision=options.revision,
            dtype=options.dtype,
            device_map=options.device_map or device,
            attn_implementation=options.attn_implementation,
            trust_remote_code=options.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    model, found = loaded
    if found["missing_keys"]:
        raise InputError(f"{options.model} has no weights for {min(found['missing_keys'])}; get a whole checkpoint.")
    return model


def _adapted(model: "PreTrainedModel", path: Path, options: ModelOptions) -> "nn.Module":
    """The model with the adapter in a folder, all of whose weights have found their place. Raises InputError."""
    import peft

    from internal_policy.models.families import check_adapters

    with explained(options, "adapter_config.json and weights"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about keys, which are checked here, and names that transformers calls old
        config = peft.PeftConfig.from_pretrained(str(path))
        check_adapters({path.name: config})
        config.inference_mode = False
        adapted = peft.PeftModel.from_pretrained(model, path, config=config, is_trainable=True, torch_device="cpu")
        file = set(peft.utils.load_peft_weights(str(path), device="cpu"))
        own = set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if missing := sorted(own - file):
        raise InputError(f"{path} has no weights for {missing[0]}; get the whole adapter.")
    if foreign := sorted(file - own - set(adapted.state_dict())):
        raise InputError(f"{path} has {foreign[0]}, which its base model does not; it is an adapter of another model.")
    return adapted


def weight_bytes(config: "PreTrainedConfig", dtype: str) -> int:
    """Memory of the weights, in bytes."""
    import torch
    from transformers import AutoModelForCausalLM

    kind = getattr(torch, dtype) if dtype != "auto" else (config.dtype or torch.float32)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=kind)
    return sum(math.prod(weight.shape) * weight.element_size() for weight in model.parameters())


@contextmanager
def explained(options: ModelOptions, files: str = "files") -> Iterator[None]:
    """Turn what transformers and the hub raise into one sentence with the remedy, which is to check `files`."""
    import huggingface_hub.errors as hub

    name = options.model
    try:
        yield
    except hub.GatedRepoError as error:
        raise InputError(
            f"{name} is gated: accept its terms at https://huggingface.co/{name}, then log in with `hf auth login`."
        ) from error
    except hub.RevisionNotFoundError as error:
        raise InputError(f"{name} has no revision '{options.revision}'; see https://huggingface.co/{name}.") from error
    except hub.HFValidationError as error:
        raise InputError(f"'{name}' is neither a folder nor a hub id such as Qwen/Qwen3-0.6B.") from error
    except hub.RepositoryNotFoundError as error:
        raise InputError(f"There is no folder and no model {name} on the hub; check the name, or log in.") from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise InputError(
            f"{name} is no folder, and not in the local hub cache, and the hub cannot be reached; check the network, "
            "or give a folder."
        ) from error
    except BaseException as error:  # a configuration or a tokenizer that lies fails in a hundred places
        ours = isinstance(error, InputError | MemoryError) or "out of memory" in str(error)
        panicked = type(error).__name__ == "PanicException"  # how tokenizers, which is Rust, can end
        if ours or not (isinstance(error, Exception) or panicked):
            raise
        raise InputError(f"{name} can't be loaded ({_told(error)}); check its {files}, or get a whole copy.") from error


def _told(error: BaseException) -> str:
    """What an error says, as part of a sentence: the heading of its first line would not tell what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = f"{' '.join(lines[:2]):.300}".rstrip(".:")
    bare = isinstance(error, LookupError | ArithmeticError | AttributeError | TypeError | AssertionError) or not said
    return f"{type(error).__name__}: {said}".removesuffix(": ") if bare else said
