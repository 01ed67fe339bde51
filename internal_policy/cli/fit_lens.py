"""`internal-policy fit-lens`: sample responses, fit a lens on most of them, and measure it on the others."""

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy import bundle
from internal_policy.cli import progress, sampling
from internal_policy.cli.common import File, ModelOptions, ReadingOptions, SamplingOptions
from internal_policy.cli.console import document, out
from internal_policy.errors import InputError
from internal_policy.models import loading

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from internal_policy.tasks.problems import Problem
    from internal_policy.tasks.rollouts import Rollout


@dataclass(frozen=True, kw_only=True)
class FitLens(SamplingOptions, ReadingOptions, ModelOptions):
    """Fit a tuned lens: at each hook point an affine translator whose policy comes close to the model's own.

    The model answers problems first, unless --rollouts gives it responses. The translators start as the norm readout
    (the logit lens), and are then fitted to what the model's own policy says at the response tokens. What is printed is
    KL(final || readout) on problems that were held out. `scan --lens FILE` measures what layers say through the lens.

    For example:
    $ internal-policy fit-lens --output lens.safetensors
    $ internal-policy fit-lens --model Qwen/Qwen3-0.6B --problems train.jsonl --sites all
    $ internal-policy scan --lens lens.safetensors --sites resid_pre,resid_post
    """

    problems: File = None
    """File .jsonl, .json, .csv or .parquet, or a data set of the hub, NAME[:CONFIG]@SPLIT; by default the bundled
    training problems, the first 512 of them."""
    rollouts: File = None
    """Fit on these responses instead: what `scan --rollouts` reads."""
    sites: str = "resid_pre,resid_post"
    """Sites that get a translator in each layer, separated by commas, or all: of resid_pre, attn_in, attn_out,
    resid_mid, mlp_in, mlp_out, resid_post. The last layer's resid_post needs none:
    normed it is the model's own policy."""
    held_out: float = 0.2
    """Share of the problems that are not fitted on: what the KL is measured on."""
    steps: int = 800
    """Updates of the translators."""
    batch_tokens: int = 256
    """Response tokens of a step."""
    learning_rate: float = 1.0
    """Of Adam, times the size of a hidden state (d_model); it falls to 0 over the steps."""
    max_new_tokens: int = 128
    """Length limit of a response."""
    batch_size: int = 32
    """Responses sampled at a time; halved where memory runs out."""
    output: Path = Path("lens.safetensors")
    """File to write."""
    json: bool = False
    """Print the result as JSON."""


PROBLEMS = 512
"""How many of the bundled training problems are options where nobody says which problems."""
PRESENTATION = {"json", "rollouts", "sites", "held_out", "steps", "batch_tokens", "learning_rate"}
"""Options that change nothing of what is sampled."""


def run(options: FitLens) -> None:
    """Fit, measure, write one file, and show the KL at each hook point."""
    start, options = time.monotonic(), _completed(options)
    _check(options)
    from internal_policy.lenses import fit, tuned
    from internal_policy.models.families import place, sites_of
    from internal_policy.scans import store
    from internal_policy.scans.scan import check_rollouts
    from internal_policy.scans.selection import Selection

    progress.quiet()
    config = loading.load_config(options.checkpoint)
    text = config.get_text_config()
    sites = sites_of(config) if options.sites == "all" else tuple(options.sites.split(","))
    Selection((0,), sites)  # raises InputError for an unknown site, and for one given twice
    for site in sites:
        place(config, site)
    points = fit.points_of(text.num_hidden_layers, sites)
    fit.check_memory(len(points), 0, text.hidden_size, 4)
    tokenizer = loading.load_tokenizer(options.checkpoint, options.chat_template)
    given, problems = _given(options, tokenizer, config)
    question = sampling.question(options, [options.problems, options.chat_template], PRESENTATION)
    model = loading.load_model(options.checkpoint, config, **options.arguments)
    folder = store.root() / "rollouts" / store.digest({**question, "output": options.output.absolute()})
    rollouts = given or _sampled(options, model, tokenizer, problems, folder)
    check_rollouts(model, rollouts)
    fitted, held = fit.apart(rollouts, options.held_out, options.seed)
    with progress.bar("Fitting", options.steps, "steps") as advance:
        translators = fit.fit(
            model,
            fitted,
            points,
            steps=options.steps,
            learning_rate=options.learning_rate,
            batch_tokens=options.batch_tokens,
            seed=options.seed,
            advance=advance,
        )
    kl = fit.kl(model, held, translators)
    source = Path(options.rollouts or options.problems or "")
    about = {
        "model": options.model,
        "identity": question["identity"],
        "d_model": text.hidden_size,
        "fitted_on": {"file": source.name if source.is_file() else str(source), **_size(fitted)},
        "held_out": _size(held),
        "kl": json.loads(kl.to_json(orient="records")),  # with null where there is no interval
        **{name: getattr(options, name) for name in ("sites", "steps", "batch_tokens", "learning_rate", "seed")},
    }
    tuned.save(options.output, dataclasses.replace(translators, about=about))
    shutil.rmtree(folder, ignore_errors=True)
    printed(options.output, about, kl, as_json=options.json)
    progress.note(f"Fitted in {time.monotonic() - start:.1f} s.")


def _completed(options: FitLens) -> FitLens:
    """With the bundled problems where no others, and no responses, are named."""
    if options.problems is not None and options.rollouts is not None:
        raise InputError("Both --problems and --rollouts are given; give one of them.")
    if options.problems is not None or options.rollouts is not None:
        return options
    path = str(bundle.DATA / "problems" / "train.jsonl")
    return dataclasses.replace(options, problems=path, limit=PROBLEMS if options.limit is None else options.limit)


def _check(options: FitLens) -> None:
    """Refuse what cannot be written, or sampled. Raises InputError."""
    from internal_policy.lenses import fit
    from internal_policy.tasks.generate import check_sampling

    if options.output.exists():
        raise InputError(f"{options.output} exists; remove it, or give --output another name.")
    if options.output.suffix != ".safetensors" or not options.output.parent.is_dir():
        raise InputError(f"--output is {options.output}; give a .safetensors file in a folder that exists.")
    check_sampling(
        options.samples, options.temperature, options.top_p, options.max_new_tokens, options.batch_size, options.seed
    )
    fit.check_options(options.steps, options.learning_rate, options.batch_tokens, options.held_out)


def _given(
    options: FitLens, tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig"
) -> "tuple[list[Rollout], list[Problem]]":
    """The responses that came with --rollouts, or else the problems. All checked."""
    from internal_policy.tasks.rollouts import read_rollouts

    if options.rollouts is not None:
        chat = loading.chat_of(options.chat_template, options.chat_template_kwargs)
        return read_rollouts(options.rollouts, tokenizer, chat, limit=options.limit), []
    return [], sampling.read(options, options.problems, tokenizer, config)[0]


def _sampled(
    options: FitLens,
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    problems: "Sequence[Problem]",
    folder: Path,
) -> "list[Rollout]":
    from internal_policy.models.hooks import FINAL

    return sampling.all_of(options, model, tokenizer, problems, FINAL, "raw", folder)


def _size(rollouts: "Sequence[Rollout]") -> dict[str, int]:
    return {"rollouts": len(rollouts), "tokens": sum(len(rollout.response_ids) for rollout in rollouts)}


def printed(path: Path, about: Mapping[str, Any], kl: "pd.DataFrame", *, as_json: bool = False) -> None:
    """A lens: how far each readout is from the model's own policy, hook point by hook point, on held-out problems.

    `kl` has layer, site, readout, mean, low and high, in the order of the table's columns.
    """
    if as_json:
        document({"lens": str(path), **about})
        return
    table = Table(title="KL from the model's own policy, in nats", title_justify="left", box=box.SIMPLE_HEAD)
    readouts = list(dict.fromkeys(kl["readout"]))
    for name in ("", *readouts, f"{readouts[-1]}, 95 %"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for (layer, site), rows in kl.groupby(["layer", "site"], sort=False):
        last = rows.iloc[-1]
        between = "" if math.isnan(last["low"]) else f"{last['low']:.3f} to {last['high']:.3f}"
        table.add_row(f"{layer}.{site}", *(f"{mean:.3f}" for mean in rows["mean"]), between)
    out.print(table)
    fitted, held = about["fitted_on"], about["held_out"]
    out.print(
        f"Of {held['rollouts']:,} held-out responses ({held['tokens']:,} tokens), fitted on {fitted['rollouts']:,} "
        f"({fitted['tokens']:,}); the interval is over responses."
    )
    command = f"internal-policy scan --model {about['model']} --lens {path} --sites {about['sites']}"
    out.print(f"Lens: {escape(str(path))}. Scan with it: {escape(command)}")
