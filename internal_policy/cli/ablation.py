"""Resolve the options of `ablate` once, and run what they ask for."""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internal_policy.cli import configuration, outputs, progress
from internal_policy.cli.common import ModelOptions
from internal_policy.errors import InputError, counted
from internal_policy.measure.sites import CHANGES
from internal_policy.models import checkpoint, loading, naming, tokenizers
from internal_policy.models.checkpoint import Checkpoint
from internal_policy.scans import versions

if TYPE_CHECKING:
    from internal_policy.cli.ablate import Ablate
    from internal_policy.scans.ablation import Ablator
    from internal_policy.scans.positions import Positions
    from internal_policy.tasks.rollouts import Rollout

RUNS_ON = ("device", "device_map", "max_memory", "offload_folder")
"""Options of a model that tell where it runs; the others are those of the scan unless they are given."""
MODULES = tuple(CHANGES)
"""What can be ablated of a layer."""
LONGER = 2
"""Responses of ablated models may be this many times as long as the longest in the scan, because most never end."""


@dataclass(frozen=True)
class Work:
    """What is ablated, checked as far as that needs no model."""

    checkpoint: Checkpoint
    """The files of the scan's model."""
    arguments: Mapping[str, Any]
    """Arguments of `loading.load_model`."""
    scan: Path
    """The folder of the scan."""
    typed: str
    """The scan as it was named on the command line."""
    layers: tuple[int, ...]
    """Layers to ablate."""
    modules: tuple[str, ...]
    """What to ablate of each layer: any of layer, attn and mlp."""
    replacements: tuple[str, ...]
    """What to add instead: zero, mean or both."""
    positions: "Positions"
    """Positions of each response that the scan has measured."""
    limit: int | None
    """How many of the scan's rollouts are used; None for all."""
    samples: int | None
    """Responses per problem to sample with each ablated model; None for none."""
    batch_size: int
    """Rollouts processed at a time."""
    question: Mapping[str, Any]
    """All that can change the numbers; the key of the cache."""
    folder: Path = field(default_factory=Path)
    """Where the result is written."""


def prepared(options: "Ablate", scan: Path, record: Mapping[str, Any]) -> Work:
    """Resolve the options. Raises InputError, also if the model isn't that of the scan."""
    from internal_policy.scans import effects, positions

    for name in ("limit", "reward", "batch_size"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be 1 or more.")
    if "shard" in record:
        raise InputError(f"{scan} is only shard {record['shard']} of a scan. Merge all shards, and ablate that scan.")
    modules = MODULES if options.modules == "all" else tuple(options.modules.split(","))
    if unknown := [name for name in modules if name not in MODULES]:
        raise InputError(f"There is no module '{unknown[0]}'. Choose from {', '.join(MODULES)}.")
    model, identity = _model(options, scan, record["asked"])
    layers = _layers(options.layers, record["n_layers"])
    replacements = effects.REPLACEMENTS if options.replacement == "both" else (options.replacement,)
    question = {
        "scan": record["digest"],
        "rollouts": effects.rollouts_of(record),
        "identity": identity,
        "model": model.model,
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation,
        "layers": "all" if len(layers) == record["n_layers"] else list(layers),
        "modules": [name for name in MODULES if name in modules],
        "replacements": list(replacements),
        "limit": options.limit if options.limit and options.limit < record["rollouts"] else None,
        "reward": options.reward,
        "batch_size": options.batch_size,
    }
    return Work(
        model.checkpoint,
        model.arguments,
        scan,
        options.scan,
        layers,
        tuple(question["modules"]),
        replacements,
        positions.of_record(record),
        options.limit,
        options.reward,
        options.batch_size,
        question,
    )


def _model(options: ModelOptions, scan: Path, asked: Mapping[str, Any]) -> tuple[ModelOptions, str]:
    """The scan's model as options, and its identity. Raises InputError if the weights are different."""
    if not asked.get("model") or not asked.get("identity"):
        raise InputError(f"{scan} doesn't say which model was scanned. Scan it again on the command line.")
    if asked.get("trust_remote_code") and not options.trust_remote_code:
        raise InputError(
            f"The model of {scan} came with Python code that was run. If you trust {asked['model']}, add "
            "--trust-remote-code."
        )
    kept = {}
    for option in dataclasses.fields(ModelOptions):
        if option.name not in RUNS_ON and getattr(options, option.name) == option.default:
            kept[option.name] = asked.get(option.name, option.default)
    kept |= {"model": options.model or asked["model"]}
    model = dataclasses.replace(options, **kept)
    try:
        identity = checkpoint.identity(model.checkpoint)
    except InputError as error:
        moved = "" if options.model else " If the model was moved, name it with --model."
        raise InputError(f"{error}{moved}") from error
    if identity != asked["identity"]:
        raise InputError(
            f"{model.model} isn't the model of {scan}: its weights are different ({identity[:20]} instead of "
            f"{asked['identity'][:20]}). Name the right one with --model, or scan this one."
        )
    return model, identity


def _layers(text: str, n_layers: int) -> tuple[int, ...]:
    """The layers of --layers. Raises InputError."""
    if text == "all":  # without torch, which takes seconds to import
        return tuple(range(n_layers))
    from internal_policy.scans.selection import parse_layers

    return tuple(parse_layers(text, n_layers))


def _rollouts(work: Work) -> "Sequence[Rollout]":
    """The rollouts to read. Raises InputError if --reward finds no answers in them."""
    from internal_policy.scans import store
    from internal_policy.tasks.rollouts import from_table

    found: list[Rollout] = []
    for path in store.parts(work.scan, "rollouts"):
        if work.limit is None or len(found) < work.limit:
            found += from_table(store.read_part(path))
    found = found[: work.limit]
    if work.samples is not None and not problems_of(found):
        raise InputError(f"--reward needs problems with answers, but {work.scan} has none. Leave it out.")
    return found


def problems_of(rollouts: "Sequence[Rollout]") -> "dict[tuple[int, ...], str]":
    """The prompts whose responses can be marked, with their answers."""
    from internal_policy.tasks.marking import is_prose

    return {one.prompt_ids: one.answer for one in rollouts if one.answer is not None and not is_prose(one.answer)}


def measure(work: Work, other: bool) -> None:
    """Ablate into the folder, in place of the `other` ablation that it may hold."""
    from internal_policy.scans import ablation_job as job
    from internal_policy.scans.ablation import Ablator, targets_of
    from internal_policy.scans.reader import reader_of
    from internal_policy.scans.scan import check_rollouts

    rollouts = _rollouts(work)
    config = configuration.load(work.checkpoint)
    reader = reader_of(loading.load_model(work.checkpoint, config, **work.arguments))
    check_rollouts(reader, rollouts)
    targets = targets_of(reader.model, work.layers, work.modules)
    if other:
        outputs.clear(work.folder, "ablation")
    product = job.begun(work.folder, reader, work.question)
    progress.note(f"Writing the ablation to {work.folder}.")
    size, smaller = work.batch_size, progress.saying_once("Out of memory: reading {} rollouts at a time.")
    batches = [rollouts[first : first + size] for first in range(0, len(rollouts), size)]
    means = {}
    if "mean" in work.replacements:
        with progress.bar("Averaging", len(rollouts)) as advance:
            means = job.averaged(work.folder, reader, batches, targets, work.positions, advance, smaller)
    ablator = Ablator.of(reader, targets, work.replacements, means, rollouts[0].ids, work.positions, product)
    steps = len(rollouts) * len({layer for layer, _ in targets})
    with progress.bar("Ablating", steps, "rollouts x layers") as advance:
        job.measured(work.folder, ablator, batches, advance, smaller)
    sampling = _rewarded(work, ablator, rollouts, smaller) if work.samples else {}
    job.closed(work.folder, {**_facts(work, ablator, rollouts), **sampling})


def _facts(work: Work, ablator: "Ablator", rollouts: "Sequence[Rollout]") -> dict[str, Any]:
    """What the record says of the model and of what was measured."""
    from internal_policy.models import quantized

    reader, asked = ablator.reader, work.question
    lengths = [len(work.positions.of(len(one.response_ids))) for one in rollouts]
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": naming.title(work.checkpoint.name),
        "scan": {"name": work.typed, "digest": asked["scan"], "rollouts": asked["rollouts"]},
        "n_layers": reader.n_layers,
        "dtype": str(reader.model.dtype).removeprefix("torch."),
        "device": str(reader.unembedding.weight.device),
        **quantized.facts(reader.model),
        "restarted": ablator.restarts,
        "rollouts": sum(length > 0 for length in lengths),
        "tokens": sum(lengths),
        "versions": versions.of(("internal-policy", "torch", "transformers")),
        "command": sys.argv,
    }


def _rewarded(work: Work, ablator: "Ablator", rollouts: "Sequence[Rollout]", smaller: Any) -> dict[str, Any]:
    """Sample responses with the model and with each ablated one. Returns how."""
    from internal_policy.scans import ablation_job as job
    from internal_policy.scans import store

    asked, problems = store.record(work.scan)["asked"], problems_of(rollouts)
    assert work.samples is not None
    longest = LONGER * max(len(rollout.response_ids) for rollout in rollouts)
    options = {name: asked.get(name, default) for name, default in (("temperature", 1.0), ("top_p", 1.0), ("seed", 0))}
    options |= {"max_new_tokens": min(asked.get("max_new_tokens", longest), longest)}
    tokenizer = tokenizers.load_tokenizer(work.checkpoint, None)
    asking = job.Asking([*problems], [*problems.values()], work.samples, options, work.batch_size)
    models = 1 + len(ablator.targets) * len(ablator.replacements)
    each = len(problems) * work.samples
    progress.note(
        f"Sampling {counted(models * each, 'response')} of at most {options['max_new_tokens']} tokens: {each} with the "
        f"model itself, and {each} with each of {counted(models - 1, 'ablated model')}."
    )
    with progress.bar("Sampling", models, "models") as advance:
        job.rewarded(work.folder, ablator, lambda: asking.rewards(ablator.reader.model, tokenizer, smaller), advance)
    return {"sampling": {"problems": len(problems), "samples": work.samples, **options}}
