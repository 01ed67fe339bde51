"""Load a model by its name, or say in one sentence why it cannot be."""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internal_policy.bundle import DATA
from internal_policy.errors import InputError
from internal_policy.options import ModelOptions
from internal_policy.rows import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

OF_A_MODEL = (".json", ".safetensors", ".jinja", ".model", ".txt")
"""Endings of the files that make a model what it is."""


def resolve(name: str) -> str:
    """The folder of a bundled model by its name, else the name itself."""
    bundled = DATA / "models" / name
    return str(bundled) if name.startswith("demo-") and bundled.is_dir() else name


def identity(options: ModelOptions) -> str:
    """What tells this model from any other: the commit of one on the hub, a digest of the files of a folder.

    Raises InputError for a folder that holds no model, and for one on the hub that cannot be had.
    """
    name = resolve(options.model)
    folder = Path(name)
    if not name or folder.is_file():
        raise InputError(f"--model is '{name}'; give a folder that holds a model, or a hub id such as Qwen/Qwen3-0.6B.")
    if not folder.is_dir():
        with explained(options):
            from huggingface_hub import hf_hub_download
            from huggingface_hub.utils.logging import set_verbosity_error

            set_verbosity_error()  # it would tell of every retry
            return f"commit {Path(hf_hub_download(name, 'config.json', revision=options.revision)).parent.name}"
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no model: there is no config.json in it; give a folder that has one.")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise InputError(
            f"{folder} holds only pickled weights, which can run code when they are loaded; convert them to "
            "safetensors with `save_pretrained` of transformers, and give that folder."
            if pickled
            else f"{folder} holds no weights: there is no .safetensors file in it; copy the whole model."
        )
    found = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in OF_A_MODEL):
        with path.open("rb") as file:
            found.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256 {found.hexdigest()}"


def load_config(options: ModelOptions) -> "PreTrainedConfig":
    """The model's configuration. Raises InputError, also for a family that is not known."""
    with explained(options):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(
            resolve(options.model), revision=options.revision, trust_remote_code=options.trust_remote_code
        )
    from internal_policy.families import family_of

    family_of(config)
    return config


def load_tokenizer(options: ModelOptions, chat_template: str | None = None) -> "PreTrainedTokenizerBase":
    """The model's tokenizer, with the chat template in the file `chat_template` if that is given. Raises InputError."""
    with explained(options):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            resolve(options.model), revision=options.revision, trust_remote_code=options.trust_remote_code
        )
    if len(tokenizer) < 2:
        raise InputError(f"{options.model} has no tokenizer: there is no tokenizer.json in it; copy the whole model.")
    if chat_template not in (None, "none"):
        try:
            tokenizer.chat_template = Path(chat_template).read_text()
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


def load_model(options: ModelOptions) -> "PreTrainedModel":
    """The model, with its weights checked: safetensors only, and no NaN. Raises InputError."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(options)
    device = options.device
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = accelerator.type if accelerator else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"There is no device '{device}' here ({first_line(error)}); try --device auto.") from error
    with explained(options):
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
    for name, weight in model.named_parameters():
        if weight.is_meta:
            raise InputError(
                f"{options.model} does not fit on the devices here ({name} was left out); try --dtype bfloat16."
            )
        if not weight.isfinite().all():
            raise InputError(f"{options.model} has NaN or infinite weights in {name}; get a whole checkpoint.")
    if model.dtype == torch.float64:
        model.set_experts_implementation("eager")  # the fast one multiplies no float64
    return model.eval()


def weight_bytes(config: "PreTrainedConfig", dtype: str) -> int:
    """Memory of the weights, in bytes."""
    import torch
    from transformers import AutoModelForCausalLM

    kind = getattr(torch, dtype) if dtype != "auto" else (config.dtype or torch.float32)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=kind)
    return sum(math.prod(weight.shape) * weight.element_size() for weight in model.parameters())


@contextmanager
def explained(options: ModelOptions) -> Iterator[None]:
    """Turn what transformers and the hub raise into one sentence with the remedy."""
    import huggingface_hub.errors as hub
    from safetensors import SafetensorError

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
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        if isinstance(error, InputError | MemoryError) or "out of memory" in str(error):
            raise
        raise InputError(f"{name} cannot be loaded ({first_line(error)}); check that its files are whole.") from error
