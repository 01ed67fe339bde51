"""What a row says about a model family: where it keeps its residual stream."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Side = Literal["input", "output"]
Place = tuple[str, Side]
"""A module inside the decoder layer and its side; "" is the layer itself, and "moe+shared" the sum of two modules.

In "mamba*ssm_out_multiplier", a configuration attribute multiplies the module's output.
"""


def terms(path: str) -> list[tuple[str, str]]:
    """The modules of a place, each with the configuration attribute that multiplies its output, or an empty string."""
    return [(module, attribute) for module, _, attribute in (term.partition("*") for term in path.split("+"))]


@dataclass(frozen=True)
class Family:
    """Where a Hugging Face causal language model keeps its modules, and how its configuration changes their states."""

    layers: str
    """The list of decoder layers."""
    final_norm: str
    """The norm between the last layer and the unembedding."""
    sites: Mapping[str, Place]
    """Site -> its place, in the order of a forward pass.

    `attn_in` and `mlp_in` are what the module reads; `attn_out` and `mlp_out` are what is added to the stream.
    """
    norms: Literal["before", "after", "both"]
    """Whether a layer normalizes a module's input, its output, or both."""
    note: str = ""
    """What else is special about this family, in words."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Site that the family lacks, in all layers or in some -> the reason."""
    kinds: Mapping[str, Mapping[str, Place]] = field(default_factory=dict)
    """Kind of layer -> its sites, for kinds that differ from `sites`."""
    kind: str = "layer_types"
    """Configuration attribute that lists the kind of each layer, or the numbers of the layers of a single kind."""
    extra: str = ""
    """Module that each layer adds to the stream after the FFN, such as a per-layer embedding; it isn't in mlp_out."""
    scale: str = ""
    """Buffer of each layer that multiplies the stream at the layer's end, after everything was added."""
    cache: str = "past_key_values"
    """Argument that continues a text from a cache; empty if transformers can only read whole texts correctly."""
    together: Literal["all", "equally long", "never"] = "all"
    """Which prompts are sampled in a left-padded batch as they would be alone."""
    multiplier: str | None = None
    """Configuration attribute that multiplies `attn_out` and `mlp_out` before they are added to the stream."""
    by_depth: bool = False
    """Whether `multiplier` is divided by the square root of the number of layers."""
    norm_first: bool = False
    """Whether the final norm also normalizes the embedding, before the first layer."""
    flat: tuple[str, ...] = ()
    """Sites where the model flattens batch and positions into one axis."""
    undropped: bool = False
    """Whether `attn_out` and `mlp_out` are read before dropout, which no module of their own applies in training."""
    overwritten: tuple[str, ...] = ()
    """Sites whose tensor the layer changes later in the pass, such as by adding to it in place; a copy is read."""
    factor: str | None = None
    """Configuration attribute that multiplies the logits."""
    divisor: str | None = None
    """Configuration attribute that divides the logits."""
    cap: str | None = None
    """Configuration attribute that caps the logits; they aren't capped if its value is None."""
    model_type: str | None = None
    """`config.model_type`, if it isn't the row's own name."""
    needs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Configuration attribute -> the values that the row supports."""
    tiny: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the tiny model that proves the row: sizes that are large by default, and what the row must handle.

    None leaves out a setting of every tiny model that this family's configuration doesn't accept.
    """
    nested: str = ""
    """Name of the language model's configuration inside the model's, such as text_config, if there is one."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the tiny model beside the nested configuration."""
