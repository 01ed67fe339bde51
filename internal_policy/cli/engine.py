"""Check which engine samples responses or runs the model."""

from typing import TYPE_CHECKING

from internal_policy.cli.common import EngineOptions, SamplerOptions
from internal_policy.engines.pool import Pool
from internal_policy.errors import InputError

if TYPE_CHECKING:
    from internal_policy.cli.scan import Scan

RAY = {"address": "local", "replicas": None, "gpus_per_replica": 1}
"""Options of --engine ray and their defaults."""


def check(options: EngineOptions | SamplerOptions) -> None:
    """Refuse an engine that can't be used yet. Raises InputError."""
    if options.engine not in ("local", "ray"):
        raise InputError(f"--engine {options.engine} can't be used yet. Leave it out.")


def pool(options: "Scan") -> Pool | None:
    """The replicas of --engine ray; None for other engines. Raises InputError for options that don't fit it."""
    if options.engine != "ray":
        if given := [name for name, default in RAY.items() if getattr(options, name) != default]:
            raise InputError(f"--{given[0].replace('_', '-')} only applies to --engine ray. Add that, or leave it out.")
        return None
    gpus = options.gpus_per_replica
    if options.remote:
        raise InputError("--engine ray runs the model on your machines, but --remote on NDIF. Leave one out.")
    if not options.worker.is_alone:
        raise InputError("--engine ray shares the work among its replicas. Leave out --shard, and use no launcher.")
    if options.device != "auto":
        raise InputError(
            f"--device is {options.device}, but Ray gives each replica its devices. Leave out --device; "
            "--gpus-per-replica 0 means the CPU."
        )
    if gpus > 1 and options.device_map is None:
        raise InputError(f"A model on {gpus} GPUs needs --device-map. Add --device-map auto, or leave it to one GPU.")
    return Pool(options.address, options.replicas, gpus)
