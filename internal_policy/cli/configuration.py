"""Load a model's configuration, and say so if its row was proved just now."""

from typing import TYPE_CHECKING

from internal_policy.cli import progress
from internal_policy.models import loading
from internal_policy.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def load(checkpoint: Checkpoint) -> "PreTrainedConfig":
    """The configuration of a model. Raises InputError, also for a type that no row fits.

    A type without a row that one of the known rows fits is named on stderr.
    """
    config = loading.load_config(checkpoint)
    from internal_policy.models.families import row_of
    from internal_policy.models.rows import FAMILIES

    name, proved = row_of(config)
    if proved == "here":
        note = f" ({FAMILIES[name].note})" if FAMILIES[name].note else ""
        progress.note(
            f"The model type '{config.model_type}' has no row of its own. It is read as {name}{note}, which passed "
            "every proof on a tiny model of it."
        )
    return config
