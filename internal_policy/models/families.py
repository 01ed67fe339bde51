"""Find the row of a model's family, and what it says about the model's configuration."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from transformers import PreTrainedConfig

from internal_policy.errors import InputError
from internal_policy.measure.sites import SITES
from internal_policy.models.family import Family, Place, terms
from internal_policy.models.rows import FAMILIES
from internal_policy.models.rows.refused import REFUSED

ADMITTED: dict[str, str] = {}
"""Model type without a row -> the row that was proved on a tiny model of it in this process; see `trial`."""
_tried: ContextVar[tuple[str, str] | None] = ContextVar("_tried", default=None)


def family_of(config: PreTrainedConfig) -> Family:
    """The row for a model with this configuration. Raises InputError if there is none, or can't be."""
    return FAMILIES[row_of(config)[0]]


def row_of(config: PreTrainedConfig) -> tuple[str, Literal["table", "here"]]:
    """The name of the row for a model with this configuration, and where it is proved. Raises InputError.

    That is in the table of families, whose rows the tests prove, or here and now, by a trial.
    """
    kind, tried = config.model_type, _tried.get()
    if tried and tried[0] == kind:
        return tried[1], "here"
    if reason := REFUSED.get(kind):
        raise InputError(f"{kind} isn't supported: {reason}.")
    rows = {name: row for name, row in FAMILIES.items() if (row.model_type or name) == kind}
    if not rows and kind in ADMITTED:
        return ADMITTED[kind], "here"
    if not rows:
        raise InputError(
            f"The model type '{kind}' has no row in the table of families. Call ip.admit(model) to try the known rows, "
            "or `internal-policy families MODEL` to see why none fits."
        )
    # every hook asks for its family, and transformers looks attributes up slowly
    text = config.get_text_config() if any(row.needs for row in rows.values()) else config
    # a row without conditions is for all other models
    for name, row in sorted(rows.items(), key=lambda entry: -len(entry[1].needs)):
        if all(getattr(text, attribute) in values for attribute, values in row.needs.items()):
            return name, "table"
    values = ", ".join(f"{name} {getattr(text, name)}" for name in next(iter(rows.values())).needs)
    raise InputError(f"{kind} with {values} isn't supported. Add a row to FAMILIES in internal_policy/models/rows.")


def has_row(model_type: str) -> bool:
    """Whether the table of families has a row for a model type, or says why it can't have one."""
    return model_type in REFUSED or any((row.model_type or name) == model_type for name, row in FAMILIES.items())


@contextmanager
def trying(model_type: str, row: str) -> Iterator[None]:
    """Inside, this thread reads models of a type with the row of that name."""
    before = _tried.set((model_type, row))
    try:
        yield
    finally:
        _tried.reset(before)


def sites_of(config: PreTrainedConfig) -> tuple[str, ...]:
    """The sites that some layer of a model with this configuration has, in the order a forward pass reaches them."""
    some = {site for sites in layer_sites(config).values() for site in sites}
    return tuple(site for site in SITES if site in some)


def places_at(config: PreTrainedConfig, layer: int) -> Mapping[str, Place]:
    """The sites of one layer, in the order a forward pass reaches them -> their places. Raises InputError."""
    family = family_of(config)
    return family.kinds.get(kind_of(config, layer), family.sites) if family.kinds else family.sites


def layer_sites(config: PreTrainedConfig) -> dict[int, tuple[str, ...]]:
    """Each layer -> its sites, in the order a forward pass reaches them."""
    return {layer: tuple(places_at(config, layer)) for layer in range(config.get_text_config().num_hidden_layers)}


def check_sites(config: PreTrainedConfig, layers: Iterable[int], sites: Iterable[str]) -> None:
    """Raise InputError for the first of `sites` that some of `layers` lack, with the layers that have it."""
    known, layers = layer_sites(config), tuple(layers)
    for site in sites:
        place(config, site)
        having = [layer for layer in layers if site in known[layer]]
        if missing := [layer for layer in layers if layer not in having]:
            which = f"Choose the layers {','.join(map(str, having))}" if having else "Choose other layers"
            raise InputError(
                f"There is no {site} in {'layers' if missing[1:] else 'layer'} {','.join(map(str, missing))} of "
                f"{config.model_type}, because {family_of(config).absent[site]}. {which}, or all sites."
            )


def kind_of(config: PreTrainedConfig, layer: int) -> str:
    """The kind of a layer, such as linear_attention; empty if all layers of the family are alike."""
    family = family_of(config)
    if not family.kinds:
        return ""
    listed = getattr(config.get_text_config(), family.kind)
    if all(isinstance(each, int) for each in listed):
        (kind,) = family.kinds
        return kind if layer in listed else ""
    return listed[layer]


def place(config: PreTrainedConfig, site: str, layer: int | None = None) -> Place:
    """The place of `site` in one layer, or in the first that has it. Raises InputError for a site that it lacks."""
    n_layers = config.get_text_config().num_hidden_layers
    layers = range(n_layers) if layer is None else [layer]
    if found := next((places[site] for each in layers if site in (places := places_at(config, each))), None):
        return found
    family = family_of(config)
    where = config.model_type if layer is None or not family.kinds else f"Layer {layer} of {config.model_type}"
    others = sites_of(config) if layer is None else places_at(config, layer)
    raise InputError(
        f"{where} has no {site} because {family.absent[site]}. Its sites are {', '.join(others) or 'none'}."
    )


def factors(config: PreTrainedConfig, site: str, layer: int) -> list[float]:
    """What the output of each module whose sum is read at `site` is multiplied by; 1 if it isn't. Raises InputError."""
    text, (path, _) = config.get_text_config(), place(config, site, layer)
    return [float(getattr(text, attribute)) if attribute else 1.0 for _, attribute in terms(path)]


def multiplier(config: PreTrainedConfig, site: str) -> float:
    """What the state at `site` is multiplied by before it is added to the stream; 1 if it isn't."""
    family, text = family_of(config), config.get_text_config()
    if family.multiplier is None or site not in ("attn_out", "mlp_out"):
        return 1.0
    return float(getattr(text, family.multiplier)) / (math.sqrt(text.num_hidden_layers) if family.by_depth else 1.0)
