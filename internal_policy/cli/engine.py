"""Check which engine samples responses or runs the model."""

from internal_policy.cli.common import EngineOptions, SamplerOptions
from internal_policy.errors import InputError


def check(options: EngineOptions | SamplerOptions) -> None:
    """Refuse an engine that can't be used yet. Raises InputError."""
    if options.engine != "local":
        raise InputError(f"--engine {options.engine} can't be used yet. Leave it out.")
