"""The ablation of a scan as one object, with its tables and its figure."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from internal_policy.jupyter import notebook
from internal_policy.look import ablation, view
from internal_policy.look.statistics import Average
from internal_policy.look.view import View

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, repr=False)
class Ablation:
    """How the model's own policy changes without each layer, attention block and FFN."""

    view: View
    """The scan; its outcome chooses the rollouts, and its readout the entropies."""
    folder: Path
    """Where the ablation is stored."""

    def means(self, average: Average = "tokens") -> pd.DataFrame:
        """The mean effect of each ablation, with its 95% intervals.

        Columns: layer, module (layer, attn, mlp), replacement (zero, mean), measure (kl, logprob_change,
        entropy_change and the share of tokens whose top token changes), mean, low and high (of this layer by itself),
        low_all and high_all (for all layers at once). All but shares are in nats.
        """
        return ablation.means(ablation.table(self.folder, self._kept()), average)

    def correlations(self, average: Average = "tokens") -> pd.DataFrame:
        """Whether layers with a higher entropy change matter more: Spearman's rank correlation with the KL.

        Columns: module, replacement, layers (how many), correlation, low, high and p.
        """
        return ablation.correlations(self.view, ablation.table(self.folder, self._kept()), average)

    def rewards(self) -> pd.DataFrame:
        """The change of the mean reward by each ablation; no rows if rewards weren't asked for."""
        return ablation.rewards(self.folder)

    def sentences(self) -> list[str]:
        """Where the policy changes most, and whether that goes with the entropy change."""
        return ablation.sentences(self.folder, self.view)

    def plot(self) -> "go.Figure":
        """The figure `ablation`: the KL without each module, beside its entropy change. Raises InputError."""
        notebook.need_plotly()
        from internal_policy.look import catalogue

        return catalogue.draw("ablation", [self.view], catalogue.Choice())

    def _kept(self) -> pd.Series:
        return view.rollouts(self.view)["rollout"]

    def __repr__(self) -> str:
        """Its folder, and its sentences."""
        return "\n".join([f"<Ablation in {notebook.printable(self.folder.name)}>", *self.sentences()])

    def _repr_html_(self) -> str:
        """The sentences and the mean KL by layer, for a notebook."""
        return notebook.page(lambda: notebook.sentences(self.sentences()), lambda: notebook.table(self._kl()))

    def _kl(self) -> pd.DataFrame:
        """The mean KL in nats, one row per layer, one column per module and replacement."""
        found = self.means().query("measure == 'kl'")
        return found.pivot(index="layer", columns=["module", "replacement"], values="mean")
