"""`internal-policy ablate`: take away each layer, attention block and FFN, and see what the model then says."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy.cli import ablation, inventory, outputs, progress
from internal_policy.cli.common import JsonOptions, ModelOptions, Number, OutputFolder, OutputOptions, ScanName
from internal_policy.cli.console import commands, document, out, paragraph, uncut
from internal_policy.errors import counted

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class ScanModel(ModelOptions):
    """The model of a scan, and how it is loaded."""

    group: ClassVar = "Model"
    model: str = ""
    """The scan's model, if its folder has been moved; by default the one that the scan names. It must have the same
    weights. Model options that you leave out are those of the scan, except for where the model runs."""


@dataclass(frozen=True, kw_only=True)
class Ablate(JsonOptions, OutputOptions, ScanModel):
    """Skip each layer and module, and measure the effect.

    The model reads the responses of the scan again without each of them, one at a time: what it adds to the residual
    stream is left out (zero), or replaced by its mean over the response tokens (mean). The result is how much the
    model's own policy changes: KL(intact || ablated), log probability of the actual token, entropy, and top token.
    `plot SCAN ablation` draws this beside the entropy change of each layer.

    An interrupted ablation continues where it stopped, and a repeated one is read from the cache.

    For example:
    $ internal-policy ablate demo-qwen3
    $ internal-policy ablate 3fa9 --modules mlp --replacement zero --limit 20
    $ internal-policy ablate 3fa9 --layers 0-5 --modules layer --reward 4
    """

    group: ClassVar = "What to ablate"
    scan: ScanName
    """Scan whose model and responses are used: its folder, or its name in `internal-policy ls`."""
    layers: str = "all"
    """Layers to ablate, counted from 0, such as 0,5,10-20,-1."""
    modules: str = "all"
    """What to ablate of each layer, separated by commas: layer (all that it adds), attn, mlp."""
    replacement: Literal["zero", "mean", "both"] = "both"
    """What is added to the stream instead: nothing (zero), the mean over the response tokens (mean), or each in turn
    (both)."""
    limit: Number = None
    """Number of rollouts of the scan to use, from the first; by default all."""
    reward: Number = None
    """Responses per problem to sample with each ablated model as well, to measure the change of the reward. Needs
    problems with answers. The number of all these responses is printed first, because they may take long."""
    batch_size: int = 8
    """Rollouts processed at a time; halved when memory runs out."""
    output: OutputFolder = None
    """Folder for the result; by default one under ~/.cache/internal-policy (or $INTERNAL_POLICY_CACHE). Figures also
    find it beside the folder of the scan."""
    force: bool = False
    """Replace another ablation in the folder; only files that internal-policy wrote are removed."""


def run(options: Ablate) -> None:
    """Read the ablation from the cache, or measure what is missing; then print it."""
    from internal_policy.scans import claims, effects, sharing, store

    start = time.monotonic()
    scan = inventory.find_scan(options.scan)
    work = ablation.prepared(options, scan, store.record(scan))
    folder = options.output or store.folder_of(work.checkpoint.name, work.question)
    _, other = outputs.claimed(
        folder,
        "ablation",
        options.force,
        lambda: claims.claim(folder, effects.ASKED, "ablation", work.question),
        [str(scan), *outputs.inputs_of(options)],
    )
    cached = not other and (folder / effects.RECORD).exists()
    if cached:
        sharing.sweep(folder)
    else:
        outputs.check_writable(folder)
        progress.quiet()
        ablation.measure(dataclasses.replace(work, folder=folder), other)
    printed(folder, scan, as_json=options.json, extra={"cached": cached})
    progress.note(f"{'Read from the cache' if cached else 'Measured'} in {time.monotonic() - start:.1f} s.")


def scan_of(folder: Path, may_open: Callable[[Path], bool] = lambda _: True) -> Path | None:
    """The scan that was ablated, where it was then, beside the ablation or in the cache; None if it is gone.

    Only folders that it `may_open` are looked at. Raises InputError for a damaged record.
    """
    from internal_policy.scans import effects, store

    name = effects.record(folder)["scan"]["name"]
    beside = [path.parent for path in folder.absolute().parent.glob(f"*/{store.RECORD}")]
    for scan in (Path(name), *beside, *(item.folder for item in inventory.items("scan"))):
        if may_open(scan) and os.path.isfile(scan / store.RECORD) and folder.resolve() in effects.of_scan(scan):  # noqa: PTH113
            return scan
    return None


def printed(folder: Path, scan: Path | None, *, as_json: bool = False, extra: Mapping[str, Any] | None = None) -> None:
    """Print an ablation; the sentences about entropy changes need its scan, which may be gone."""
    from internal_policy.look import ablation as look
    from internal_policy.look import findings, view
    from internal_policy.scans import effects

    if as_json:
        document(facts(folder, scan, extra))
        return
    record = effects.record(folder)
    found = look.table(folder)
    means = look.means(found)
    said = look.sentences(folder, None if scan is None else view.default(scan))
    uncut(_table(means, str(record["model"])))
    for sentence in said:
        paragraph(sentence)
    numbers = counted(record["rollouts"], "rollout"), counted(record["tokens"], "response token"), record["dtype"]
    counts = f"{', '.join(numbers)}."
    which = "for all layers at once" if look.for_all_layers(found) else "for each layer alone, because these are few"
    paragraph(f"{counts} Intervals are 95% over rollouts, {which}.")
    out.print(f"Ablation: {escape(str(folder))}", emoji=False)
    if scan is not None:
        commands([f"internal-policy plot {findings.name(scan)} ablation -o ablation.html"])


def facts(folder: Path, scan: Path | None, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `show --json` prints of an ablation; its `correlations` need the scan, which may be gone."""
    from internal_policy.look import ablation as look
    from internal_policy.look import view
    from internal_policy.scans import effects

    found = look.table(folder)
    kept = {name: value for name, value in effects.record(folder).items() if name not in ("files", "asked")}
    said = look.sentences(folder, None if scan is None else view.default(scan))
    rows = {"effects": look.means(found).to_dict("records"), "rewards": look.rewards(folder).to_dict("records")}
    if scan is not None:
        rows["correlations"] = look.correlations(view.default(scan), found).to_dict("records")
    return {"ablation": str(folder), **(extra or {}), **kept, **rows, "findings": said}


def _table(means: "pd.DataFrame", model: str) -> Table:
    """The KL of each ablation by layer."""
    from internal_policy.look import legend

    title = f"{model}: KL (nats) from the model to the model without a layer or module"
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    kl = means[means["measure"] == "kl"]
    cells = kl.pivot(index="layer", columns=["module", "replacement"], values="mean")
    columns = [(module, how) for module in legend.CHANGES for how in ("zero", "mean") if (module, how) in cells]
    table.add_column("layer", justify="right")
    for module, how in columns:
        table.add_column(f"{legend.CHANGES[module].name} {how}", justify="right", no_wrap=True)
    for layer, row in cells.iterrows():
        table.add_row(str(layer), *("" if row[key] != row[key] else f"{row[key]:.3f}" for key in columns))
    return table
