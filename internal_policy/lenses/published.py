"""Read and write Jacobian lenses in the format in which they are published: J, n_prompts, source_layers, d_model."""

import json
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from internal_policy import files
from internal_policy.errors import InputError, first_line, quoted
from internal_policy.lenses.header import ABOUT
from internal_policy.lenses.lens import FittedLens, Jacobian
from internal_policy.models.hooks import HookPoint

GLOBALS = {
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "collections OrderedDict",
    *(f"torch {kind}Storage" for kind in ("Half", "BFloat16", "Float", "Double")),
}
"""What a pickle of tensors, numbers and texts names. torch's own list for weights_only also has `bytearray`, which can
fill the memory."""
MOST = 16_000_000
"""Bytes of the pickle at most, beside its tensors."""
PARTS = 100_000
"""Files in the archive at most."""
FIELDS = {"J": dict, "n_prompts": int, "source_layers": list, "d_model": int}
"""Field that every file has -> its type."""


def read(path: Path) -> FittedLens:
    """The lens that `torch.save` wrote: J[l] is the Jacobian of the last layer's output by the output of layer l.

    Nothing in the file is run, and no more memory is taken than the file has bytes. Raises InputError for any other
    file, and for maps that aren't finite or square.
    """
    _check_archive(path)
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged archive or pickle fails in a dozen ways
        raise InputError(f"Can't read {path} ({first_line(error):.200}). Get a complete copy of the lens.") from error
    if not isinstance(value, Mapping) or "J" not in value:
        new = path.with_suffix(".safetensors")
        raise InputError(
            f'{path} is a pickle, which can run code when loaded. Convert it with `python -c "import torch, '
            f"safetensors.torch as s; s.save_file(torch.load('{path}', weights_only=True), '{new}')\"`."
        )
    for name, kind in FIELDS.items():
        if type(value.get(name)) is not kind:
            raise _wrong(path, f"'{name}' is {quoted(value.get(name))}")
    jacobians, layers, d_model = value["J"], value["source_layers"], value["d_model"]
    if not all(type(layer) is int and layer >= 0 for layer in [*jacobians, *layers]):
        raise _wrong(path, f"its layers are {quoted([*jacobians])}")
    if sorted(layers) != sorted(jacobians):
        raise _wrong(path, f"it has J for the layers {quoted(sorted(jacobians))}, but lists {quoted(layers)}")
    if not jacobians or value["n_prompts"] < 1 or d_model < 1:
        raise _wrong(path, f"it has {len(jacobians)} layers, {value['n_prompts']} prompts and d_model {d_model}")
    at = {
        HookPoint(layer, "resid_post"): Jacobian(_square(jacobians[layer], layer, d_model, path))
        for layer in sorted(jacobians)
    }
    return FittedLens(at, max(jacobians) + 2, _about(value, path))


def copy(path: Path, target: Path) -> None:
    """Write a published lens as a safetensors file. Raises InputError; see `read`."""
    lens = read(path)
    tensors = {f"{point}.jacobian": found[0] for point, found in lens.at.items()}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(target) as temporary:
            save_file(tensors, temporary, {ABOUT: json.dumps(lens.about)})
    except OSError as error:
        raise InputError(
            f"Can't write a safetensors copy of {path} to {target.parent} ({error.strerror}). Set "
            "INTERNAL_POLICY_CACHE to another folder."
        ) from error


def _check_archive(path: Path) -> None:
    """Raise InputError unless a file is an archive of tensors, numbers and texts that takes up as much as it has."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            size = sum(part.file_size for part in parts)
            pickles = [part for part in parts if part.filename.rpartition("/")[2] == "data.pkl"]
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or size > path.stat().st_size:
                raise InputError(f"{path} is compressed, which torch.save doesn't do. Get another copy of the lens.")
            if len(pickles) != 1 or pickles[0].file_size > MOST or len(parts) > PARTS:
                raise InputError(f"{path} isn't a file of tensors that torch.save wrote. Get another copy of the lens.")
            found = list(pickletools.genops(archive.read(pickles[0])))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RecursionError, EOFError) as error:
        raise InputError(
            f"Can't read {path} as a file that torch.save wrote ({first_line(error):.200}). Get a complete copy of the "
            "lens."
        ) from error
    named = {str(argument) for code, argument, _ in found if code.name == "GLOBAL"}
    named |= {code.name for code, *_ in found if code.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX")}
    if foreign := sorted(named - GLOBALS):
        raise InputError(
            f"{path} is a pickle that asks for '{foreign[0]:.60}', which isn't part of a lens and could run code. "
            "Don't load it; get the lens from a source you trust."
        )


def _square(tensor: Any, layer: int, d_model: int, path: Path) -> Float[Tensor, "d_model d_model"]:
    """The Jacobian of a layer. Raises InputError unless it is a finite matrix of that size."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise _wrong(path, f"J of layer {layer} is {quoted(tensor)}")
    if tensor.shape != (d_model, d_model):
        raise _wrong(path, f"J of layer {layer} has shape {tuple(tensor.shape)}, but d_model is {d_model}")
    if not tensor.is_contiguous():  # a view could be larger than the file
        raise _wrong(path, f"J of layer {layer} isn't stored as a matrix")
    if not tensor.isfinite().all():
        raise InputError(f"{path} has NaN or infinite values in J of layer {layer}. Fit the lens again.")
    return tensor.detach()


def _about(value: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What the file says about the lens; if we published it, also the model that it was fitted to."""
    told = value.get("provenance")
    ours = {name: told[name] for name in ("model", "identity") if isinstance(told, dict) and _is_text(told.get(name))}
    about = {name: value[name] for name in ("n_prompts", "d_model")} | ours | {"format": "published"}
    try:
        return json.loads(json.dumps(about | ({} if told is None else {"provenance": told}), default=str))
    except (ValueError, TypeError, RecursionError) as error:
        raise _wrong(path, f"its provenance can't be read ({first_line(error):.60})") from error


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _wrong(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} isn't a published Jacobian lens: {what}. It needs J (layer -> matrix), n_prompts, source_layers and "
        "d_model."
    )


def publish(path: Path | str, lens: FittedLens) -> None:
    """Write the maps of a Jacobian lens at the outputs of layers, in float16, as other libraries read them.

    Raises InputError for another kind of lens, one without maps there, and values that float16 can't hold.
    """
    if lens.kind != "jacobian":
        raise InputError(f"Only Jacobian lenses are published in this format, but this one is {lens.kind}.")
    jacobians: dict[int, Tensor] = {}
    for point, found in lens.at.items():
        if point.site == "resid_post":
            half = found[0].detach().cpu().to(torch.float16).contiguous()
            if not half.isfinite().all():
                raise InputError(f"The Jacobian at {point} has values above 65504, which float16 can't hold.")
            jacobians[point.layer] = half
    if not jacobians:
        raise InputError("The lens has no map at a layer's output (resid_post), which is all that the format holds.")
    fitted_on = lens.about.get("fitted_on", {})
    value = {
        "J": dict(sorted(jacobians.items())),
        "n_prompts": int(lens.about.get("n_prompts") or fitted_on.get("rollouts") or 1),
        "source_layers": sorted(jacobians),
        "d_model": next(iter(jacobians.values())).shape[0],
        "provenance": json.loads(json.dumps(dict(lens.about), default=str)),
    }
    with files.replacing(Path(path)) as temporary:
        torch.save(value, temporary)
