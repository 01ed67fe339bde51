"""Tell what identifies a loaded model: the files that it was loaded from."""

from pathlib import Path
from weakref import WeakKeyDictionary

from torch import nn

from internal_policy.errors import InputError
from internal_policy.models.adapters import inside, of_peft
from internal_policy.models.checkpoint import Checkpoint, identity

_loaded: WeakKeyDictionary[nn.Module, Checkpoint] = WeakKeyDictionary()
"""Model without wrappers -> the checkpoint that `loading.load_model` read."""


def record(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Remember what a model was loaded from."""
    _loaded[inside(model)] = checkpoint


def checkpoint_of(model: nn.Module) -> Checkpoint | None:
    """What a model was loaded from; None if we didn't load it."""
    return _loaded.get(inside(model))


def identity_of(model: nn.Module) -> str | None:
    """`checkpoint.identity` of the files that a model was loaded from, by us or by transformers; None if unknown.

    It doesn't change when the weights are trained afterwards.
    """
    config = inside(model).config
    if inside(model) in _loaded:
        return identity(_loaded[inside(model)])
    if of_peft(model):
        return None
    if commit := getattr(config, "_commit_hash", None):
        return f"commit {commit}"
    name = config.name_or_path or ""
    try:
        return identity(Checkpoint(name)) if name and Path(name).is_dir() else None
    except InputError:  # the folder has changed since
        return None
