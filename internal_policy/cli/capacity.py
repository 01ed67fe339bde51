"""Whether a scan fits in the memory of its device, and which option makes it fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from internal_policy.cli.work import Work
from internal_policy.models import loading, quantized

if TYPE_CHECKING:
    import torch

    from internal_policy.models.quantized import Quantize
    from internal_policy.models.weights import Weights
    from internal_policy.scans.footprint import Memory
    from internal_policy.scans.selection import Selection

FEWEST_TOKENS = 16
"""The lowest --max-new-tokens that is suggested."""


@dataclass(frozen=True)
class Case:
    """What decides how much memory a scan needs: the options as they were given, or with one or two of them changed."""

    batch_size: int
    new_tokens: int
    """Tokens of the longest response."""
    dtype: "torch.dtype"
    quantize: "Quantize | None"
    is_spread: bool
    """Whether --device-map spreads the model over all devices."""
    selection: "Selection"


@dataclass(frozen=True)
class Device:
    """A model that isn't loaded yet, the device that it would run on, and what that has room for."""

    name: str
    """Such as cuda or cpu."""
    free: int
    """Bytes that are free on it."""
    free_together: int
    """Bytes that are free on all devices that --device-map can use."""
    weights: "Weights"
    """The weights as this device loads them."""


def device_of(work: Work, model: Any) -> Device:
    """The device that a scan would run on; `model` is the empty one of its configuration. Raises InputError."""
    import torch

    from internal_policy.models import offload, weights
    from internal_policy.scans import footprint

    if sizes := work.inputs.arguments["max_memory"]:
        offload.limits(sizes)
    device = torch.device(loading.device_named(work.inputs.arguments["device"]))
    found, free = weights.count(work.inputs.checkpoint, work.inputs.config, model, device), footprint.free_bytes(device)
    others = [torch.device("cuda", n) for n in range(torch.cuda.device_count())] if device.type == "cuda" else []
    free_together = sum(map(footprint.free_bytes, [*others, torch.device("cpu")])) if others else free
    return Device(str(device), free, free_together, found)


def case_of(work: Work) -> Case:
    """The scan as it was asked for."""
    from internal_policy.models import weights

    inputs, given = work.inputs, work.rollouts
    longest = max((len(rollout.response_ids) for rollout in given), default=inputs.sampling.max_new_tokens)
    dtype = weights.dtype_of(inputs.config, inputs.checkpoint, inputs.arguments["dtype"])
    batch = min(inputs.sampling.batch_size, work.total)
    spread = inputs.arguments["device_map"] is not None
    return Case(batch, longest, dtype, inputs.checkpoint.quantize, spread, work.selection)


def need(work: Work, device: Device, case: Case) -> "Memory":
    """The memory that a scan needs, in bytes. Raises InputError for a configuration that can't be right."""
    from internal_policy.models.failures import explained
    from internal_policy.models.families import layer_sites
    from internal_policy.scans.footprint import Batch, memory
    from internal_policy.scans.selection import plan

    prompt = max([len(rollout.prompt_ids) for rollout in work.rollouts] or work.prompts)
    size = case.dtype.itemsize
    source = work.inputs.checkpoint
    with explained(source.name, source.revision, "config.json"):
        return memory(
            work.inputs.config,
            case.selection,
            plan(case.selection, layer_sites(work.inputs.config)),
            Batch(case.batch_size, prompt, case.new_tokens, sampled=not work.rollouts),
            weights=device.weights.bytes(size, case.quantize),
            largest=device.weights.largest,
            size=size,
            free=room(device, case),
            gpu=device.name.startswith("cuda"),
        )


def room(device: Device, case: Case) -> int:
    """Bytes that are free for a scan."""
    return device.free_together if case.is_spread else device.free


def fits(work: Work, device: Device, case: Case) -> bool:
    """Whether a scan fits in the free memory."""
    return need(work, device, case).peak <= room(device, case)


def batch_size(work: Work, device: Device, case: Case) -> int:
    """How many rollouts fit at a time: --batch-size, halved until they fit, but at least one."""
    cases = [case, *(other for _, other in _halved(case, "batch_size", 1))]
    return next((one.batch_size for one in cases if fits(work, device, one)), 1)


def remedy(work: Work, device: Device, case: Case) -> str:
    """A sentence with the first option or two that make a scan fit, and the memory that it needs with them."""
    for words, other in _alternatives(work, case):
        if fits(work, device, other):
            return f"With {words} it needs {_gb(need(work, device, other).peak)}."
    return "No option makes it fit. Choose a smaller model, or a machine with more memory."


def warning(work: Work) -> str:
    """A warning that a scan may not fit, with what makes it fit, before its model is loaded; empty if it fits."""
    from internal_policy.models.weights import empty

    device, case = device_of(work, empty(work.inputs.checkpoint, work.inputs.config)), case_of(work)
    needed, free = need(work, device, case).peak, room(device, case)
    if needed <= free:
        return ""
    place = "all devices together" if case.is_spread else device.name
    return (
        f"This scan needs up to {_gb(needed)} of memory, but {place} has {_gb(free)} free. {remedy(work, device, case)}"
    )


def _alternatives(work: Work, case: Case) -> Iterator[tuple[str, Case]]:
    """Options that may make a scan fit, each with its case. Those that change the numbers least come first."""
    import torch

    yield from _halved(case, "batch_size", 1)
    if not work.rollouts:
        yield from _halved(case, "new_tokens", FEWEST_TOKENS)
    inputs, single = work.inputs, []
    if not case.is_spread:
        single.append(("--device-map auto", replace(case, is_spread=True)))
    if case.dtype.itemsize > 2:
        single.append(("--dtype bfloat16", replace(case, dtype=torch.bfloat16)))
    plain = inputs.checkpoint.gguf_file is None and quantized.settings_of(inputs.config) is None
    if plain and case.quantize is None:
        single.append(("--quantize nf4", replace(case, quantize="nf4")))
    yield from single
    first, count = case.selection.layers[0], len(case.selection.layers)
    if case.selection.layers == tuple(range(first, first + count)):
        while (count := count // 2) >= 1:
            chosen = replace(case.selection, layers=case.selection.layers[:count])
            yield f"--layers {first}-{first + count - 1}", replace(case, selection=chosen)
    small = [(f"{words} --batch-size 1", replace(other, batch_size=1)) for words, other in single]
    yield from small
    if not work.rollouts:
        for words, other in (("--batch-size 1", replace(case, batch_size=1)), *small):
            yield from ((f"{words} {more}", fewer) for more, fewer in _halved(other, "new_tokens", FEWEST_TOKENS))


def _halved(case: Case, field: str, least: int) -> Iterator[tuple[str, Case]]:
    """Lower values of an option, each half of the one before."""
    flag = {"batch_size": "--batch-size", "new_tokens": "--max-new-tokens"}[field]
    value = getattr(case, field)
    while (value := value // 2) >= least:
        yield f"{flag} {value}", replace(case, **{field: value})


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
