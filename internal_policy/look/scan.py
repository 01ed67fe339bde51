"""A scan as one object, with its tables, the paper's quantities and its figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from internal_policy import files
from internal_policy.errors import InputError, counted
from internal_policy.jupyter import notebook
from internal_policy.look import (
    ablation,
    check,
    differences,
    findings,
    pairs,
    rollouts,
    runs,
    statistics,
    targets,
    tokens,
    view,
)
from internal_policy.look.ablated import Ablation
from internal_policy.look.check import Check
from internal_policy.look.lens_grid.frames import PairTable, TokenTable
from internal_policy.look.statistics import Average, Part
from internal_policy.look.view import About, View
from internal_policy.measure.sites import CHANGES, WITH_FINAL
from internal_policy.scans import store
from internal_policy.scans.store import Tables

if TYPE_CHECKING:
    from internal_policy.look.plots import Plots


def of(source: Path | Tables) -> "Scan":
    """All of a scan with its first readout. Raises InputError for a damaged or unfinished scan."""
    whole = view.default(source)
    view.check(whole)
    return Scan(source, whole.readout)


def open_scan(name: str | Path) -> "Scan":
    """A scan on disk, by its folder, the first digits of its digest, or a bundled one's name; or one on the Hub.

        scan = ip.open_scan("demo-qwen3")          # in a notebook, shows its table and its flow figure
        scan.means(), scan.changes(), scan.stages(), scan.tokens(rollout=0)
        scan.view(readout="norm", outcome="correct").plot.change()
        ip.open_scan("hf://datasets/org/name@revision")  # downloaded once, checked, and only read

    `internal-policy ls` lists the names. docs/columns.md explains the columns. Raises InputError for an unknown
    scan, with the names of the known ones, and for a damaged or unfinished one.
    """
    known = [run for run in runs.listed() if str(name) in (run, run.rpartition("/")[2])]
    if known or (str(name) and files.is_folder(Path(name)) and (Path(name) / runs.METRICS).is_file()):
        called = known[0] if known else name
        raise InputError(f"{called} is a training run, not a scan. Open it with internal_policy.open_run('{called}').")
    return of(store.find(str(name)))


ORDER = (*WITH_FINAL, *(f"change_{name}" for name in CHANGES))
"""Order of the columns of the table by layer."""


@dataclass(frozen=True, repr=False)
class Scan(View):
    """A scan, on disk or in memory, with one readout. `view` narrows it to some responses or positions.

    Layers count from 0. The layer one past the last holds `final`, the model's own policy. Entropies and KL are in
    nats.
    """

    def view(self, **changes: Any) -> "Scan":
        """The same scan with another `readout`, `outcome` (all, correct, incorrect), `first` or `last` position.

        `where` has conditions on the numbers that came with the responses, such as `("acc>=0.5", "reward<1")`.

        Raises InputError if the scan lacks that readout, or if nothing is left.
        """
        if isinstance(where := changes.get("where"), str):
            changes["where"] = (where,)
        narrowed = replace(self, **changes)
        view.about(narrowed)
        return narrowed

    @property
    def record(self) -> Mapping[str, Any]:
        """What was measured and how, as in scan.json: model, n_layers, d_vocab, dtype, selection, ..."""
        return view.check(self)

    @property
    def about(self) -> About:
        """Model, readout, filter, and how many rollouts and tokens this view has."""
        return view.about(self)

    @property
    def rollouts(self) -> pd.DataFrame:
        """The responses, one row per response.

        Columns: rollout (its number from 0), problem, answer, prompt_ids, response_ids, response (its text), reward
        (missing if unmarked), finished, ..., and tokens (how many of its tokens are in this view).
        """
        return view.rollouts(self, store.columns(self.source, "rollouts"))

    def layers(self) -> pd.DataFrame:
        """Means over the tokens of each rollout, one row per rollout x layer x site.

        Columns: rollout, readout, layer, site, tokens (how many), and every measure of the scan: entropy, kl,
        logprob and entropy_at_input_norm (nats), rank (1 is the top token), top1 (share of tokens that are the policy's
        top token, 0 to 1), norm (of the hidden state) and cosine (with the residual stream it is added to, -1 to 1).
        """
        return view.layers(self)

    def policies(self, columns: Sequence[str] = ()) -> pd.DataFrame:
        """The numbers of each token, one row per rollout x position x layer.

        Columns: rollout, position (of the predicted token in the response, from 0), layer, and `columns`, such as
        `mlp_out.entropy` (site, dot, measure); by default all of them. A site's columns have no values in the row after
        the last layer, and those of `final` only have values there. Raises InputError for a column that was not
        measured.
        """
        names = list(columns) or [name for name in store.columns(self.source, "policies") if "." in name]
        return tokens.table(self, names)

    def means(self, measure: str = "entropy", average: Average = "tokens") -> pd.DataFrame:
        """The mean of a measure at each layer and site, with its 95% interval.

        Columns: layer, site, and mean, low and high in the measure's unit (nats for entropy, kl and logprob). `low` and
        `high` are the ends of a bootstrap interval over rollouts, NaN for a single rollout. `average` is over all
        `tokens` (the paper's) or over `rollouts`. Raises InputError for a measure that the scan lacks.
        """
        return view.means(self, measure, average)

    def changes(self, average: Average = "tokens") -> pd.DataFrame:
        """The entropy change of each layer, attention and FFN, in nats (Eqs. 11 to 13 of arXiv 2512.19673).

        Columns: layer, change (layer, attn, mlp), part (total, direction, norm), mean, low and high (the 95% interval
        of this layer by itself), low_all and high_all (95% for all layers at once; NaN with fewer than 4 rollouts).
        Raises InputError if no site before and after a change was measured.
        """
        return view.changes(self, average)

    def stages(self, part: Part = "total", average: Average = "tokens") -> pd.DataFrame:
        """The stage of each layer, by the entropy change of its FFN.

        Columns: layer, stage (exploration, integration or convergence). There are no rows for fewer than 4
        rollouts. `part` is total, direction or norm.
        """
        return targets.stages(self.changes(average), part)

    def target(self, part: Part = "total", average: Average = "tokens") -> int | None:
        """The layer that BuPO would train first: the last exploration layer, or None if there is none."""
        return targets.target(self.stages(part, average))

    def targets(self, average: Average = "tokens") -> pd.DataFrame:
        """Target layer and stages by the total entropy change and by each of its parts, one row per part.

        Columns: part, target and runner_up (layers), spans (stage, first and last layer of each run of layers), and
        mean, low and high of the target's change (nats, 95% for all layers at once).
        """
        return targets.targets(self.changes(average))

    def tokens(self, rollout: int | None = None, site: str = "resid_post", measure: str = "entropy") -> TokenTable:
        """A measure at each token and layer of one response, by default the first of this view.

        Columns: layer, position (from 0), id and token (of the predicted token), value (in the measure's unit). The
        measure `change` is the entropy at the site minus that at its input. A notebook draws it as a lens grid: layers
        x tokens, with the top token written in each cell. Raises InputError for an unknown rollout or a measure that
        the scan lacks there.
        """
        number = view.first_rollout(self) if rollout is None else rollout
        cells = tokens.cells(self, number, site, measure)
        found = cells.merge(tokens.response(self, number), on="position")
        frame = found[["layer", "position", "id", "token", "value"]]
        return TokenTable.of(frame, self, number, site=site, measure=measure)

    def compare_tokens(
        self, other: View, rollout: int | None = None, site: str = "resid_post", measure: str = "entropy"
    ) -> PairTable:
        """How another scan, or this one with another readout, differs at each token and layer of one response.

            raw = ip.open_scan("demo-qwen3")
            raw.compare_tokens(raw.view(readout="norm"), rollout=0)  # in a notebook, draws both as linked lens grids

        `rollout` is by default the first whose tokens the other scan has too. The measure can also be `probability`,
        that of the top token. Columns: layer, position, id, token, value_a (of this scan), value_b, difference (b minus
        a), and if top tokens were kept, top_a, top_b and same_top. Raises InputError if the other scan has no response
        with the same tokens, or lacks the measure.
        """
        return PairTable.of(*pairs.best(self, other, rollout), site, measure)

    def difference(self, other: View, measure: str = "entropy", average: Average = "tokens") -> pd.DataFrame:
        """How much a measure of another scan of the same tokens exceeds this one's, by layer, with 95% intervals.

            whole, quantized = ip.open_scan("whole"), ip.open_scan("nf4")
            whole.difference(quantized)  # the error of the entropies that quantizing makes
            whole.difference(whole.view(readout="norm"), "change")  # two readouts of one scan

        The measure `change` is the entropy change of attention (attn_out), FFN (mlp_out) and layer (resid_post).
        Columns: layer, site, a (this scan's mean), b (the other's), difference (b minus a), low and high (the 95%
        interval of this layer by itself), low_all and high_all (95% for all layers of the site at once). All are in the
        measure's unit. Rollouts are compared in pairs; a single rollout has no intervals. Raises InputError if no
        rollouts have the same tokens.
        """
        return differences.by_layer(self, other, measure, average)

    def check(self) -> Check:
        """Whether the entropy pattern of this view is real: each claim, judged under every control that was measured.

            scan.check()           # in a notebook, shows the verdicts and the outcomes
            scan.check().verdicts  # claim, title, verdict, reason, tested, untested

        docs/check.md defines the claims, the controls and the verdicts. Raises InputError for a damaged scan.
        """
        return check.check(self)

    def ablation(self) -> Ablation:
        """What its newest ablation shows (`internal-policy ablate SCAN`): how the policy changes without each module.

            scan.ablation()           # in a notebook, shows its sentences and the mean KL by layer
            scan.ablation().means()   # layer, module, replacement, measure, mean and intervals

        Raises InputError if the scan wasn't ablated.
        """
        return Ablation(self, ablation.newest(self))

    @property
    def findings(self) -> tuple[str, ...]:
        """What this view shows, in sentences: where the entropy falls, what the FFNs do, which layer BuPO trains."""
        return findings.findings(self).sentences

    @property
    def plot(self) -> "Plots":
        """Figures by name: `scan.plot.flow()`, `scan.plot.compare(other)`. Raises InputError without plotly."""
        notebook.need_plotly()
        from internal_policy.look.plots import ScanPlots

        return ScanPlots(self)

    def by_layer(self, average: Average = "tokens") -> pd.DataFrame:
        """Mean entropies and entropy changes in nats, one row per layer, one column per site or change."""
        found = view.layers(self, "entropy")
        if "entropy" not in found:
            raise view.absent(self, "entropy")
        means = statistics.by_layer(found, self.readout, average)
        return means[sorted(means, key=ORDER.index)]

    def by_rollout(self) -> pd.DataFrame:
        """One row per rollout of this view, to find one worth a look.

        Columns: rollout, reward, tokens, entropy and highest (mean and highest entropy of the model's own policy over
        the response, in nats), settles (the first layer by which the top token of half of the tokens is the model's own
        and stays so), begins (how the response begins), problem, answer and line (entropies along the response).
        """
        return rollouts.by_rollout(self)

    def __repr__(self) -> str:
        """The model and what this view contains."""
        about = self.about
        counts = f"{counted(about.rollouts, 'rollout')}, {counted(about.tokens, 'token')}, {view.how(about.readout)}"
        return f"<Scan of {notebook.printable(about.model)}: {counts}{', ' if about.which else ''}{about.which}>"

    def _repr_html_(self) -> str:
        """The findings, the entropy flow as a small picture and the table by layer, for a notebook."""
        return notebook.page(
            lambda: notebook.sentences(self.findings), lambda: _flow(self), lambda: notebook.table(self.by_layer())
        )


def _flow(scan: Scan) -> str:
    notebook.need_plotly()
    from internal_policy.look.sketch import sketch

    return sketch(scan.plot.flow())
