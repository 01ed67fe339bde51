"""The public functions that take texts, rows and files: `generate`, `scan` and `lens`."""

from __future__ import annotations  # so that help() shows the types as they are written

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from internal_policy.errors import InputError
from internal_policy.jupyter import progress
from internal_policy.lenses import next_token
from internal_policy.look.lens import LensTable
from internal_policy.look.scan import Scan, of
from internal_policy.measure.metrics import CONTROLS, MEASURES
from internal_policy.models.policy import READOUTS, Readout
from internal_policy.scans.scan import scan as measure
from internal_policy.scans.shard import Shard
from internal_policy.tasks import generate as sampling
from internal_policy.tasks import given
from internal_policy.tasks.listing import Rollouts
from internal_policy.tasks.problems import Problem
from internal_policy.tasks.prompts import Chat
from internal_policy.tasks.rollouts import Rollout

NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[str | Problem | Mapping[str, Any]] | str | Path = (),
    *,
    limit: int | None = None,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 1024,
    seed: int = 0,
    batch_size: int = 8,
    chat: Chat = NO_ARGUMENTS,
) -> Rollouts:
    """Sample `samples` responses to each problem, and mark those whose problem has an answer.

        rollouts = ip.generate(model, tokenizer, ["What is 47 + 385?"])
        rollouts = ip.generate(model, tokenizer, [{"problem": "What is 47 + 385?", "answer": "432"}], samples=8)
        rollouts = ip.generate(model, tokenizer, "HuggingFaceH4/MATH-500@test", limit=100)
        pandas.DataFrame(rollouts)[["problem", "response", "reward"]]

    `problems` is a list of questions, rows (dicts with a question and perhaps an answer, under the column names that
    `internal-policy scan --problems` takes) and Problems; or the name of a file or of a data set on the hub. A .txt
    file has a problem on each line. `limit` takes only the first of them. Temperature 0 takes the most likely token.
    `chat` are arguments for the chat template, such as `{"enable_thinking": False}`; None leaves the template out, for
    models without one. Inside `as_policy`, the internal policy answers.

    The result is a list with a Rollout for each response, problem by problem, with the token ids as sampled, the text,
    and the reward: 1 or 0, None if it can't be marked. A notebook shows it as a table. The same arguments give the same
    responses. Raises InputError for a
    problem that can't be read or is too long for the model, and for options that are out of range.
    """
    _check(model, tokenizer)
    questions = given.problems(problems, limit)
    batches = sampling.generate(
        model,
        tokenizer,
        questions,
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
        batch_size=batch_size,
        chat=chat,
    )
    found = Rollouts()
    with progress.bar("Sampling", len(questions) * samples) as advance:
        for batch in batches:
            found += batch
            advance(len(batch))
    return found


def scan(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str | Rollout | Mapping[str, Any]] | str | Path = (),
    *,
    limit: int | None = None,
    layers: Sequence[int] | None = None,
    sites: Sequence[str] | None = None,
    readouts: Sequence[Readout] = READOUTS,
    measures: Sequence[str] | None = None,
    controls: bool = False,
    top_k: int = 5,
    positions: tuple[int, int | None] = (0, None),
    every: int = 1,
    batch_size: int = 8,
    chat: Chat = NO_ARGUMENTS,
    shard: tuple[int, int] = (0, 1),
) -> Scan:
    """Measure the policies at every hook point of `model`, at every token of `texts`.

        scan = ip.scan(model, tokenizer, ["The capital of France is Paris"])
        scan.means()                                                   # entropies by layer and site
        scan = ip.scan(model, tokenizer, ip.generate(model, tokenizer, ["What is 47 + 385?"]))
        scan = ip.scan(model, tokenizer, "responses.jsonl", layers=[0, 5], readouts=["raw"])

    `texts` is a list of plain texts, rollouts from `generate`, and rows (dicts with prompt and response, with messages,
    or with prompt_ids and response_ids, as for `internal-policy scan --rollouts`); or the name of a file of such rows,
    or of a .txt file, all of which is one text. `limit` takes only the first of them.

    A policy predicts a token, so nothing predicts the first token of a plain text: it is the prompt, and every token
    after it is measured. Where the tokenizer begins a text with a BOS token (Llama, Gemma), that is the prompt, and all
    of the text is measured; elsewhere (Qwen, GPT-2) measuring begins at the second token. Plain text is read as it is,
    without the chat template, like a column `text` of `--rollouts`. Of a rollout, only the response is measured.

    A prompt goes through the chat template unless `chat` is None. The first one is shown on stderr as it was read.

    `layers` (from 0), `sites` and `measures` default to all; `readouts` are "raw" (the paper), "norm" (the logit lens),
    by default both, or lenses, which are callables `(hidden, point) -> hidden`. `controls` adds the measures that tell
    whether a pattern of the entropies is real: Rényi entropies, the logit scale, and null states. To store less,
    measure only the tokens at `positions` of each response, from the first to the last (None for the end), or `every`
    Nth of them; the model reads the others as well. `model` may also be a PeftModel, a TransformerBridge or an NNsight
    wrapper. The result is a scan in memory: see `open_scan` for what it can do.

    `shard=(i, n)` measures only every n-th batch, counted from batch i, so that n processes share the work. Give each
    the same texts and options; rollouts keep the numbers that they have in a whole scan, and `merge` puts the shards
    together.

    Raises InputError for a layer, site, readout or measure that doesn't exist, for a text that can't be read or has
    fewer than two tokens, and for a shard that is out of range or has no texts.
    """
    _check(model, tokenizer)
    lists = {"layers": layers, "sites": sites, "readouts": readouts, "measures": measures}
    _check_selected(lists, positions)
    rollouts = given.rollouts(tokenizer, texts, limit, chat)
    chosen = {name: value for name, value in lists.items() if value is not None}
    if controls:
        chosen["measures"] = _with_controls(MEASURES if measures is None else measures)
    which: dict[str, Any] = {"positions": tuple(positions), "every": every, "shard": Shard(*shard), "top_k": top_k}
    with progress.bar("Scanning", -(-len(rollouts) // shard[1])) as advance:
        return of(measure(model, tokenizer, rollouts, **chosen, **which, batch_size=batch_size, advance=advance))


def _with_controls(measures: Sequence[str]) -> list[str]:
    return [*measures, *(name for name in CONTROLS if name not in measures)]


def _check_selected(lists: Mapping[str, Any], positions: Any) -> None:
    """Refuse what isn't a list or a pair. Raises InputError."""
    for name, value in lists.items():
        if value is not None and not isinstance(value, list | tuple | range):
            raise InputError(f"{name} must be a list, not {value!r}. Use [{value!r}].")
    if wrong := [layer for layer in lists["layers"] or () if not isinstance(layer, int)]:
        raise InputError(f"layers has {wrong[0]!r}. Give whole numbers from 0.")
    if not isinstance(positions, tuple | list) or len(positions) != 2:
        raise InputError(f"positions is {positions!s:.60}. Give the first and the last, such as (100, 200).")


def lens(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    target: str | None = None,
    site: str = "resid_post",
    readout: Readout = "norm",
    top_k: int = 1,
    all_positions: bool = False,
    chat: Chat = None,
) -> LensTable:
    """What each layer would say next after `text`: the logit lens (readout norm), as a table that draws itself.

        ip.lens(model, tokenizer, "The capital of France is")
        ip.lens(model, tokenizer, "The capital of France is", target=" Paris", top_k=5)
        ip.lens(model, tokenizer, "The capital of France is", site="mlp_out", all_positions=True)   # the grid

    The result is a data frame with a row per layer: its top token and probability, its entropy in nats, and the rank
    and probability of `target`, by default the model's own top token. The first token of a longer target is used;
    mind the space in " Paris". The last row is the model's own policy. `all_positions` adds rows for every other token
    of the text, and a notebook then shows the grid of top tokens. `readout` is "norm", "raw" (the paper) or a lens.
    The text is read as it is, unless `chat` has arguments for the chat template, such as `{}`: then it is a question.

    Raises InputError for a text without tokens or too long for the model, a site that the model lacks, and a target
    without tokens.
    """
    _check(model, tokenizer)
    if not isinstance(text, str):
        raise InputError(f"text must be a string, not {given.a_kind(text)}. Call lens once per text.")
    return next_token.table(
        model,
        tokenizer,
        text,
        target=target,
        site=site,
        readout=readout,
        top_k=top_k,
        all_positions=all_positions,
        chat=chat,
    )


def _check(model: Any, tokenizer: Any) -> None:
    """Raise InputError if a model's name is given instead of a model, or the tokenizer is missing."""
    if model is None or isinstance(model, str | Path | tuple | list):
        raise InputError(
            f"The first argument is {given.a_kind(model)}, not a model. Load it first: model, tokenizer = "
            "internal_policy.load('demo-qwen3')."
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            f"The second argument is {given.a_kind(tokenizer)}, not a tokenizer. Pass the model, the tokenizer, then "
            "the texts: model, tokenizer = internal_policy.load(...) gives both."
        )
