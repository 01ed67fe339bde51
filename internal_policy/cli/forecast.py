"""What a scan would measure, and the memory, disk and time that it needs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from internal_policy.cli import capacity
from internal_policy.cli.console import document, out, paragraph
from internal_policy.cli.pace import lasting
from internal_policy.cli.work import Work
from internal_policy.models import loading, naming


def forecast(work: Work, *, is_here: bool = True) -> dict[str, Any]:
    """What a scan would measure and need, without loading the weights.

    The time is estimated by short measurements, and only if this machine (`is_here`) will do the work.
    """
    from internal_policy.models.weights import empty
    from internal_policy.scans import estimate

    config, selection = work.inputs.config, work.selection
    model = empty(work.inputs.checkpoint, config)
    text = config.get_text_config()
    policies, _ = estimate.policies_of(selection, work.plan)
    products = max(policies - len(selection.readouts) + 1, 0)  # the final policy is the same in every readout
    tokens = work.tokens or work.total * work.inputs.sampling.max_new_tokens
    end = "" if work.tokens else "_at_most"
    prompts = sum(len(rollout.prompt_ids) for rollout in work.rollouts)
    return {
        "model": naming.title(work.inputs.checkpoint.name),
        "family": config.model_type,
        "layers": list(selection.layers),
        "sites": list(selection.sites),
        "readouts": list(selection.readouts),
        "measures": list(selection.measures),
        "rollouts": work.total,
        "response_tokens_at_most": tokens,
        **({"measured_tokens_at_most": work.measured} if selection.positions else {}),
        "prompt_tokens": prompts or sum(work.prompts) * work.inputs.sampling.samples,
        "hidden_states_per_token": len(work.plan.points),
        "unembeddings_per_token": products,
        "gflop_per_token": products * 2 * text.hidden_size * text.vocab_size / 1e9,
        "disk_bytes_at_most": selection.disk_bytes(work.measured),
        **(_needed(work, model) if is_here else {}),
        **({f"seconds{end}": _seconds(work, model, tokens)} if is_here else {}),
    }


def _needed(work: Work, model: Any) -> dict[str, Any]:
    """The memory that a scan needs at its peak, and whether the device has it. `model` is without weights."""
    device, case = capacity.device_of(work, model), capacity.case_of(work)
    memory, free = capacity.need(work, device, case), capacity.room(device, case)
    return {
        "device": device.name,
        "dtype": str(case.dtype).removeprefix("torch."),
        "batch_size": capacity.batch_size(work, device, case),
        "weights_bytes": memory.weights,
        "sampling_bytes_at_most": memory.sampling,
        "hidden_states_bytes_at_most": memory.states,
        "kernel_bytes_at_most": memory.kernel,
        "tables_bytes_at_most": memory.tables,
        "memory_bytes_at_most": memory.peak,
        "free_bytes": free,
        "fits": memory.peak <= free,
        "remedy": None if memory.peak <= free else capacity.remedy(work, device, case),
    }


def _seconds(work: Work, model: Any, tokens: int) -> float:
    """Seconds to measure so many response tokens on this machine, and to sample them if none are given."""
    import torch

    from internal_policy.scans import estimate

    inputs, text = work.inputs, work.inputs.config.get_text_config()
    sampling, given = inputs.sampling, bool(work.tokens)
    batch, batches = min(sampling.batch_size, work.total), -(-work.total // sampling.batch_size)
    policies, scaled = estimate.policies_of(work.selection, work.plan)
    prompts = sum(len(rollout.prompt_ids) for rollout in work.rollouts) if given else sum(work.prompts)
    size = estimate.Size(
        tokens=tokens,
        measured=work.measured,
        prompts=prompts if given else prompts * sampling.samples,
        batches=batches,
        steps=0 if given else batches * sampling.max_new_tokens,
        layers=text.num_hidden_layers,
        weights=estimate.active_weights(model),
        unembedding=text.hidden_size * text.vocab_size,
        policies=policies,
        scaled=scaled,
    )
    speed = estimate.measured(
        inputs.config,
        work.selection,
        capacity.case_of(work).dtype,
        torch.device(loading.device_named(inputs.arguments["device"])),
        batch,
        max(1, work.measured * batch // work.total),
    )
    return estimate.seconds(size, speed)


def printed(forecast: Mapping[str, Any], folder: Path, cached: bool, *, as_json: bool = False) -> None:
    """Print what a scan would measure and need."""
    if as_json:
        document({**forecast, "scan": str(folder), "cached": cached})
        return
    table = Table(title="What would be measured", show_header=False, title_justify="left", box=None)
    for name, value in forecast.items():
        if name.startswith("seconds") or name in ("fits", "remedy"):  # in a sentence below
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
    if forecast.get("remedy"):
        paragraph(f"This may not fit in the memory that {forecast['device']} has free. {forecast['remedy']}")
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
