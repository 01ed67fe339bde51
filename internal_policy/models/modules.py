"""The modules of a loaded model that the rows name: its backbone, decoder layers and final norm."""

from torch import nn

from internal_policy.errors import InputError
from internal_policy.models.adapters import inside
from internal_policy.models.families import family_of


def backbone(model: nn.Module) -> nn.Module:
    """The module of a loaded model that runs the decoder layers and the final norm. Raises InputError."""
    model = inside(model)
    return part(model, family_of(model.config).layers.rpartition(".")[0])


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a loaded model, first to last. Raises InputError."""
    model = inside(model)
    layers = part(model, path := family_of(model.config).layers)
    if not isinstance(layers, nn.ModuleList):
        raise InputError(
            f"{path} of this {type(model).__name__} is a {type(layers).__name__}, but internal policies need a "
            "torch.nn.ModuleList of decoder layers. Load the model with AutoModelForCausalLM."
        )
    return layers


def final_norm(model: nn.Module) -> nn.Module:
    """The norm between the last layer and the unembedding of a loaded model. Raises InputError."""
    model = inside(model)
    return part(model, family_of(model.config).final_norm)


def part(module: nn.Module, path: str) -> nn.Module:
    """The module at `path` inside another. Raises InputError if there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        raise InputError(
            f"This {type(module).__name__} has no module {path}. Load the whole model with AutoModelForCausalLM."
        ) from error
