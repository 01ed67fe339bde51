"""`internal-policy scan`: measure the policies of a model over responses, or answer from the cache."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from internal_policy.cli import engine, forecast, measuring, opening, outputs, progress, sampler, shards, texts, work
from internal_policy.cli.common import (
    EngineOptions,
    JsonOptions,
    Lenses,
    ModelOptions,
    Number,
    OutputFolder,
    OutputOptions,
    PromptOptions,
    ResponseOptions,
    RolloutOptions,
    SamplingOptions,
    Text,
    Texts,
)
from internal_policy.cli.measuring import UNWATCHED, Watch
from internal_policy.cli.prepared import Prepared, check_effect, prepare, source
from internal_policy.errors import InputError
from internal_policy.scans import positions
from internal_policy.scans.records import RECORD


@dataclass(frozen=True, kw_only=True)
class Reading(ModelOptions):
    """A model, and the library that reads its hidden states."""

    group: ClassVar = "Model"
    reader: Literal["hooks", "transformer-lens", "nnsight"] = "hooks"
    """Reader of hidden states: our own hooks, or a library. Install a library with internal-policy[nnsight] or
    internal-policy[transformer-lens]."""
    remote: bool = False
    """Measure on NDIF (ndif.us), whose servers have the model and choose its precision. Needs --reader nnsight and
    --rollouts."""


@dataclass(frozen=True, kw_only=True)
class GivenOptions(RolloutOptions):
    """Texts or responses to measure."""

    group: ClassVar = "Data"
    text: Texts = ()
    """Text to measure as it is, without the chat template; - reads it from stdin. For several texts repeat the option:
    --text "One." --text "Two." Nothing predicts the first token of a text, so measuring begins at the second, or at the
    first where the tokenizer puts a BOS token before it."""


@dataclass(frozen=True, kw_only=True)
class SeriesOptions:
    """A series of checkpoints to scan over the same responses."""

    group: ClassVar = "Checkpoints"
    checkpoints: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB")] = None
    """Checkpoints of one training run to scan in place of --model: a folder of folders such as checkpoint-100 or
    step1000, each with a model or an adapter, or a hub model with the names of its branches or tags, such as
    'EleutherAI/pythia-14m@step*'. The scans make up a study."""
    steps: Text = None
    """Steps of --checkpoints to scan, such as 0-1000,5000-; by default all."""
    every_step: int = 1
    """Scan only the --checkpoints whose step is a multiple of this number."""
    sampled_from: Text = None
    """Model that answers the problems for --checkpoints, once: a folder, a hub id, or the step of a checkpoint; by
    default the first checkpoint."""


@dataclass(frozen=True, kw_only=True)
class ScanOutput(JsonOptions, OutputOptions):
    """Where the scan is written, and what happens to an earlier one."""

    group: ClassVar = "Output"
    output: OutputFolder = None
    """Folder for the scan or study; by default one under ~/.cache/internal-policy (or $INTERNAL_POLICY_CACHE)."""
    force: bool = False
    """Replace another scan in the folder; only files that internal-policy wrote are removed."""
    dry_run: bool = False
    """Only print what would be measured, and how much memory, disk and time it needs."""


@dataclass(frozen=True, kw_only=True)
class Scan(ScanOutput, PromptOptions, EngineOptions, ResponseOptions, GivenOptions, SeriesOptions, Reading):
    """Measure the policy of every layer at every response token.

    The model answers problems first, unless --text or --rollouts gives it what to read. Its policy is then measured
    after every layer, attention block and FFN, at every response token. The scan is kept as Parquet files. An
    interrupted scan continues where it stopped, and a repeated one is read from the cache.

    For example:
    $ internal-policy scan
    $ internal-policy scan --text "The capital of France is Paris"
    $ internal-policy scan --model Qwen/Qwen3-4B --problems openai/gsm8k:main@test
    $ internal-policy scan --model ./my-llama --rollouts responses.jsonl
    $ internal-policy scan --model Qwen/Qwen3-4B --rollouts out/completions
    $ internal-policy scan --layers 0,5,10-20,-1 --sites attn_out --readout raw
    $ internal-policy scan --checkpoints ./my-run --rollouts responses.jsonl
    """

    group: ClassVar = "What to measure"
    layers: str = "all"
    """Layers to measure, counted from 0, such as 0,5,10-20,-1."""
    sites: str = "all"
    """Sites to measure, separated by commas: resid_pre, attn_in, attn_out, resid_mid, mlp_in, mlp_out, resid_post; all
    takes those that the model's family has."""
    readout: Literal["raw", "norm", "both"] = "both"
    """How hidden states are unembedded: as they are (raw, the paper), through the final norm (norm, the logit lens), or
    both."""
    lens: Lenses = ()
    """Lens to read hidden states through as well: a .safetensors file that `fit-lens` or the tuned-lens library wrote,
    a published Jacobian lens (.pt), or one on the hub as hf://org/repo[/path/in/repo][@revision]. Its readout is called
    tuned or jacobian after its kind, or NAME. For several lenses repeat the option."""
    lens_of_another_model: bool = False
    """Read through a lens that was fitted to another model, such as the base of a fine-tuned one. Without this option
    such a lens is refused."""
    measures: str = "all"
    """Measures to keep, separated by commas: entropy, logprob, rank, kl, topk, norm, cosine, entropy_at_input_norm, or
    those of --controls, which all leaves out."""
    controls: bool = False
    """Also measure the controls that `check` uses to tell whether an entropy pattern is real: renyi_half, renyi_2,
    logit_scale, entropy_at_input_scale, entropy_shuffled and entropy_random. A scan takes two to three times as long
    on a CPU, and more on a GPU."""
    top_k: int = 5
    """Number of most likely tokens to keep at each hook point; 0 keeps none."""
    positions: Text = None
    """Positions of each response to measure: a range such as 0-99 or 100-. The model reads the rest as well; by default
    all are measured."""
    every: int = 1
    """Measure only every so many of these positions, such as 4 for every fourth token."""
    limit: Number = None
    """Number of problems or rollouts to use, from the first; by default all."""


PRESENTATION = {"output", "json", "dry_run", "controls", *engine.RAY}
"""Options that don't change what is measured, or whose effect is a list of measures."""
SAMPLING = {f.name for f in dataclasses.fields(SamplingOptions)} - {"batch_size"} | {"problems"}
"""Options that have no effect if responses are given."""
COLUMNS = {"problem_column", "answer_column", "system_prompt", "prompt_suffix"}
"""Options about problems, which have no effect if responses are given."""
WITH_TEXT = {"limit", "chat_template", "chat_template_kwargs"}
"""Options that have no effect on texts, which are measured as they are."""


def run(options: Scan) -> None:
    """Read the scan from the cache, or measure what is missing; then print it."""
    from internal_policy.cli import checkpoints, show

    if checkpoints.check(options):
        checkpoints.run(options, prepared, scanned)
        return
    start = time.monotonic()
    leads = options.worker.leads
    progress.hush(not leads)
    inputs = prepared(options)
    if options.dry_run:
        if not leads:
            return
        folder, _, cached = _kept(options, inputs)
        is_here = not options.remote and options.engine != "ray"
        needed = forecast.forecast(work.planned(options, inputs), is_here=is_here)
        forecast.printed(needed, folder, cached, as_json=options.json)
        return
    folder, cached = scanned(options, inputs, opening.Opener(options.reader, options.remote, options.engine))
    if not leads or not (folder / RECORD).exists():
        return
    show.scan(folder, None, as_json=options.json, extra={"cached": cached})
    progress.note(f"{'Read from the cache' if cached else 'Measured'} in {time.monotonic() - start:.1f} s.")


def scanned(options: Scan, inputs: Prepared, opener: opening.Opener, watch: Watch = UNWATCHED) -> tuple[Path, bool]:
    """The folder of the scan, and whether it was in the cache; otherwise it is measured now. Raises InputError.

    The scan isn't finished if other processes that share the work still have parts; a note on stderr says so.
    """
    folder, other, cached = _kept(options, inputs)
    if not cached:
        opener.check()
        outputs.check_writable(folder)
        planned = work.planned(options, inputs)
        with sampler.sampled(options, planned, folder, other) as planned:
            measuring.measure(planned, opener, folder, other, watch, engine.pool(options))
    return folder, cached


def _kept(options: Scan, inputs: Prepared) -> tuple[Path, bool, bool]:
    """The folder of the scan, whether it holds another one, and whether it holds this one."""
    from internal_policy.scans import job, sharing, store

    folder = options.output or store.folder_of(options.model, inputs.question)
    _, other = outputs.claimed(
        folder, "scan", options.force, lambda: job.claim(folder, inputs.question), outputs.inputs_of(options)
    )
    shards.check_other(options.worker, folder, other)
    cached = not other and (folder / store.RECORD).exists()
    if cached:
        sharing.sweep(folder)
        store.check_sizes(folder)
    return folder, other, cached


def _check(options: Scan) -> None:
    """Refuse options that contradict each other, or would have no effect. Raises InputError."""
    engine.check(options)
    engine.pool(options)
    if options.every < 1:
        raise InputError(f"--every is {options.every}; it must be 1 or more.")
    given = [name for name in ("problems", "rollouts", "text") if getattr(options, name)]
    if len(given) > 1:
        raise InputError(f"Both --{given[0]} and --{given[1]} are given. Use one of them.")
    if given and given[0] != "problems":
        unread = SAMPLING | COLUMNS | (WITH_TEXT if options.text else set())
        check_effect(options, unread, f"--{given[0]}")
    opening.check(options)


def prepared(options: Scan) -> Prepared:
    """Resolve the options. Layers, sites and measures become `all` or lists, however they were typed.

    Raises InputError for options that contradict each other or would have no effect.
    """
    _check(options)
    first, last = positions.parse(options.positions)
    span = None if (first, last) == (0, None) else f"{first}-{'' if last is None else last}"  # however it was typed
    options = dataclasses.replace(options, positions=span, text=texts.read(options.text, "--text"))
    is_given = bool(options.text or options.rollouts)
    unused = PRESENTATION | (SAMPLING if is_given else set()) | (set() if engine.samples(options) else {"engine"})
    sources = []
    if not is_given:
        problems, limit = source(options.problems, options.limit)
        options, sources = dataclasses.replace(options, problems=problems, limit=limit), [problems]
    inputs = prepare(
        options,
        unused,
        sources,
        texts=options.text,
        rollouts=options.rollouts,
        lenses=options.lens,
        of_another_model=options.lens_of_another_model,
    )
    if options.layers == options.sites == options.measures == "all" and not options.controls:
        return inputs  # without transformers, which takes seconds to import
    from internal_policy.measure.metrics import MEASURES
    from internal_policy.measure.sites import SITES
    from internal_policy.models.families import sites_of

    readouts = [lens.name for lens in inputs.lenses]
    chosen, sites = work.selection(options, inputs.config, readouts), sites_of(inputs.config)
    every = {
        "layers": tuple(range(inputs.config.get_text_config().num_hidden_layers)),
        "sites": tuple(site for site in SITES if site in sites),
        "measures": MEASURES,
    }
    lists = {name: getattr(chosen, name) for name in every}
    return inputs.asking(**{name: "all" if some == every[name] else list(some) for name, some in lists.items()})
