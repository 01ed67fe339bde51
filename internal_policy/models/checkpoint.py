"""Which files a model is loaded from, and what identifies their content."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from internal_policy import bundle, files
from internal_policy.errors import InputError
from internal_policy.models import folder
from internal_policy.models.failures import explained
from internal_policy.models.quantized import Quantize


@dataclass(frozen=True)
class Checkpoint:
    """Which files a model is loaded from."""

    name: str
    """A folder, a hub id, or the name of a bundled model."""
    revision: str = "main"
    """Branch, tag or commit of a model on the hub."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""
    gguf_file: str | None = None
    """Name of a GGUF file of the model to load instead of its safetensors."""
    quantize: Quantize | None = None
    """How to quantize the weights when they are loaded."""

    @property
    def place(self) -> str:
        """Its folder or hub id; a bundled model is a folder."""
        return str(bundle.model(self.name) or self.name)

    @property
    def folder(self) -> Path:
        """Where its files are if it isn't on the hub."""
        return Path(self.place)


def identity(checkpoint: Checkpoint) -> str:
    """A text that identifies a model's content: the commit of a hub model, or a digest of the files in a folder.

    It covers the base model of an adapter, with `trust_remote_code` also the model's Python code, and how the weights
    are quantized when they are loaded. Raises InputError for a folder without a model, and for a hub model that can't
    be downloaded.
    """
    if checkpoint.quantize is not None:
        return f"{identity(replace(checkpoint, quantize=None))} in {checkpoint.quantize}"
    path = config_folder(checkpoint)
    if checkpoint.gguf_file is not None:
        if not checkpoint.folder.is_dir():
            return f"commit {path.name} file {checkpoint.gguf_file}"
        return f"sha256 {(files.fingerprint_once(path / checkpoint.gguf_file) or {}).get('sha256')}"
    if checkpoint.folder.is_dir():
        content = f"sha256 {folder.digest(path, checkpoint.trust_remote_code)}"
        if folder.is_adapter(path):
            with named_by(path):
                return f"{content} on {identity(base(checkpoint))}"
    else:
        content = f"commit {path.name}"
    elsewhere = sorted(folder.code_elsewhere(path)) if checkpoint.trust_remote_code else []
    code = (f" with {place} at {_commit(checkpoint, place, file, 'main').name}" for place, file in elsewhere)
    return content + "".join(code)


def config_folder(checkpoint: Checkpoint) -> Path:
    """The folder that holds its configuration, in the local hub cache for a model on the hub. Raises InputError.

    A GGUF file holds its own configuration.
    """
    try:
        wrong = not checkpoint.name or checkpoint.folder.is_file()
    except OSError:  # the name isn't a valid path
        wrong = True
    if wrong:
        file = " For a GGUF file, give its folder, and its name as the GGUF file." if ".gguf" in checkpoint.name else ""
        raise InputError(
            f"Can't load a model from '{checkpoint.name:.80}'. Use a model folder, or a hub id such as Qwen/Qwen3-0.6B."
            f"{file}"
        )
    if checkpoint.folder.is_dir():
        if checkpoint.gguf_file is None:
            folder.check(checkpoint.folder)
        else:
            folder.check_gguf(checkpoint.folder, checkpoint.gguf_file)
        return checkpoint.folder
    return _commit(checkpoint, checkpoint.place, checkpoint.gguf_file or "config.json", checkpoint.revision)


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
    name, revision = folder.base_of(checkpoint.folder)
    return replace(checkpoint, name=name, revision=revision)


@contextmanager
def named_by(path: Path) -> Iterator[None]:
    """Add the adapter, if the folder is one, to an error about its base model."""
    try:
        yield
    except InputError as error:
        why = f" {path / folder.ADAPTER} names it as the base model." if folder.is_adapter(path) else ""
        raise InputError(f"{error}{why}") from error


def of_hub(checkpoint: Checkpoint, name: str) -> Path | None:
    """A file of a hub model in the local hub cache, or None if the model has no such file. Raises InputError."""
    with explained(checkpoint.name, checkpoint.revision):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(hf_hub_download(checkpoint.name, name, revision=checkpoint.revision))
        except EntryNotFoundError:  # or an offline cache without the file
            return None
