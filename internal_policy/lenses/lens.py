"""A fitted lens: at each hook point a map that brings a hidden state to the model's final norm."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from internal_policy.errors import InputError, counted
from internal_policy.jupyter import notebook
from internal_policy.jupyter.notebook import printable
from internal_policy.measure.sites import SITES
from internal_policy.models.hooks import HookPoint
from internal_policy.models.modules import final_norm
from internal_policy.scans.selection import canonical


class Translator(NamedTuple):
    """The map of a tuned lens (arXiv 2303.08112), fitted so that its policy comes close to the model's own."""

    weight: Float[Tensor, "d_model d_model"]
    bias: Float[Tensor, " d_model"]

    def __call__(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """hidden + hidden @ weight.T + bias."""
        return hidden + hidden @ self.weight.to(hidden).T + self.bias.to(hidden)


class Jacobian(NamedTuple):
    """The map of a Jacobian lens: the average derivative of the last layer's output with respect to a hidden state."""

    jacobian: Float[Tensor, "d_model d_model"]

    def __call__(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """hidden @ jacobian.T."""
        return hidden @ self.jacobian.to(hidden).T


Map = Translator | Jacobian
KINDS: Mapping[str, type[Map]] = {"tuned": Translator, "jacobian": Jacobian}
"""Kind of a lens, and by default the name of its readout -> its maps."""


@dataclass(frozen=True, eq=False, repr=False)
class FittedLens:
    """The maps of a lens, without the model that they belong to."""

    at: Mapping[HookPoint, Map]
    """Hook point -> map, all of one kind; a layer's input is stored as the output of the layer before."""
    n_layers: int
    """Decoder layers of the model."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What its file says about it: model, identity, d_model, what it was fitted on, kl."""

    @property
    def kind(self) -> str:
        """tuned or jacobian. Raises InputError for a lens without maps, or with maps of several kinds."""
        kinds = [name for name, of in KINDS.items() if any(isinstance(found, of) for found in self.at.values())]
        if len(kinds) != 1:
            raise InputError(f"A lens needs maps of one kind, but this one has {' and '.join(kinds) or 'none'}.")
        return kinds[0]

    @property
    def last(self) -> HookPoint:
        """The output of the last layer, which needs no map: the final norm makes it the model's own policy."""
        return HookPoint(self.n_layers - 1, "resid_post")

    def facts(self) -> dict[str, object]:
        """Its kind, the model that it was fitted to, the layers and sites that it was fitted at, and its width."""
        layers, sites = {point.layer for point in self.at}, {point.site for point in self.at}
        return {
            "lens": self.kind,
            **({"model": self.about["model"]} if "model" in self.about else {}),
            "hook points": len(self.at),
            "layers": f"{min(layers)} to {max(layers)} of {self.n_layers}",
            "sites": ", ".join(site for site in SITES if site in sites),
            "width": next(iter(self.at.values()))[0].shape[-1],
        }

    def __repr__(self) -> str:
        """What it is and where it was fitted, without the numbers of its maps."""
        found = {name: printable(str(value)) for name, value in self.facts().items()}
        model = f" of {found['model']}" if "model" in found else ""
        points = counted(len(self.at), "hook point")
        return f"<{found['lens']} lens{model}: {points} at {found['sites']}, layers {found['layers']}>"

    def _repr_html_(self) -> str:
        """The same as a table, for a notebook."""
        return notebook.page(lambda: notebook.facts(self.facts()))

    def check(self, points: Iterable[HookPoint], called: str = "The lens") -> None:
        """Raise InputError for a hook point without a map, listing those that have one; `called` names the lens."""
        missing = [point for point in points if canonical(point.layer, point.site) not in (*self.at, self.last)]
        if not missing:
            return
        sites = [site for site in SITES if site in {point.site for point in self.at}]
        layers = ",".join(str(point.layer) for point in self.at if point.site == missing[0].site)
        remedy = f"--sites {','.join(sites)}" if missing[0].site not in sites else f"--layers {layers}"
        raise InputError(
            f"{called} was not fitted at {missing[0]}, only at {counted(len(self.at), 'hook point')} at "
            f"{', '.join(sites)}. "
            f"Read only those (scan {remedy}), or fit a lens with fit-lens --sites all."
        )


@dataclass(frozen=True, eq=False, repr=False)
class LensReadout:
    """A fitted lens as a readout: its map at a hook point, then the model's final norm.

    If a translator is 0, or a Jacobian is the identity, it equals the norm readout, the logit lens. Maps are applied in
    float32 or better.
    """

    lens: FittedLens
    norm: nn.Module
    """The model's own final norm."""
    name: str
    """The readout's name."""

    def __repr__(self) -> str:
        """The readout's name and its lens."""
        return f"<readout {printable(self.name)}: {self.lens!r}>"

    def _repr_html_(self) -> str:
        """The same as a table, for a notebook."""
        return notebook.page(lambda: notebook.facts({"readout": self.name, **self.lens.facts()}))

    @property
    def __name__(self) -> str:
        """The readout's name, under the attribute that functions have."""
        return self.name

    def __call__(self, hidden: Float[Tensor, "*batch d_model"], point: HookPoint) -> Float[Tensor, "*batch d_model"]:
        """`hidden` of `point` as the unembedding reads it. Raises InputError for a point without a map."""
        self.lens.check([point])
        found = self.lens.at.get(canonical(point.layer, point.site))
        if found is not None:
            exact = hidden.to(torch.promote_types(hidden.dtype, found[0].dtype))
            hidden = found(exact).to(hidden.dtype)
        return self.norm(hidden)


def of(lens: FittedLens, model: nn.Module, name: str | None = None) -> LensReadout:
    """A lens as a readout of `model`, by default named after its kind. The maps aren't copied."""
    return LensReadout(lens, final_norm(model), lens.kind if name is None else name)
