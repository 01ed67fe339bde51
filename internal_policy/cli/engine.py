"""Check the options of the engine, which samples responses or runs the model."""

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from internal_policy.cli.prepared import check_effect
from internal_policy.engines.pool import Pool
from internal_policy.errors import InputError
from internal_policy.models.folder import is_adapter

if TYPE_CHECKING:
    from internal_policy.cli.scan import Scan

RAY = {"address": "local", "replicas": None, "gpus_per_replica": 1}
"""Options of --engine ray and their defaults."""
ENGINE_OF = {"tensor_parallel": "vllm", "url": "server", "served_model": "server"}
"""Option -> the engine that it belongs to."""
SAMPLERS = ("vllm", "server")
"""Engines that only sample responses."""
MODEL_OPTIONS = {"device", "device_map", "max_memory", "offload_folder", "attn_implementation"}
"""Options about a model in this process, which have no effect if an engine samples and nothing is measured."""


def samples(options: Any) -> bool:
    """Whether an engine samples the responses."""
    return options.engine in SAMPLERS


def check(options: Any) -> None:
    """Refuse engine options that can't be used, or would have no effect. Raises InputError."""
    chosen = f"--engine {options.engine}"
    check_effect(options, {name for name, engine in ENGINE_OF.items() if engine != options.engine}, chosen)
    if options.engine == "server":
        check_address(options.url)
    if options.tensor_parallel < 1:
        raise InputError(f"--tensor-parallel is {options.tensor_parallel}; it must be 1 or more.")
    if samples(options) and (given := [name for name in ("rollouts", "text") if getattr(options, name, None)]):
        raise InputError(f"{chosen} samples responses, but --{given[0]} gives what to read. Leave one out.")
    if samples(options) and not options.worker.is_alone:
        raise InputError(
            f"{chosen} samples in a single process. First sample with `internal-policy generate {chosen}`, then share "
            "the scan of its file, given with --rollouts."
        )
    if options.engine == "vllm":
        for name in ("quantize", "gguf_file"):
            if getattr(options, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} doesn't apply to vLLM. Leave it out, or --engine.")
        if is_adapter(options.checkpoint.folder):
            raise InputError(
                f"--engine vllm can't load adapters, but {options.model} is one. Merge it into its base model."
            )


def check_policy(options: Any) -> None:
    """Refuse an engine that can't sample from the policy, or options of a model in this process. Raises InputError."""
    check(options)
    if not samples(options):
        return
    for name in ("at", "lens"):
        if getattr(options, name) not in ("final", None):
            raise InputError(
                f"--engine {options.engine} samples from the model itself, so --{name} can't be used. Leave one out."
            )
    unread = MODEL_OPTIONS | ({"dtype", "quantize", "gguf_file"} if options.engine == "server" else set())
    check_effect(options, unread, f"--engine {options.engine}")


def check_address(url: str | None) -> None:
    """Refuse an address of a server that can't be one, or that would store a secret. Raises InputError."""
    if url is None:
        raise InputError("--engine server needs the server's address. Add --url, such as http://localhost:8000.")
    if not _is_address(url):
        raise InputError(f"--url is '{url:.80}'. Use an address such as http://localhost:8000.")
    if "@" in url or "?" in url:
        raise InputError(
            "--url contains a name, a password or a query, which would be stored with the results. Leave it out, and "
            "set the environment variable INTERNAL_POLICY_API_KEY to the key."
        )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port isn't a number, or is too large
        return False


def pool(options: "Scan") -> Pool | None:
    """The replicas of --engine ray; None for other engines. Raises InputError for options that don't fit it."""
    if options.engine != "ray":
        if given := [name for name, default in RAY.items() if getattr(options, name) != default]:
            raise InputError(f"--{given[0].replace('_', '-')} only applies to --engine ray. Add that, or leave it out.")
        return None
    gpus = options.gpus_per_replica
    if options.remote:
        raise InputError("--engine ray runs the model on your machines, and --remote on NDIF. Leave one out.")
    if not options.worker.is_alone:
        raise InputError("--engine ray shares the work among its replicas. Leave out --shard, and use no launcher.")
    if options.device != "auto":
        raise InputError(
            f"--device is {options.device}, but Ray gives each replica its devices. Leave out --device; "
            "--gpus-per-replica 0 means the CPU."
        )
    if gpus > 1 and options.device_map is None:
        raise InputError(
            f"A model on {gpus} GPUs needs --device-map. Add --device-map auto, or use one GPU per replica."
        )
    return Pool(options.address, options.replicas, gpus)
