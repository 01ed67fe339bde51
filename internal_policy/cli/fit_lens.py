"""`internal-policy fit-lens`: sample responses, fit a lens on most of them, and measure it on the others."""

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy import bundle
from internal_policy.cli import fitting, merging, outputs, prepared, progress, shards
from internal_policy.cli.common import (
    File,
    JsonOptions,
    Number,
    OutputFile,
    OutputOptions,
    ProblemOptions,
    ResponseOptions,
    RolloutOptions,
    Sources,
)
from internal_policy.cli.console import document, out
from internal_policy.cli.fitting import FittingOptions
from internal_policy.errors import InputError, counted
from internal_policy.scans.shard import WHOLE

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedConfig

    from internal_policy.tasks.prompts import Ids
    from internal_policy.tasks.rollouts import Rollout


@dataclass(frozen=True, kw_only=True)
class FitLens(JsonOptions, OutputOptions, FittingOptions, ResponseOptions, RolloutOptions, ProblemOptions):
    """Fit a tuned or a Jacobian lens, and measure it on held-out problems.

    The model answers problems first, unless --rollouts gives it responses or other texts. A tuned lens has an affine
    translator at each hook point, which starts as the norm readout (the logit lens), and is then fitted so that its
    policy comes close to the model's own at the response tokens. A Jacobian lens has the average derivative of the last
    layer's output with respect to the hidden state instead, over prompts and responses. KL(final || readout) on
    held-out problems is printed. Use the lens with `scan --lens FILE`.

    For example:
    $ internal-policy fit-lens -o lens.safetensors
    $ internal-policy fit-lens --kind jacobian --rollouts texts.jsonl -o jacobian.safetensors
    $ internal-policy fit-lens --merge monday.safetensors tuesday.safetensors -o both.safetensors
    $ internal-policy fit-lens --model Qwen/Qwen3-0.6B --problems train.jsonl
    $ internal-policy scan --lens lens.safetensors --sites resid_pre,resid_post
    """

    group: ClassVar = "Fitting"
    problems: File = None
    """Problems to solve: a .jsonl, .json, .csv, .parquet or .txt file (a line a problem), or a data set of the hub as
    NAME[:CONFIG]@SPLIT. By default the first 512 of the bundled training problems."""
    max_new_tokens: int = 128
    """Length limit of a response, in tokens."""
    limit: Number = None
    """Number of problems or rollouts to use, from the first; by default all."""
    batch_size: int = 32
    """Responses sampled at a time; halved when memory runs out."""
    merge: Sources = ()
    """Jacobian lenses to merge instead of fitting one: files that `fit-lens --kind jacobian` wrote for the same model,
    on different texts. The result is their mean, weighted by their numbers of sequences."""
    output: OutputFile = Path("lens.safetensors")
    """File to write, .safetensors."""


PROBLEMS = 512
"""How many of the bundled training problems are used if none are named."""
UNUSED = {
    *("samples", "temperature", "top_p", "max_new_tokens", "batch_size"),
    *("problem_column", "answer_column", "system_prompt", "prompt_suffix"),
}
"""Options that have no effect if responses are given."""
FITTING = ("kind", "sites", "held_out", *(name for names in fitting.OF.values() for name in names))
"""Options of the fit."""
ENDING = ".safetensors"
PRESENTATION = {"json", "rollouts", "merge", *FITTING}
"""Options that don't change what is sampled."""


def run(options: FitLens) -> None:
    """Fit, measure, write one file, and print the KL at each hook point."""
    from internal_policy.lenses import file, fit, held_out
    from internal_policy.models.families import layer_sites
    from internal_policy.scans import store
    from internal_policy.scans.scan import check_rollouts

    if options.merge:
        merging.run(options, options.merge, options.output, ENDING, force=options.force, as_json=options.json)
        return
    start = time.monotonic()
    progress.hush(not options.worker.leads)
    inputs = _prepared(options)
    progress.quiet()
    sites, known = _sites(inputs.config, options.sites), layer_sites(inputs.config)
    points = fit.points_of(known, sites)
    fitting.check_memory(options, points, inputs.config)
    given = fitting.given(options, inputs)
    problems = [] if options.rollouts else inputs.problems(inputs.question["problems"])[0]
    folder = store.root() / "rollouts" / store.digest({**inputs.question, "output": options.output.absolute()})
    asked = {name: getattr(options, name) for name in FITTING}
    shared = shards.SharedFile(inputs.worker, options.output, {**inputs.question, **asked}, folder)
    if shared.is_written(options.force, [ENDING], outputs.inputs_of(options)):
        return
    model = inputs.model()
    if shared.is_over():
        return
    rollouts = given or inputs.sample(model, prepared.own_policy(), problems, folder)
    if rollouts is None:
        shared.leave(*inputs.left(problems, folder))
        return
    check_rollouts(model, rollouts)
    fitted, held = fit.apart(rollouts, options.held_out, options.seed)
    texts = fitting.sequences(options, fitted) if options.kind == "jacobian" else []
    if options.kind == "tuned":
        lens = fitting.tuned(options, options.seed, model, fitted, points)
    else:
        shard = fitting.shard_of(options.worker) if given else WHOLE
        found = fitting.of_jacobians(options, options.seed, model, texts, points, folder, shard)
        if isinstance(found, int):
            shared.leave(found, shard.count)
            return
        lens = found.lens
    kl = held_out.kl(held_out.measured(model, held, {lens.kind: lens}))
    about = _about(options, inputs, fitted, texts, held, kl)
    with shared.writing():
        file.save(options.output, dataclasses.replace(lens, about=about))
    shards.remove(folder)
    every = [layer for layer in known if {*sites} <= {*known[layer]}]
    layers = every if options.sites != "all" and len(every) < len(known) else ()
    printed(options.output, about, kl, layers, as_json=options.json)
    progress.note(f"Fitted in {time.monotonic() - start:.1f} s.")


def _prepared(options: FitLens) -> prepared.Prepared:
    """Resolve the options. Without problems or responses the bundled problems are used. Raises InputError."""
    if options.problems is not None and options.rollouts is not None:
        raise InputError("Both --problems and --rollouts are given. Use one of them.")
    if options.rollouts is not None:
        prepared.check_effect(options, UNUSED, "--rollouts")
    if options.kind == "tuned" and options.rollouts is not None and not options.worker.is_alone:
        raise InputError(
            "Several processes can share the sampling, but not the fit of a tuned lens, and --rollouts leaves only "
            "that. Run a single process, without --shard or a launcher."
        )
    if options.worker.is_alone:
        outputs.check_file(options.output, options.force, ENDING, inputs=outputs.inputs_of(options))
    if options.rollouts is None:
        outputs.check_cache()
    for kind, names in fitting.OF.items():
        if kind != options.kind:
            prepared.check_effect(options, names, f"--kind {options.kind}")
    fitting.check(options, options.seed)
    if options.problems is None and options.rollouts is None:
        limit = PROBLEMS if options.limit is None else options.limit
        options = dataclasses.replace(options, problems=str(bundle.DATA / "problems" / "train.jsonl"), limit=limit)
    sources = [options.problems] if options.problems else []
    inputs = prepared.prepare(options, PRESENTATION, sources, rollouts=options.rollouts)
    _ = inputs.sampling  # refuses what is out of range
    return inputs


def _sites(config: "PreTrainedConfig", sites: str) -> tuple[str, ...]:
    """The sites to fit. Raises InputError for a site that is unknown, repeated, or missing from the model's family."""
    from internal_policy.models.families import place, sites_of
    from internal_policy.scans.selection import Selection

    names = sites_of(config) if sites == "all" else tuple(sites.split(","))
    for site in Selection((0,), names).sites:
        place(config, site)
    return names


def _about(
    options: FitLens,
    inputs: prepared.Prepared,
    fitted: "Sequence[Rollout]",
    texts: "Sequence[Ids]",
    held: "Sequence[Rollout]",
    kl: "pd.DataFrame",
) -> dict[str, Any]:
    """What the file tells about the lens."""
    from internal_policy.lenses.merge import digests

    source = Path(inputs.rollouts or inputs.question["problems"])
    return {
        "model": inputs.checkpoint.name,
        "identity": inputs.identity,
        "d_model": inputs.config.get_text_config().hidden_size,
        "n_layers": inputs.config.get_text_config().num_hidden_layers,
        "fitted_on": {"file": source.name if source.is_file() else str(source), **_size(fitted), **fitting.size(texts)},
        "held_out": _size(held),
        "kl": json.loads(kl.to_json(orient="records")),  # with null where there is no interval
        "sites": options.sites,
        **fitting.about(options),
        "seed": options.seed,
        **({"digests": digests(texts)} if texts else {}),
    }


def _size(rollouts: "Sequence[Rollout]") -> dict[str, int]:
    return {"rollouts": len(rollouts), "tokens": sum(len(rollout.response_ids) for rollout in rollouts)}


def printed(
    path: Path, about: Mapping[str, Any], kl: "pd.DataFrame", layers: "Sequence[int]" = (), *, as_json: bool = False
) -> None:
    """Print how far each readout is from the model's own policy at each hook point, on held-out problems.

    `kl` has layer, site, readout, mean, low and high, in the order of the table's columns. `layers` are those to scan
    with the lens, if they aren't all.
    """
    if as_json:
        document({"lens": str(path), **{key: value for key, value in about.items() if key != "digests"}})
        return
    table = Table(title="KL from the model's own policy, in nats", title_justify="left", box=box.SIMPLE_HEAD)
    readouts = list(dict.fromkeys(kl["readout"]))
    for name in ("", *readouts, f"{readouts[-1]}, 95%"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for (layer, site), rows in kl.groupby(["layer", "site"], sort=False):
        last = rows.iloc[-1]
        between = "" if math.isnan(last["low"]) else f"{last['low']:.3f} to {last['high']:.3f}"
        table.add_row(f"{layer}.{site}", *(f"{mean:.3f}" for mean in rows["mean"]), between)
    out.print(table)
    fitted, held = about["fitted_on"], about["held_out"]
    out.print(
        f"Measured on {counted(held['rollouts'], 'held-out response')} ({counted(held['tokens'], 'token')}), with "
        f"intervals over responses. Fitted on {fitting.amount(fitted)} "
        f"({counted(fitted['tokens'], 'token')})."
    )
    command = f"internal-policy scan --model {about['model']} --lens {path} --sites {about['sites']}"
    command += f" --layers {','.join(map(str, layers))}" if layers else ""
    out.print(f"Wrote {escape(str(path))}. To scan with it:\n  {escape(command)}")
