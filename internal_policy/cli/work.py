"""What a scan is about to measure, and the memory, disk and time that it needs."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from internal_policy.cli.console import document, out
from internal_policy.cli.pace import lasting
from internal_policy.cli.prepared import Prepared
from internal_policy.errors import InputError
from internal_policy.models import loading

if TYPE_CHECKING:
    from internal_policy.lenses.tuned import Translators
    from internal_policy.scans.selection import Plan, Selection
    from internal_policy.tasks.problems import Problem
    from internal_policy.tasks.rollouts import Rollout


@dataclass(frozen=True)
class Work:
    """What a scan measures, checked."""

    inputs: Prepared
    """The model, and where responses come from."""
    selection: "Selection"
    """What is measured in the model."""
    plan: "Plan"
    """The hidden states that this needs."""
    translators: "Translators | None"
    """The translators of --lens."""
    rollouts: "list[Rollout]"
    """The given responses; none if they are sampled."""
    problems: "list[Problem]"
    """Problems to sample responses to."""
    prompts: list[int]
    """How many tokens the prompt of each problem has."""

    @property
    def total(self) -> int:
        """How many responses are measured."""
        return len(self.rollouts) or len(self.problems) * self.inputs.sampling.samples

    @property
    def tokens(self) -> int:
        """How many response tokens are given; 0 if responses are sampled."""
        return sum(len(rollout.response_ids) for rollout in self.rollouts)


def forecast(work: Work, *, is_here: bool = True) -> dict[str, Any]:
    """What a scan would measure and need, without loading the weights.

    The time is estimated by short measurements, and only if this machine (`is_here`) will do the work.
    """
    from internal_policy.scans import estimate, store
    from internal_policy.scans.blocks import STATE_BYTES

    config, selection, samples = work.inputs.config, work.selection, work.inputs.sampling.samples
    text = config.get_text_config()
    policies, _ = estimate.policies_of(selection, work.plan)
    products = max(policies - len(selection.readouts) + 1, 0)  # the final policy is the same in every readout
    tokens = work.tokens or work.total * work.inputs.sampling.max_new_tokens
    return {
        "model": work.inputs.checkpoint.name,
        "family": config.model_type,
        "layers": list(selection.layers),
        "sites": list(selection.sites),
        "readouts": list(selection.readouts),
        "measures": list(selection.measures),
        "rollouts": work.total,
        "response_tokens_at_most": tokens,
        "prompt_tokens": sum(len(rollout.prompt_ids) for rollout in work.rollouts) or sum(work.prompts) * samples,
        "hidden_states_per_token": len(work.plan.points),
        "unembeddings_per_token": products,
        "gflop_per_token": products * 2 * text.hidden_size * text.vocab_size / 1e9,
        "weights_bytes": loading.weight_bytes(config, work.inputs.arguments["dtype"]),
        "hidden_states_bytes_at_most": STATE_BYTES,
        "disk_bytes_at_most": store.disk_bytes(selection, tokens),
        **({f"seconds{'' if work.tokens else '_at_most'}": _seconds(work, tokens)} if is_here else {}),
    }


def _seconds(work: Work, tokens: int) -> float:
    """How long measuring so many response tokens takes on this machine, and sampling them if none are given."""
    import torch

    from internal_policy.scans import estimate

    inputs, text = work.inputs, work.inputs.config.get_text_config()
    sampling, given = inputs.sampling, bool(work.tokens)
    batch, batches = min(sampling.batch_size, work.total), -(-work.total // sampling.batch_size)
    policies, scaled = estimate.policies_of(work.selection, work.plan)
    prompts = sum(len(rollout.prompt_ids) for rollout in work.rollouts) if given else sum(work.prompts)
    size = estimate.Size(
        tokens=tokens,
        prompts=prompts if given else prompts * sampling.samples,
        batches=batches,
        steps=0 if given else batches * sampling.max_new_tokens,
        layers=text.num_hidden_layers,
        weights=estimate.active_weights(inputs.config),
        unembedding=text.hidden_size * text.vocab_size,
        policies=policies,
        scaled=scaled,
    )
    speed = estimate.measured(
        inputs.config,
        work.selection,
        loading.dtype_named(inputs.config, inputs.arguments["dtype"]),
        torch.device(loading.device_named(inputs.arguments["device"])),
        batch,
        max(1, tokens * batch // work.total),
    )
    return estimate.seconds(size, speed)


def check_disk(folder: Path, selection: "Selection", tokens: int) -> None:
    """Raise InputError if a scan of so many response tokens may not fit on the disk."""
    from internal_policy.scans import store

    need, disk = store.disk_bytes(selection, tokens), folder.absolute()
    place = next(parent for parent in [disk, *disk.parents] if parent.exists())
    free = shutil.disk_usage(place).free
    if free < need:
        raise InputError(
            f"{place} has {free / 1e9:.1f} GB free, but up to {need / 1e9:.1f} GB may be needed. Choose an --output on "
            "another disk, or measure less (--layers, --sites, --top-k 0)."
        )


def printed(forecast: Mapping[str, Any], folder: Path, cached: bool, *, as_json: bool = False) -> None:
    """Print what a scan would measure and need."""
    if as_json:
        document({**forecast, "scan": str(folder), "cached": cached})
        return
    table = Table(title="What would be measured", show_header=False, title_justify="left", box=None)
    for name, value in forecast.items():
        if name.startswith("seconds"):  # in a sentence below
            continue
        words = name.replace("_bytes", "").replace("_", " ")
        if name.endswith("bytes") or "_bytes_" in name:
            value = f"{value / 1e6:,.1f} MB"
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        elif isinstance(value, int | float):
            value = f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"
        table.add_row(words, escape(str(value)))
    out.print(table)
    if "seconds" in forecast:
        out.print(
            f"Estimated time: about {lasting(max(forecast['seconds'], 1.0))} on this machine, after loading the model."
        )
    elif "seconds_at_most" in forecast:
        out.print(
            f"Estimated time: at most {lasting(max(forecast['seconds_at_most'], 1.0))} on this machine, after loading "
            "the model; less if responses end before the length limit."
        )
    out.print(
        f"Scan: {escape(str(folder))} ({'measured already' if cached else 'not measured yet'}). Nothing was written."
    )
