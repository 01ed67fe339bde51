"""`internal-policy fit-lens`: sample responses, fit a lens on most of them, and measure it on the others."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.markup import escape

from internal_policy import bundle
from internal_policy.cli import fitting, lens_card, merging, outputs, prepared, progress, shards
from internal_policy.cli.common import (
    File,
    JsonOptions,
    Lenses,
    Number,
    OutputFile,
    OutputOptions,
    ProblemOptions,
    ResponseOptions,
    RolloutOptions,
    Sources,
)
from internal_policy.cli.console import out
from internal_policy.cli.fitting import FittingOptions
from internal_policy.errors import InputError
from internal_policy.scans.shard import WHOLE

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from internal_policy.tasks.prompts import Ids
    from internal_policy.tasks.rollouts import Rollout


@dataclass(frozen=True, kw_only=True)
class FitLens(JsonOptions, OutputOptions, FittingOptions, ResponseOptions, RolloutOptions, ProblemOptions):
    """Fit a tuned or a Jacobian lens, and print its card.

    The model answers problems first, unless --rollouts gives it responses or other texts. A tuned lens has an affine
    translator at each hook point, which starts as the norm readout (the logit lens), and is then fitted so that its
    policy comes close to the model's own at the response tokens. A Jacobian lens has the average derivative of the last
    layer's output with respect to the hidden state instead, over prompts and responses. The lens's card, with KL(final
    || readout) on held-out problems, is printed and kept in its file; `show` prints it again. Use the lens with
    `scan --lens FILE`.

    For example:
    $ internal-policy fit-lens -o lens.safetensors
    $ internal-policy fit-lens --kind jacobian --rollouts texts.txt
    $ internal-policy fit-lens --merge a.safetensors b.safetensors
    $ internal-policy fit-lens --model Qwen/Qwen3-0.6B --problems train.jsonl
    $ internal-policy fit-lens --kind jacobian --against lens.safetensors
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
    against: Lenses = ()
    """Another lens to measure on the held-out problems, as for `scan --lens`. For several lenses repeat the option."""
    output: OutputFile = Path("lens.safetensors")
    """File to write, .safetensors."""


PROBLEMS = 512
"""How many of the bundled training problems are used if none are named."""
UNUSED = {
    *("samples", "temperature", "top_p", "max_new_tokens", "batch_size"),
    *("problem_column", "answer_column", "system_prompt", "prompt_suffix"),
}
"""Options that have no effect if responses are given."""
FITTING = (
    "kind",
    "sites",
    "held_out",
    "skip_halves",
    *(name for names in fitting.OPTIONS_OF.values() for name in names),
)
"""Options of the fit."""
ENDING = ".safetensors"
PRESENTATION = {"json", "rollouts", "merge", "against", *FITTING}
"""Options that don't change what is sampled."""


def run(options: FitLens) -> None:
    """Fit a lens, measure it, write it to one file, and print its card."""
    from internal_policy.lenses import card, file, fit, held_out
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
    against = inputs.fitted_lenses(points)
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
        lens, halves = fitting.fit_tuned(options, options.seed, model, fitted, points)
    else:
        shard = fitting.shard_of(options.worker) if given else WHOLE
        found = fitting.fit_jacobian(options, options.seed, model, texts, points, folder, shard)
        if isinstance(found, int):
            shared.leave(found, shard.count)
            return
        lens, halves = found.lens, found.halves
    about = _about(options, inputs, fitted, texts, held)
    about |= card.about(lens, **held_out.tables(model, held, lens, halves, against))
    lens = dataclasses.replace(lens, about=about)
    with shared.writing():
        file.save(options.output, lens)
    shards.remove(folder)
    every = [layer for layer in known if {*sites} <= {*known[layer]}]
    layers = every if options.sites != "all" and len(every) < len(known) else ()
    lens_card.printed(card.of(lens), options.output, as_json=options.json)
    if not options.json:
        _printed_next(options, layers)
    progress.note(f"Fitted in {time.monotonic() - start:.1f} s.")


def _prepared(options: FitLens) -> prepared.Prepared:
    """Resolve the options. Without problems or responses the bundled problems are used. Raises InputError."""
    if options.problems is not None and options.rollouts:
        raise InputError("Both --problems and --rollouts are given. Use one of them.")
    if options.rollouts:
        prepared.check_effect(options, UNUSED, "--rollouts")
    if options.kind == "tuned" and options.rollouts and not options.worker.is_alone:
        raise InputError(
            "Several processes can share the sampling, but not the fit of a tuned lens, and --rollouts leaves only "
            "that. Run a single process, without --shard or a launcher."
        )
    if options.worker.is_alone:
        outputs.check_file(options.output, options.force, ENDING, inputs=outputs.inputs_of(options))
    if not options.rollouts:
        outputs.check_cache()
    for kind, names in fitting.OPTIONS_OF.items():
        if kind != options.kind:
            prepared.check_effect(options, names, f"--kind {options.kind}")
    fitting.check(options, options.seed)
    if options.problems is None and not options.rollouts:
        limit = PROBLEMS if options.limit is None else options.limit
        options = dataclasses.replace(options, problems=str(bundle.DATA / "problems" / "train.jsonl"), limit=limit)
    sources = [options.problems] if options.problems else []
    inputs = prepared.prepare(options, PRESENTATION, sources, rollouts=options.rollouts, lenses=options.against)
    if options.kind in {lens.name for lens in inputs.lenses}:
        raise InputError(
            f"The lens of --against is called '{options.kind}', like the new one. Use --against NAME=FILE."
        )
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
) -> dict[str, Any]:
    """What the file tells about the lens beside its measurements."""
    from internal_policy.lenses.card import corpus
    from internal_policy.lenses.merge import digests

    source = Path(inputs.rollouts[0] if inputs.rollouts else inputs.question["problems"])
    named = {
        "file": source.name if source.is_file() else str(source),
        "source": "given" if inputs.rollouts else "sampled",
    }
    return {
        "model": inputs.checkpoint.name,
        "identity": inputs.identity,
        "d_model": inputs.config.get_text_config().hidden_size,
        "n_layers": inputs.config.get_text_config().num_hidden_layers,
        "fitted_on": {**named, **corpus(fitted), **fitting.size(texts)},
        "held_out": {**named, **corpus(held)},
        "sites": options.sites,
        **fitting.about(options),
        "seed": options.seed,
        **({"digests": digests(texts)} if texts else {}),
    }


def _printed_next(options: FitLens, layers: "Sequence[int]") -> None:
    """Print where the lens is, and how to scan with it: `layers` are those to scan, if they aren't all."""
    command = f"internal-policy scan --model {options.model} --lens {options.output} --sites {options.sites}"
    command += f" --layers {','.join(map(str, layers))}" if layers else ""
    out.print(f"Wrote {escape(str(options.output))}. To scan with it:\n  {escape(command)}")
