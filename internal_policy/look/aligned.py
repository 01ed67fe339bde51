"""An alignment as one object, with its table, the layer that it suggests and its figure."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from internal_policy.jupyter import notebook
from internal_policy.jupyter.notebook import printable
from internal_policy.look import alignment
from internal_policy.look.alignment import AlignmentTable, Best

if TYPE_CHECKING:
    from internal_policy.look.plots import Plots


@dataclass(frozen=True, eq=False, repr=False)
class Alignment(AlignmentTable):
    """How well the gradient at each hook point agrees with GRPO's: its table, facts and figure."""

    def best(self, site: str = "resid_post", readout: str = "raw") -> Best | None:
        """The layer below the last one with the largest gain for its cost; None if no gain is significant."""
        return alignment.best(self.table, self.about["n_layers"], site, readout)

    def sentences(self) -> list[str]:
        """Which layer is best worth training first, a sentence for each site and readout, and how much was measured."""
        return [*alignment.sentences(self.table, self.about["n_layers"]), alignment.facts(self.about)]

    @property
    def plot(self) -> "Plots":
        """Figures by name: `found.plot.alignment()`. Raises InputError without plotly."""
        notebook.need_plotly()
        from internal_policy.look.plots import AlignmentPlots

        return AlignmentPlots(self)

    def __repr__(self) -> str:
        """Its model, and its sentences."""
        return "\n".join([f"<Alignment of {printable(str(self.about['model']))}>", *self.sentences()])

    def _repr_html_(self) -> str:
        """The sentences, the figure as a small picture, and the table, for a notebook without network."""
        table = self.table.drop(columns="left_out").set_index("layer")
        return notebook.page(
            lambda: notebook.sentences(self.sentences()), lambda: _picture(self), lambda: notebook.table(table)
        )


def open_alignment(name: str | Path) -> Alignment:
    """An alignment on disk, by its folder or its name in `internal-policy ls`; two come with the package.

        found = ip.open_alignment("demo-qwen3-alignment")
        found.table                              # a row for each layer, site, readout and measure
        found.best(readout="norm")               # the layer that is best worth training first
        found.plot.alignment()

    docs/columns.md explains the columns. Raises InputError for an unknown alignment, with the names of the known ones,
    and for a damaged one.
    """
    found = alignment.read(alignment.find(str(name)))
    return Alignment(found.about, found.table)


def _picture(found: Alignment) -> str:
    notebook.need_plotly()
    from internal_policy.look.sketch import sketch

    return sketch(found.plot.alignment())
