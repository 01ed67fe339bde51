"""Read fitted lenses from files, and write them."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from internal_policy import files
from internal_policy.errors import InputError
from internal_policy.lenses.header import ABOUT, check_model, header, unknown
from internal_policy.lenses.lens import KINDS, FittedLens, LensReadout, Map, of
from internal_policy.measure.sites import SITES
from internal_policy.models.adapters import inside
from internal_policy.models.head import unembedding
from internal_policy.models.hooks import HookPoint
from internal_policy.models.modules import decoder_layers
from internal_policy.models.origin import identity_of
from internal_policy.scans.selection import canonical

_noted: set[str] = set()
"""Notes that were printed already."""
PARTS = {part: of for of in KINDS.values() for part in of._fields}
"""Last word of a tensor's key -> the map that it is a part of."""


def load(path: Path | str, model: nn.Module, *, of_another_model: bool = False) -> LensReadout:
    """The lens in a file, for `model`. Raises InputError; see `read`.

    Also raises InputError if the lens was fitted to another model, unless `of_another_model`. A model is known by the
    files that it was loaded from. If the lens or the model has no such identity, a note on stderr says so once.
    """
    about = header(Path(path)).about
    if not of_another_model:
        called, identity = f"The lens {path}", identity_of(model) if "identity" in about else None
        note = unknown(called, about, identity)
        if note is not None and note not in _noted:
            _noted.add(note)
            print(note, file=sys.stderr)
        if identity is not None:
            check_model(called, about, identity, inside(model).config.name_or_path)
    return of(read(Path(path), len(decoder_layers(model)), unembedding(model).in_features), model)


def read(path: Path, n_layers: int, d_model: int) -> FittedLens:
    """The lens in a safetensors file, in float32 or better, for a model of that size.

    Its keys are 5.resid_post.weight and 5.resid_post.bias for a translator, and 5.resid_post.jacobian for a Jacobian.
    The tuned-lens library's are 5.weight and 5.bias, because it numbers the `hidden_states` of transformers: 5 is the
    input of layer 5. Raises InputError for any other key, for maps of several kinds or of another model, and for a file
    that is damaged or a pickle.
    """
    parts: dict[HookPoint, dict[str, Tensor]] = {}
    tensors, about = _tensors(path)
    for key, tensor in tensors.items():
        point, part = _place(key, path)
        _check(key, tensor, point, n_layers, d_model, path)
        held = parts.setdefault(canonical(point.layer, point.site), {})
        if part in held:
            raise InputError(f"{path} has {part} twice for {canonical(point.layer, point.site)}. Remove one.")
        held[part] = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    if not parts:
        raise InputError(f"{path} contains no lens. Fit one with `internal-policy fit-lens`.")
    maps: dict[HookPoint, Map] = {}
    for point in sorted(parts, key=lambda point: (point.layer, SITES.index(point.site))):
        held = parts[point]
        kind, *others = {PARTS[part] for part in held}
        if others:
            raise InputError(f"{path} has both a translator and a Jacobian for {point}. Keep one of them.")
        if missing := set(kind._fields) - held.keys():
            raise InputError(f"{path} has no {min(missing)} for {point}. Get a complete copy of the lens.")
        maps[point] = kind(**held)
    lens = FittedLens(maps, n_layers, about)
    _ = lens.kind  # refuses maps of several kinds
    return lens


def _check(key: str, tensor: Tensor, point: HookPoint, n_layers: int, d_model: int, path: Path) -> None:
    """Raise InputError for a tensor that doesn't fit the model, or isn't finite."""
    if point.layer >= n_layers:
        raise InputError(
            f"{path} has a map for layer {point.layer}, but the model's layers are 0 to {n_layers - 1}. "
            "Use a lens for this model."
        )
    shape = (d_model,) if key.endswith(".bias") else (d_model, d_model)
    if tensor.shape != shape:
        raise InputError(
            f"{path} has {key} of shape {tuple(tensor.shape)}, but the model's hidden states have {d_model} "
            f"entries; expected {shape}. Use a lens for this model."
        )
    if not tensor.isfinite().all():
        raise InputError(f"{path} has NaN or infinite values in {key}. Fit the lens again.")


def _tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is in a safetensors file, and its metadata."""
    about = header(path).about
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(about)  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"Can't read {path} as safetensors ({error}). Get a complete copy of the lens.") from error


def _place(key: str, path: Path) -> tuple[HookPoint, str]:
    """The hook point of a tensor, and which part of a map it is."""
    match = re.fullmatch(rf"(\d+)(?:\.({'|'.join(SITES)}))?\.({'|'.join(PARTS)})", key)
    if not match:
        raise InputError(
            f"{path} has the key '{key}', but a lens has keys such as 5.resid_post.weight and 5.resid_post.bias, "
            "5.resid_post.jacobian, or 5.weight and 5.bias in the tuned-lens library's files."
        )
    layer, site, part = match.groups()
    return HookPoint(int(layer), site or "resid_pre"), part


def save(path: Path | str, lens: FittedLens) -> None:
    """Write a safetensors file, whole or not at all."""
    tensors = {
        f"{point}.{part}": tensor for point, found in lens.at.items() for part, tensor in found._asdict().items()
    }
    about = {ABOUT: json.dumps(lens.about, default=str)}  # a single key, because safetensors shuffles several
    with files.replacing(Path(path)) as temporary:
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, temporary, about)
