"""Read fitted lenses from files, and write them."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from internal_policy import files
from internal_policy.errors import InputError
from internal_policy.lenses import digest
from internal_policy.lenses.header import ABOUT, SHA256, check_model, header, unknown
from internal_policy.lenses.lens import KINDS, FittedLens, LensReadout, Map, of
from internal_policy.lenses.source import find
from internal_policy.measure.sites import SITES
from internal_policy.models.adapters import inside
from internal_policy.models.head import unembedding
from internal_policy.models.hooks import HookPoint
from internal_policy.models.modules import decoder_layers
from internal_policy.models.origin import identity_of
from internal_policy.scans.selection import canonical

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types of numbers that maps may have."""
_noted: set[str] = set()
"""Notes that were printed already."""
PARTS = {part: of for of in KINDS.values() for part in of._fields}
"""Last word of a tensor's key -> the map that it is a part of."""


def load(path: Path | str, model: nn.Module, *, of_another_model: bool = False) -> LensReadout:
    """The lens in a file, for `model`: a path, or hf://org/repo[/path/in/repo][@revision] on the hub.

    A file is one that `fit-lens` or the tuned-lens library wrote, or a published Jacobian lens. Raises InputError; see
    `read`, `published.read` and `source.find`.

    Also raises InputError if the lens was fitted to another model, unless `of_another_model`. A model is known by the
    files that it was loaded from. If the lens or the model has no such identity, a note on stderr says so once.
    """
    found = find(path).path
    about = header(found, path).about
    if not of_another_model:
        called, identity = f"The lens {path}", identity_of(model) if "identity" in about else None
        note = unknown(called, about, identity)
        if note is not None and note not in _noted:
            _noted.add(note)
            print(note, file=sys.stderr)
        if identity is not None:
            check_model(called, about, identity, str(inside(model).config.name_or_path))
    return of(read(found, len(decoder_layers(model)), unembedding(model).in_features, str(path)), model)


def read(path: Path, n_layers: int, d_model: int, called: str | None = None) -> FittedLens:
    """The lens in a safetensors file, in float32 or better, for a model of that size.

    Its keys are 5.resid_post.weight and 5.resid_post.bias for a translator, and 5.resid_post.jacobian for a Jacobian.
    The tuned-lens library's are 5.weight and 5.bias, because it numbers the `hidden_states` of transformers: 5 is the
    input of layer 5. Errors name the file as it was `called`, by default by its path. Raises InputError for any other
    key, for maps of several kinds or of another model, for values that aren't finite numbers, and for a damaged file.
    """
    name, parts = called or str(path), dict[HookPoint, dict[str, Tensor]]()
    known, digests = header(path, name), dict[str, str]()
    about = known.about
    for key, tensor in _tensors(path, n_layers, d_model, name):
        digests[key] = digest.of_tensor(tensor)
        point, part = _place(key, name)
        held = parts.setdefault(canonical(point.layer, point.site), {})
        if part in held:
            raise InputError(f"{name} has {part} twice for {canonical(point.layer, point.site)}. Remove one.")
        held[part] = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    if known.sha256 not in (None, digest.of(digests, about)):
        raise InputError(f"{name} was changed after it was written. Get a complete copy of the lens.")
    maps: dict[HookPoint, Map] = {}
    for point in sorted(parts, key=lambda point: (point.layer, SITES.index(point.site))):
        held = parts[point]
        kind, *others = {PARTS[part] for part in held}
        if others:
            raise InputError(f"{name} has both a translator and a Jacobian for {point}. Keep one of them.")
        if missing := set(kind._fields) - held.keys():
            raise InputError(f"{name} has no {min(missing)} for {point}. Get a complete copy of the lens.")
        maps[point] = kind(**held)
    lens = FittedLens(maps, n_layers, about)
    _ = lens.kind  # refuses maps of several kinds
    return lens


def sizes(path: Path, called: str | None = None) -> tuple[int, int]:
    """The fewest layers that the model of a lens has, and its d_model, as the maps in its file imply.

    The output of the last layer needs no map. Errors name the file as it was `called`. Raises InputError.
    """
    name, layers, widths = called or str(path), [0], [0]
    header(path, name)
    try:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                place, _ = _place(key, name)
                point = canonical(place.layer, place.site)
                layers.append(point.layer + (2 if point.site == "resid_post" else 1))
                widths += file.get_slice(key).get_shape()[-1:]
    except SafetensorError as error:
        raise InputError(f"Can't read {name} as safetensors ({error}). Get a complete copy of the lens.") from error
    return max(layers), max(widths)


def _tensors(path: Path, n_layers: int, d_model: int, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file by their keys, each read once its size is known to be right."""
    try:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                point, _ = _place(key, name)
                _check_size(key, tuple(file.get_slice(key).get_shape()), point, n_layers, d_model, name)
                tensor = file.get_tensor(key)
                if tensor.dtype not in DTYPES:
                    raise InputError(
                        f"{name} has {key} as {str(tensor.dtype).removeprefix('torch.')}, but maps are float16, "
                        "bfloat16, float32 or float64. Get another copy of the lens."
                    )
                if not tensor.isfinite().all():
                    raise InputError(f"{name} has NaN or infinite values in {key}. Fit the lens again.")
                yield key, tensor
    except SafetensorError as error:
        raise InputError(f"Can't read {name} as safetensors ({error}). Get a complete copy of the lens.") from error


def _check_size(key: str, shape: tuple[int, ...], point: HookPoint, n_layers: int, d_model: int, name: str) -> None:
    """Raise InputError for a tensor that doesn't fit the model."""
    if point.layer >= n_layers:
        raise InputError(
            f"{name} has a map for layer {point.layer}, but the model's layers are 0 to {n_layers - 1}. "
            "Use a lens for this model."
        )
    expected = (d_model,) if key.endswith(".bias") else (d_model, d_model)
    if shape != expected:
        raise InputError(
            f"{name} has {key} of shape {shape}, but the model's hidden states have {d_model} entries; expected "
            f"{expected}. Use a lens for this model."
        )


def _place(key: str, name: str) -> tuple[HookPoint, str]:
    """The hook point of a tensor, and which part of a map it is."""
    match = re.fullmatch(rf"(\d+)(?:\.({'|'.join(SITES)}))?\.({'|'.join(PARTS)})", key)
    if not match:
        raise InputError(
            f"{name} has the key '{key}', but a lens has keys such as 5.resid_post.weight and 5.resid_post.bias, "
            "5.resid_post.jacobian, or 5.weight and 5.bias in the tuned-lens library's files."
        )
    layer, site, part = match.groups()
    return HookPoint(int(layer), site or "resid_pre"), part


def save(path: Path | str, lens: FittedLens) -> None:
    """Write a safetensors file, whole or not at all."""
    tensors = {
        f"{point}.{part}": tensor for point, found in lens.at.items() for part, tensor in found._asdict().items()
    }
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    said = json.loads(json.dumps(lens.about, default=str))
    sha256 = digest.of({key: digest.of_tensor(tensor) for key, tensor in plain.items()}, said)
    about = {ABOUT: json.dumps({**said, SHA256: sha256})}  # a single key, because safetensors shuffles several
    with files.replacing(Path(path)) as temporary:
        save_file(plain, temporary, about)
