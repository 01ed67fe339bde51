"""Check the files of a model or adapter folder before anything is loaded from it."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from internal_policy import files
from internal_policy.errors import InputError

CONFIG, ADAPTER = "config.json", "adapter_config.json"
INDEX = "model.safetensors.index.json"
READ = (
    CONFIG,
    ADAPTER,
    INDEX,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Files that must be JSON objects if they exist."""
RANKS = ("r", "init_r", "n_frequency")
"""Fields of an adapter's configuration that say how many values each adapted module has, at least."""
OF_A_MODEL = (".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken")
"""Suffixes of the files that define a model."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter, whose base model is elsewhere."""
    return (folder / ADAPTER).is_file()


def base_of(folder: Path) -> tuple[str, str]:
    """The folder or hub id of an adapter's base model, and its revision. Raises InputError."""
    values = _object(folder / ADAPTER)
    name, revision = values.get("base_model_name_or_path"), values.get("revision") or "main"
    if not (isinstance(name, str) and name and isinstance(revision, str)):
        raise InputError(
            f"{folder / ADAPTER} has base_model_name_or_path {name!r:.60} and revision {revision!r:.60}; expected "
            "the folder or hub id of its base model, and a revision or null."
        )
    if is_adapter(Path(name)):
        raise InputError(
            f"{folder / ADAPTER} names {name} as its base model, but that is an adapter too. Merge it "
            "into its own base model first."
        )
    return name, revision


def check(folder: Path) -> None:
    """Raise InputError, naming the file, unless a folder holds a complete model or adapter in safetensors."""
    adapter = is_adapter(folder)
    if not adapter and not (folder / CONFIG).is_file():
        remedy = _ggufs(folder) or "Use a folder that has one."
        raise InputError(f"There is no model in {folder}: config.json is missing. {remedy}")
    weights = "adapter_model.safetensors" if adapter else "*.safetensors"
    if not any(folder.glob(weights)):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise InputError(
            f"{folder} has only pickled weights, which can run code when loaded. Convert them to safetensors with "
            f"`save_pretrained` of {'peft' if adapter else 'transformers'}, and use that folder."
            if pickled
            else f"There are no weights in {folder}: it has no {weights.removeprefix('*')} file. Copy the whole "
            f"{'adapter' if adapter else 'model'}."
        )
    for path in folder.iterdir():
        if path.suffix in OF_A_MODEL and not path.is_file():
            what = "is a folder" if path.is_dir() else "is a link to nothing or a device"
            raise InputError(f"{path} {what}; expected a file. Get a complete copy of the model.")
    for path in (folder / name for name in READ if (folder / name).exists()):
        _object(path)
    if adapter:
        _check_ranks(folder)
    for name in sorted(shards(folder)):
        if not os.path.isfile(folder / name):  # noqa: PTH113  # Path.is_file raises for a long name
            raise InputError(
                f"{folder / INDEX} names the file {name!r:.80}, which isn't in the folder. Copy the whole model."
            )


def check_gguf(folder: Path, name: str) -> None:
    """Raise InputError unless a folder holds the GGUF file `name`."""
    if not (folder / name).is_file() or Path(name).suffix != ".gguf":
        raise InputError(
            f"There is no GGUF file '{name:.80}' in {folder}. {_ggufs(folder) or 'Use a folder that has one.'}"
        )


def _ggufs(folder: Path) -> str:
    """The names of a folder's GGUF files, in a sentence; empty without any."""
    names = sorted(path.name for path in folder.glob("*.gguf"))
    return f"It has the GGUF files {', '.join(names)}: choose one with --gguf-file (gguf_file in Python)." * bool(names)


def check_depth(folder: Path, layers: int) -> None:
    """Raise InputError for a configuration with no layers, or with more layers than the weights have."""
    from safetensors import safe_open

    if layers < 1:
        raise InputError(f"{folder / CONFIG} claims {layers} layers; a model has at least one. Get a complete copy.")
    weights = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            weights += len(list(file.keys()))
    if layers > weights:
        raise InputError(
            f"{folder / CONFIG} claims {layers} layers, but the model's files hold only {weights} weights. "
            "Get a complete copy of the model."
        )


def _check_ranks(folder: Path) -> None:
    """Raise InputError for an adapter whose ranks are larger than its file, before memory is asked for."""
    values = _object(folder / ADAPTER)
    pattern = values.get("rank_pattern")
    ranks = [values.get(name) for name in RANKS] + [*(pattern.values() if isinstance(pattern, dict) else [])]
    largest = max((rank for rank in ranks if isinstance(rank, int)), default=0)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if largest > size:
        raise InputError(
            f"{folder / ADAPTER} claims a rank of {largest}, but the adapter's weights have only {size} bytes. "
            "Get the complete adapter."
        )


def shards(folder: Path) -> set[str]:
    """Names of the files of weights that the index of a folder lists; none without an index.

    Raises InputError for an index that can't be read, or that names anything but files of the folder.
    """
    path = folder / INDEX
    if not path.is_file():
        return set()
    files = _object(path).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise InputError(f"{path} has no weight_map from weights to files. Get a complete copy of the model.")
    if foreign := sorted(name for name in files.values() if Path(name).name != name):
        raise InputError(f"{path} names the file {foreign[0]!r:.80}, which isn't in the folder. Copy the whole model.")
    return set(files.values())


def _object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}). Get a complete copy of it.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} isn't JSON in UTF-8 ({error}). Get a complete copy of it.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds {values!r:.40}; expected a JSON object. Get a complete copy of it.")
    return values


def digest(folder: Path, code: bool) -> str:
    """SHA-256 of the files that define a model or adapter, including its Python files if `code`."""
    found = hashlib.sha256()
    more = [*folder.glob("additional_chat_templates/*.jinja"), *(folder.rglob("*.py") if code else [])]
    for path in sorted([path for path in folder.iterdir() if path.suffix in OF_A_MODEL] + more):
        known = files.fingerprint_once(path)
        if known is not None:  # it was there a moment ago
            found.update(f"{path.relative_to(folder).as_posix()} {known['sha256']}\n".encode())
    return found.hexdigest()


def code_elsewhere(folder: Path) -> set[tuple[str, str]]:
    """Hub repositories that hold this model's Python code, each with one of the files."""
    found: set[tuple[str, str]] = set()
    for path in (folder / name for name in (CONFIG, "tokenizer_config.json")):
        places = _object(path).get("auto_map") if path.is_file() else None
        values = places.values() if isinstance(places, dict) else []
        for place in (part for value in values for part in (value if isinstance(value, list) else [value])):
            repository, dashes, name = str(place).partition("--")
            if dashes:
                found.add((repository, f"{name.partition('.')[0]}.py"))
    return found
