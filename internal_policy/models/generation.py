"""Read how a model generates, without loading its weights."""

from typing import TYPE_CHECKING

from internal_policy.models.checkpoint import Checkpoint, base
from internal_policy.models.failures import explained

if TYPE_CHECKING:
    from transformers import GenerationConfig


def generation_config(checkpoint: Checkpoint) -> "GenerationConfig":
    """The generation configuration that a loaded model would have, of an adapter's base model if it is one.

    Raises InputError.
    """
    source = base(checkpoint)
    with explained(source.name, source.revision, "config.json and generation_config.json"):
        from transformers import GenerationConfig

        try:
            return GenerationConfig.from_pretrained(source.place, revision=source.revision)
        except OSError:  # as transformers does, it comes from config.json where generation_config.json is missing
            return GenerationConfig.from_pretrained(
                source.place, config_file_name="config.json", revision=source.revision, _from_model_config=True
            )
