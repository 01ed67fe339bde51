"""Turn off dropout, layer drop and noise, so that scoring a response twice gives the same log-probabilities."""

from torch import nn

from internal_policy.models.adapters import inside
from internal_policy.models.families import row_of

NAMES = ("jitter_noise", "input_jitter_noise")
"""Attributes of modules that add noise in training, besides those with "drop" in their name."""
FROM_CONFIG = ("falcon", "falcon_two_norms", "falcon_one_norm", "falcon_sequential", "persimmon")
"""Rows whose attention reads its rate of dropout from the configuration."""


def disable(model: nn.Module) -> None:
    """Set every rate of dropout, layer drop and noise in a model to 0. Its configuration keeps them if it can.

    TRL's `disable_dropout` does this for modules of torch's class Dropout. Most models call the function instead, at a
    rate that is an attribute of the attention or of the layer.
    """
    for module in model.modules():
        for name, rate in vars(module).items():
            if isinstance(rate, float) and ("drop" in name or name in NAMES):
                setattr(module, name, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    config = inside(model).config
    if row_of(config)[0] in FROM_CONFIG:
        config.attention_dropout = 0.0
