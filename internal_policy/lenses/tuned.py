"""The tuned lens: at each hook point an affine translator that brings a hidden state to the unembedding."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from internal_policy import files
from internal_policy.errors import InputError, counted
from internal_policy.measure.sites import SITES
from internal_policy.models.head import unembedding
from internal_policy.models.hooks import HookPoint
from internal_policy.models.modules import decoder_layers, final_norm
from internal_policy.scans.selection import canonical

NAME = "tuned"
"""The readout's default name."""
ABOUT = "internal_policy"
"""Key in the file's metadata; its JSON value describes the translators."""
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")


class Translator(NamedTuple):
    """An affine map whose result, hidden @ weight.T + bias, is added to a hidden state."""

    weight: Float[Tensor, "d_model d_model"]
    bias: Float[Tensor, " d_model"]


@dataclass(frozen=True, eq=False)
class Translators:
    """The translators of a lens, without the model that they belong to."""

    at: Mapping[HookPoint, Translator]
    """Hook point -> translator; a layer's input is stored as the output of the layer before."""
    n_layers: int
    """Decoder layers of the model."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the file says about them: model, identity, d_model, what they were fitted on, kl."""

    @property
    def last(self) -> HookPoint:
        """The output of the last layer, which needs no translator: the final norm makes it the model's own policy."""
        return HookPoint(self.n_layers - 1, "resid_post")

    def check(self, points: Iterable[HookPoint]) -> None:
        """Raise InputError for a hook point without a translator, listing those that have one."""
        missing = [point for point in points if canonical(point.layer, point.site) not in (*self.at, self.last)]
        if not missing:
            return
        sites = [site for site in SITES if site in {point.site for point in self.at}]
        layers = ",".join(str(point.layer) for point in self.at if point.site == missing[0].site)
        remedy = f"--sites {','.join(sites)}" if missing[0].site not in sites else f"--layers {layers}"
        raise InputError(
            f"The lens has no translator for {missing[0]}, only for {counted(len(self.at), 'hook point')} at "
            f"{', '.join(sites)}. "
            f"Read only those (scan {remedy}), or fit a lens with fit-lens --sites all."
        )


@dataclass(frozen=True, eq=False)
class Tuned:
    """hidden + hidden @ weight.T + bias, then the model's final norm (arXiv 2303.08112): a readout.

    If all translators are 0, it equals the norm readout, the logit lens. Translators are applied in float32 or better.
    """

    translators: Translators
    norm: nn.Module
    """The model's own final norm."""
    name: str = NAME
    """The readout's name."""

    @property
    def __name__(self) -> str:
        """The readout's name, under the attribute that functions have."""
        return self.name

    def __call__(self, hidden: Float[Tensor, "*batch d_model"], point: HookPoint) -> Float[Tensor, "*batch d_model"]:
        """`hidden` of `point` as the unembedding reads it. Raises InputError for a point without a translator."""
        self.translators.check([point])
        at = canonical(point.layer, point.site)
        if at in self.translators.at:
            weight, bias = (tensor.to(hidden.device) for tensor in self.translators.at[at])
            dtype = torch.promote_types(hidden.dtype, weight.dtype)
            exact = hidden.to(dtype)
            hidden = (exact + exact @ weight.to(dtype).T + bias.to(dtype)).to(hidden.dtype)
        return self.norm(hidden)


def load(path: Path | str, model: nn.Module) -> Tuned:
    """The lens in a file, for `model`. Raises InputError; see `read`."""
    return of(read(Path(path), len(decoder_layers(model)), unembedding(model).in_features), model)


def of(translators: Translators, model: nn.Module, name: str = NAME) -> Tuned:
    """A lens from these translators for `model`. They aren't copied: training them trains the lens."""
    return Tuned(translators, final_norm(model), name)


def read(path: Path, n_layers: int, d_model: int) -> Translators:
    """The translators in a safetensors file, in float32 or better, for a model of that size.

    Its keys are 5.resid_post.weight and 5.resid_post.bias, or 5.weight and 5.bias from the tuned-lens library, which
    numbers the `hidden_states` of transformers: 5 is the input of layer 5. Raises InputError for any other key, for
    translators of another model, and for a file that is damaged or a pickle.
    """
    halves: dict[HookPoint, dict[str, Tensor]] = {}
    tensors, about = _tensors(path)
    for key, tensor in tensors.items():
        point, kind = _place(key, path)
        if point.layer >= n_layers:
            raise InputError(
                f"{path} has a translator for layer {point.layer}, but the model's layers are 0 to {n_layers - 1}. "
                "Use a lens for this model."
            )
        shape = (d_model, d_model) if kind == "weight" else (d_model,)
        if tensor.shape != shape:
            raise InputError(
                f"{path} has {key} of shape {tuple(tensor.shape)}, but the model's hidden states have {d_model} "
                f"entries; expected {shape}. Use a lens for this model."
            )
        if not tensor.isfinite().all():
            raise InputError(f"{path} has NaN or infinite values in {key}. Fit the lens again.")
        kinds = halves.setdefault(canonical(point.layer, point.site), {})
        if kind in kinds:
            raise InputError(f"{path} has two translators for {canonical(point.layer, point.site)}. Remove one.")
        kinds[kind] = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    for point, kinds in halves.items():
        if missing := {"weight", "bias"} - kinds.keys():
            raise InputError(f"{path} has no {missing.pop()} for {point}. Get a complete copy of the lens.")
    if not halves:
        raise InputError(f"{path} contains no translators. Fit a lens with `internal-policy fit-lens`.")
    order = sorted(halves, key=lambda point: (point.layer, SITES.index(point.site)))
    return Translators({point: Translator(**halves[point]) for point in order}, n_layers, about)


def _tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is in a safetensors file, and its metadata."""
    if path.suffix in PICKLES:
        new = path.with_suffix(".safetensors")
        raise InputError(
            f'{path} is a pickle, which can run code when loaded. Convert it with `python -c "import torch, '
            f"safetensors.torch as s; s.save_file(torch.load('{path}', weights_only=True), '{new}')\"`."
        )
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "doesn't exist"
        raise InputError(f"The lens {path} {what}. Use a .safetensors file written by `internal-policy fit-lens`.")
    try:
        with safe_open(path, "pt") as file:
            about = (file.metadata() or {}).get(ABOUT, "{}")
            return {key: file.get_tensor(key) for key in file.keys()}, dict(json.loads(about))  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError) as error:
        raise InputError(f"Can't read {path} as safetensors ({error}). Get a complete copy of the lens.") from error


def _place(key: str, path: Path) -> tuple[HookPoint, str]:
    """The hook point of a tensor, and whether it is the weight or the bias."""
    match = re.fullmatch(rf"(\d+)(?:\.({'|'.join(SITES)}))?\.(weight|bias)", key)
    if not match:
        raise InputError(
            f"{path} has the key '{key}', but an affine lens has keys such as 5.resid_post.weight and "
            "5.resid_post.bias, or 5.weight and 5.bias in the tuned-lens library's files."
        )
    layer, site, kind = match.groups()
    return HookPoint(int(layer), site or "resid_pre"), kind


def save(path: Path | str, translators: Translators) -> None:
    """Write a safetensors file, whole or not at all."""
    tensors = {
        f"{point}.{kind}": tensor
        for point, translator in translators.at.items()
        for kind, tensor in translator._asdict().items()
    }
    about = {ABOUT: json.dumps(translators.about, default=str)}  # a single key, because safetensors shuffles several
    with files.replacing(Path(path)) as temporary:
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, temporary, about)
