"""What the command that fits a lens does: sample responses, fit on most of them, measure on the others."""

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from internal_policy import bundle
from internal_policy.cli import options, progress, sampling, show
from internal_policy.errors import InputError
from internal_policy.models import loading
from internal_policy.scans import store

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from internal_policy.tasks.problems import Problem
    from internal_policy.tasks.rollouts import Rollout

PROBLEMS = 512
"""How many of the bundled training problems are asked where nobody says which problems."""
PRESENTATION = {"json", "rollouts", "sites", "held_out", "steps", "batch_tokens", "learning_rate"}
"""Options that change nothing of what is sampled."""


def run(asked: options.FitLens) -> None:
    """Fit, measure, write one file, and show the KL at each hook point."""
    start, asked = time.monotonic(), _completed(asked)
    _check(asked)
    from internal_policy.lenses import fit, tuned
    from internal_policy.models.families import place, sites_of
    from internal_policy.scans.scan import check
    from internal_policy.scans.selection import Selection

    progress.quiet()
    config = loading.load_config(asked)
    text = config.get_text_config()
    sites = sites_of(config) if asked.sites == "all" else tuple(asked.sites.split(","))
    selection = Selection(tuple(range(text.num_hidden_layers)), sites, measures=("kl",), top_k=0)
    for site in sites:
        place(config, site)
    points = fit.points_of(text.num_hidden_layers, sites)
    fit.check_memory(len(points), 0, text.hidden_size, 4)
    tokenizer = loading.load_tokenizer(asked, asked.chat_template)
    given, problems = _given(asked, tokenizer, config)
    question = sampling.question(asked, [asked.problems, asked.chat_template], PRESENTATION)
    model = loading.load_model(asked, config)
    folder = store.root() / "rollouts" / store.digest({**question, "output": asked.output.absolute()})
    rollouts = given or _sampled(asked, model, tokenizer, problems, folder)
    check(model, selection, rollouts)
    fitted, held = fit.apart(rollouts, asked.held_out, asked.seed)
    with progress.bar("Fitting", asked.steps, "steps") as advance:
        maps = fit.fit(
            model,
            fitted,
            points,
            steps=asked.steps,
            learning_rate=asked.learning_rate,
            batch_tokens=asked.batch_tokens,
            seed=asked.seed,
            advance=advance,
        )
    kl = fit.kl(model, held, maps)
    source = Path(asked.rollouts or asked.problems or "")
    about = {
        "model": asked.model,
        "identity": question["identity"],
        "d_model": text.hidden_size,
        "fitted_on": {"file": source.name if source.is_file() else str(source), **_size(fitted)},
        "held_out": _size(held),
        "kl": json.loads(kl.to_json(orient="records")),  # with null where there is no interval
        **{name: getattr(asked, name) for name in ("sites", "steps", "batch_tokens", "learning_rate", "seed")},
    }
    tuned.save(asked.output, dataclasses.replace(maps, about=about))
    shutil.rmtree(folder, ignore_errors=True)
    show.fitted(asked.output, about, kl, as_json=asked.json)
    progress.note(f"Fitted in {time.monotonic() - start:.1f} s.")


def _completed(asked: options.FitLens) -> options.FitLens:
    """With the bundled problems where no others, and no responses, are named."""
    if asked.problems is not None and asked.rollouts is not None:
        raise InputError("Both --problems and --rollouts are given; give one of them.")
    if asked.problems is not None or asked.rollouts is not None:
        return asked
    path = str(bundle.DATA / "problems" / "train.jsonl")
    return dataclasses.replace(asked, problems=path, limit=PROBLEMS if asked.limit is None else asked.limit)


def _check(asked: options.FitLens) -> None:
    """Refuse what cannot be written, or sampled. Raises InputError."""
    from internal_policy.lenses import fit
    from internal_policy.tasks.generate import check_sampling

    if asked.output.exists():
        raise InputError(f"{asked.output} exists; remove it, or give --output another name.")
    if asked.output.suffix != ".safetensors" or not asked.output.parent.is_dir():
        raise InputError(f"--output is {asked.output}; give a .safetensors file in a folder that exists.")
    check_sampling(asked.samples, asked.temperature, asked.top_p, asked.max_new_tokens, asked.batch_size, asked.seed)
    fit.check_options(asked.steps, asked.learning_rate, asked.batch_tokens, asked.held_out)


def _given(
    asked: options.FitLens, tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig"
) -> "tuple[list[Rollout], list[Problem]]":
    """The responses that came with --rollouts, or else the problems. All checked."""
    from internal_policy.tasks.rollouts import read_rollouts

    if asked.rollouts is not None:
        chat = loading.chat_of(asked.chat_template, asked.chat_template_kwargs)
        return read_rollouts(asked.rollouts, tokenizer, chat, limit=asked.limit), []
    return [], sampling.read(asked, asked.problems, tokenizer, config)[0]


def _sampled(
    asked: options.FitLens,
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    problems: "Sequence[Problem]",
    folder: Path,
) -> "list[Rollout]":
    from internal_policy.models.hooks import FINAL

    return sampling.all_of(asked, model, tokenizer, problems, FINAL, "raw", folder)


def _size(rollouts: "Sequence[Rollout]") -> dict[str, int]:
    return {"rollouts": len(rollouts), "tokens": sum(len(rollout.response_ids) for rollout in rollouts)}
