"""`internal-policy align`: how well each layer's gradient agrees with GRPO's."""

import dataclasses
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy import bundle, files
from internal_policy.cli import engine, outputs, prepared, progress, sampler, shards
from internal_policy.cli.common import (
    File,
    JsonOptions,
    Number,
    OutputFolder,
    OutputOptions,
    ProblemOptions,
    ResponseOptions,
    RolloutOptions,
    SamplerOptions,
)
from internal_policy.cli.console import commands, document, out, paragraph, uncut
from internal_policy.errors import InputError
from internal_policy.scans import versions

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from internal_policy.cli.prepared import Prepared
    from internal_policy.look.aligned import Alignment
    from internal_policy.tasks.rollouts import Rollout

LEAST = {"blocks": 4, "limit": 1, "samples": 2}
"""Option -> its smallest value. One response to a prompt has no other to be compared with."""


@dataclass(frozen=True, kw_only=True)
class Align(JsonOptions, OutputOptions, SamplerOptions, ResponseOptions, RolloutOptions, ProblemOptions):
    """Measure how well each layer's gradient agrees with GRPO's.

    The model answers problems, each several times, unless --rollouts gives responses with rewards. For every layer, the
    gradient that BuPO's first update on its policy would have is compared with that of GRPO: the first-order gain of
    a step by the signs of the gradient (as Adam's first is) as a share of GRPO's, on the same prompts and on others,
    and the cosine. This says before training which layer is worth training first.

    The responses are kept while an interrupted command is to continue, and a repeated one is read from the cache.

    For example:
    $ internal-policy align
    $ internal-policy align --model Qwen/Qwen3-0.6B --problems train.jsonl
    $ internal-policy align --sites resid_post,attn_out,mlp_out --readout raw
    $ internal-policy align --rollouts rollouts.parquet --layers 0-3
    """

    group: ClassVar = "What to measure"
    layers: str = "all"
    """Layers to measure, counted from 0, such as 0,5,10-20,-1."""
    sites: str = "resid_post"
    """Outputs whose policy is measured, separated by commas: that of the layer (resid_post), its attention (attn_out)
    or its FFN (mlp_out)."""
    readout: Literal["raw", "norm", "both"] = "both"
    """How hidden states are unembedded: as they are (raw, the paper), through the final norm (norm), or both."""
    blocks: int = 16
    """Blocks of prompts; the intervals leave out each block once. If memory is short, there are fewer."""
    problems: File = None
    """Problems with answers: a .jsonl, .json, .csv or .parquet file, or a data set of the hub as NAME[:CONFIG]@SPLIT.
    By default the bundled sums that `train` uses."""
    limit: Number = None
    """Number of problems or rollouts to use, from the first; by default 96 problems, and all rollouts."""
    samples: int = 8
    """Responses per problem."""
    batch_size: int = 16
    """Responses processed at a time; halved when memory runs out."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "float32"
    """Type of the weights, as in training."""
    output: OutputFolder = None
    """Folder for the result; by default one under ~/.cache/internal-policy (or $INTERNAL_POLICY_CACHE)."""
    force: bool = False
    """Replace another alignment in the folder; only files that internal-policy wrote are removed."""


PRESENTATION = {"output", "json"}
"""Options that don't change the numbers."""


def run(options: Align) -> None:
    """Read the alignment from the cache, or measure it; then print it."""
    from internal_policy.look import alignment as look
    from internal_policy.scans import claims, store

    start, worker = time.monotonic(), options.worker
    progress.hush(not worker.leads)
    for name, least in LEAST.items():
        if (value := getattr(options, name)) is not None and value < least:
            raise InputError(f"--{name} is {value}; it must be {least} or more.")
    inputs = _prepared(options)
    folder = options.output or store.folder_of(inputs.checkpoint.name, inputs.question)
    _, other = outputs.claimed(
        folder,
        "alignment",
        options.force,
        lambda: claims.claim(folder, look.RECORD, "alignment", inputs.question),
        outputs.inputs_of(options),
    )
    shards.check_other(worker, folder, other)
    cached = not other and look.is_whole(folder)
    if not cached:
        outputs.check_writable(folder)
        outputs.check_cache()
        progress.quiet()
        _measure(options, inputs, folder, other)
    if not worker.leads or not look.is_whole(folder):
        return
    printed(folder, as_json=options.json, extra={"cached": cached})
    progress.note(f"{'Read from the cache' if cached else 'Measured'} in {time.monotonic() - start:.1f} s.")


def _prepared(options: Align) -> "Prepared":
    """Resolve the options. Raises InputError."""
    from internal_policy.look import alignment as look

    engine.check(options)
    if options.rollouts:
        prepared.check_effect(options, {"problems", "samples", "max_new_tokens"}, "--rollouts")
        return prepared.prepare(options, PRESENTATION, [], rollouts=options.rollouts)
    problems = options.problems or str(bundle.DATA / "problems" / "sums.jsonl")
    limit = look.PROMPTS if options.limit is None else options.limit
    return prepared.prepare(dataclasses.replace(options, problems=problems, limit=limit), PRESENTATION, [problems])


def _measure(options: Align, inputs: "Prepared", folder: Path, other: bool) -> None:
    """Sample the responses if none are given, measure the gradients, and write the result."""
    import pyarrow as pa

    from internal_policy.look import alignment as look
    from internal_policy.models import offload, quantized
    from internal_policy.scans import digests, store
    from internal_policy.scans.selection import parse_layers
    from internal_policy.tasks.rollouts import write_rollouts
    from internal_policy.train import align

    n_layers = inputs.config.get_text_config().num_hidden_layers
    layers = None if options.layers == "all" else parse_layers(options.layers, n_layers)
    sites = tuple(options.sites.split(","))
    readouts = ("raw", "norm") if options.readout == "both" else (options.readout,)
    points = len(align.policies(inputs.config, layers, sites, readouts))
    parts = store.root() / "rollouts" / store.digest({**inputs.question, "output": folder.absolute()})
    model = None if engine.samples(options) else inputs.model()
    rollouts = _responses(options, inputs, parts, model)
    if rollouts is None:
        return
    model = inputs.model() if model is None else model
    quantized.check_trainable(model)
    offload.check_trainable(model)
    total = align.passes(align.batched(rollouts, options.blocks), points)
    with progress.bar("Measuring gradients", total, "responses x policies") as advance:
        found = align.align(
            model,
            rollouts,
            layers=layers,
            sites=sites,
            readouts=readouts,
            temperature=options.temperature,
            blocks=options.blocks,
            batch_size=options.batch_size,
            advance=lambda number: advance(number, 0),
            smaller=progress.saying_once("Out of memory: measuring {} responses at a time."),
        )
    if other:
        outputs.clear(folder, "alignment")
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / look.RECORD, _facts(inputs, found))
    if not options.rollouts:
        write_rollouts(folder / look.ROLLOUTS, rollouts)
    store.write_table(folder / look.TABLE, pa.Table.from_pandas(found.table, preserve_index=False))
    digests.record(folder, (look.RECORD, look.TABLE, look.ROLLOUTS))
    shards.remove(parts)


def _responses(options: Align, inputs: "Prepared", parts: Path, model: "nn.Module | None") -> "list[Rollout] | None":
    """The given responses, or sampled ones (by an engine without `model`); None while other processes have some."""
    if options.rollouts:
        return inputs.given()
    source = inputs.question["problems"]
    problems, lengths = inputs.problems(source)
    if without := [number for number, one in enumerate(problems, 1) if one.answer is None]:
        raise InputError(f"Problem {without[0]} of {source} has no answer, which its responses are marked by. Add one.")
    if model is None:
        with sampler.sampler(options, inputs, prepared.own_policy(), lengths) as sample:
            rollouts = sample(problems, parts)
    else:
        rollouts = inputs.sample(model, prepared.own_policy(), problems, parts)
    if rollouts is None:
        shards.note_left(inputs.worker, *inputs.left(problems, parts), parts)
    return rollouts


def _facts(inputs: "Prepared", found: "Alignment") -> dict[str, Any]:
    from internal_policy.scans import store

    return {
        "digest": store.digest(inputs.question),
        "asked": inputs.question,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **found.about,
        "model": inputs.checkpoint.name,
        "versions": versions.of(("internal-policy", "torch", "transformers")),
        "command": sys.argv,
    }


def printed(folder: Path, *, as_json: bool = False, extra: Mapping[str, Any] | None = None) -> None:
    """Print an alignment: a table for each site and readout, and the layer that is best worth training."""
    from internal_policy.look import alignment as look

    if as_json:
        document(facts(folder, extra))
        return
    about, found = look.record(folder), look.table(folder)
    n_layers = about["n_layers"]
    for site, readout in look.policies(found):
        uncut(_table(found[(found["site"] == site) & (found["readout"] == readout)], str(about["model"])))
    for sentence in look.sentences(found, n_layers):
        paragraph(sentence)
    paragraph(look.facts(about))
    out.print(f"Alignment: {escape(str(folder))}", emoji=False)
    first = next((one for how in ("raw", "norm") if (one := look.best(found, n_layers, readout=how))), None)
    model = "" if about["asked"]["model"] == "demo-qwen3" else f" --model {shlex.quote(about['asked']['model'])}"
    train = [f"internal-policy train{model} --layer {first.layer}"] if first else []
    called = folder.name if folder.resolve() in map(Path.resolve, look.whole()) else str(folder)
    commands([*train, f"internal-policy plot {shlex.quote(called)} alignment -o alignment.html"])


def facts(folder: Path, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `show --json` prints of an alignment."""
    from internal_policy.look import alignment as look

    about, found = look.record(folder), look.table(folder)
    kept = {name: value for name, value in about.items() if name not in ("asked", "digest")}
    suggested = [
        {"site": site, "readout": how, **(dataclasses.asdict(one) if one else {"layer": None})}
        for site, how in look.policies(found)
        for one in [look.best(found, about["n_layers"], site, how)]
    ]
    rows = found.drop(columns="left_out").to_dict("records")
    return {"alignment": str(folder), **(extra or {}), **kept, "suggested": suggested, "rows": rows}


def _table(rows: "pd.DataFrame", model: str) -> Table:
    """The numbers of one site and readout by layer."""
    from internal_policy.look import alignment as look

    site, readout = rows["site"].iloc[0], rows["readout"].iloc[0]
    title = f"{model}, {site}, {look.READOUTS[readout]}: the gradient compared with GRPO's"
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("layer", "gain", "95%", "held out", "95%", "cosine", "cost", "gain/cost"):
        table.add_column(name, justify="right", no_wrap=True)
    for layer, some in rows.groupby("layer"):
        of = some.set_index("measure")
        gain, others, cost = of.loc["gain_in_batch"], of.loc["gain"], float(some["cost"].iloc[0])
        cells = [
            *_cells(gain),
            *_cells(others),
            f"{of.loc['cosine_in_batch', 'mean']:.2f}",
            f"{cost:.2f}",
            f"{gain['mean'] / cost:.2f}",
        ]
        table.add_row(str(layer), *cells)
    return table


def _cells(row: Any) -> list[str]:
    mean, low, high = (f"{row[name]:.2f}" for name in ("mean", "low", "high"))
    return [mean, f"{low} to {high}"]
