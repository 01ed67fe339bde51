"""Select what to measure of a model, and plan which hidden states that needs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from internal_policy.errors import InputError, is_count
from internal_policy.measure.metrics import KNOWN, MEASURES
from internal_policy.measure.sites import INPUT_OF, ONLY_AT, SITES, STREAM_OF, WITH_FINAL
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.policy import READOUTS
from internal_policy.scans.positions import EVERY, Positions


@dataclass(frozen=True)
class Selection:
    """What to measure in a model."""

    layers: tuple[int, ...]
    """Decoder layers, from 0."""
    sites: tuple[str, ...] = SITES
    """Sites in each of the layers."""
    readouts: tuple[str, ...] = READOUTS
    """How hidden states are brought to the unembedding: raw, norm, or the name of a lens."""
    measures: tuple[str, ...] = MEASURES
    """Measures, such as entropy."""
    top_k: int = 5
    """How many of the most likely tokens to keep; 0 for none."""
    positions: Positions = EVERY
    """The positions of each response to measure."""

    def __post_init__(self) -> None:
        """Raise InputError for unknown or repeated names, and for an empty selection."""
        for what, given, known in (
            ("site", self.sites, SITES),
            ("measure", self.measures, KNOWN),
        ):
            if unknown := [name for name in given if name not in known]:
                raise InputError(f"There is no {what} '{unknown[0]}'. Choose from {', '.join(known)}.")
            if not given:
                raise InputError(f"No {what} is selected. Choose from {', '.join(known)}.")
        for what, given in (("Layer", self.layers), ("Site", self.sites), ("Measure", self.measures)):
            if twice := [name for name in given if list(given).count(name) > 1]:
                raise InputError(f"{what} {twice[0]} is listed twice. List each only once.")
        if not self.readouts:  # a lens may have any name
            raise InputError(f"No readout is selected. Choose from {', '.join(READOUTS)}.")
        if twice := [name for name in self.readouts if self.readouts.count(name) > 1]:
            raise InputError(f"Two readouts are called '{twice[0]}'. List each once, or give a lens another __name__.")
        if not self.layers or self.top_k < 0:
            raise InputError("There is nothing to measure. Select at least one layer, and a top-k of 0 or more.")
        if not any(self.names(site) for site in (*self.sites, "final")):
            raise InputError(f"Nothing to measure: there is no {', '.join(self.measures)} at {', '.join(self.sites)}.")

    def names(self, site: str) -> list[str]:
        """The measures that exist at `site` ("final" too), in order."""
        here = [name for name in KNOWN if site in ONLY_AT.get(name, WITH_FINAL)]
        return [name for name in here if name in self.measures and (name != "topk" or self.top_k)]

    def disk_bytes(self, tokens: int) -> int:
        """The most bytes that a scan writes for that many response tokens; compression makes it smaller."""
        kinds = [name for site in (*self.sites, "final") for name in self.names(site)]
        row = 4 * 4 + sum(8 * self.top_k if name == "topk" else 4 for name in kinds)
        return tokens * len(self.readouts) * (len(self.layers) + 1) * row


@dataclass(frozen=True)
class Plan:
    """The hidden states that a selection needs, as rows of one tensor."""

    points: tuple[HookPoint, ...]
    """FINAL, then the points that are scaled to their inputs, then the others that are unembedded, then the rest."""
    inputs: tuple[int, ...]
    """Rows whose norms or logit scales the points 1, 2, ... are scaled to."""
    unembedded: int
    """How many of the points, from the first, are unembedded; the rest serve norms and cosines alone."""
    streams: tuple[tuple[int, int], ...]
    """Rows of a module's output and of the stream it is added to."""
    sites: Mapping[int, Collection[str]]
    """The sites of each layer of the model."""

    def layers(self, selection: Selection, site: str) -> tuple[int, ...]:
        """Those of the selected layers that have `site`."""
        return tuple(
            layer
            for layer in selection.layers
            if site in self.sites[layer] and canonical(layer, site, self.sites) in self._row_of
        )

    def rows(self, layers: Sequence[int], site: str) -> list[int]:
        """The rows that hold `site` of each of `layers`."""
        return [self._row_of[canonical(layer, site, self.sites)] for layer in layers]

    @cached_property
    def _row_of(self) -> dict[HookPoint, int]:
        return {point: row for row, point in enumerate(self.points)}


def canonical(layer: int, site: str, sites: Mapping[int, Collection[str]] = MappingProxyType({})) -> HookPoint:
    """The hook point to read for a site: a layer's input is the output of the layer before, which is read only once.

    `sites` are those of each layer, if some lack any: after a layer that is skipped, the input itself is read.
    """
    before = site == "resid_pre" and layer and "resid_post" in sites.get(layer - 1, SITES)
    return HookPoint(layer - 1, "resid_post") if before else HookPoint(layer, site)


def plan(selection: Selection, sites: Mapping[int, Collection[str]] | None = None) -> Plan:
    """The hidden states that `selection` needs, each once, from a model whose layers have these `sites`; None for all.

    What a layer lacks is left out.
    """
    having = sites or dict.fromkeys(selection.layers, SITES)
    cells = [(layer, site) for layer in selection.layers for site in selection.sites if site in having[layer]]

    def partners(table: Mapping[str, Sequence[str]], *measures: str) -> dict[HookPoint, HookPoint]:
        wanted = not {*measures}.isdisjoint(selection.measures)
        chosen = [cell for cell in cells if cell[1] in table] if wanted else []
        return {
            canonical(*cell, having): canonical(
                cell[0], next(site for site in table[cell[1]] if site in having[cell[0]]), having
            )
            for cell in chosen
        }

    before = {after: (before,) for after, before in INPUT_OF.items()}
    inputs = partners(before, "entropy_at_input_norm", "entropy_at_input_scale")
    streams = partners(STREAM_OF, "cosine")
    by_scale = inputs.values() if "entropy_at_input_scale" in selection.measures else ()
    unembedded = dict.fromkeys([FINAL, *inputs, *(canonical(*cell, having) for cell in cells), *by_scale])
    points = tuple(dict.fromkeys([*unembedded, *inputs.values(), *streams.values()]))
    row = {point: number for number, point in enumerate(points)}
    return Plan(
        points,
        tuple(row[point] for point in inputs.values()),
        len(unembedded),
        tuple((row[module], row[stream]) for module, stream in streams.items()),
        having,
    )


def lacking(selection: Selection, sites: Mapping[int, Collection[str]]) -> dict[str, list[int]]:
    """Each selected site that some of the selected layers lack -> those layers; `sites` are those of each layer."""
    missing = {site: [layer for layer in selection.layers if site not in sites[layer]] for site in selection.sites}
    return {site: layers for site, layers in missing.items() if layers}


def parse_layers(text: str, n_layers: int) -> tuple[int, ...]:
    """Read `0,5,10-20,-1` (negative: from the end) or `all`. Raises InputError for a layer that doesn't exist."""
    if text == "all":
        return tuple(range(n_layers))
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().removeprefix("-").partition("-")
        negative = part.strip().startswith("-")
        if not is_count(first) or (dash and (negative or not is_count(last))):
            raise InputError(
                f"'{part.strip():.60}' in --layers isn't a layer or range. Write layers such as 0,5,10-20,-1 or all."
            )
        start = n_layers - int(first) if negative else int(first)
        stop = int(last) if dash else start
        if not 0 <= start <= stop < n_layers:
            raise InputError(f"--layers has {part.strip()}, but the model's layers are 0 to {n_layers - 1}.")
        chosen.update(range(start, stop + 1))
    return tuple(sorted(chosen))
