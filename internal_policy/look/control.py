"""The controls of `check`: other ways to get the entropies of a scan, which a real pattern survives."""

from collections.abc import Sequence
from dataclasses import dataclass

from internal_policy.look import view
from internal_policy.look.view import View
from internal_policy.scans import store

FIRST = 16
"""How many positions of a sequence, from its first token, may be attention sinks; a Jacobian lens leaves out as many
when it is fitted."""
MASSIVE = 10
"""A hidden state is massive if its norm is more than this many times the median of its layer. Sinks and massive
activations shape entropies (arXiv 2510.06477); the number is ours."""


@dataclass(frozen=True)
class Control:
    """Another way to get the entropies of a scan, which a real pattern survives."""

    name: str
    title: str
    """Its name on screen."""
    phrase: str
    """The same inside a sentence, such as `by direction alone`."""
    rule: str
    """What it does, in one sentence."""
    reads: bool = True
    """Whether it reads the same hidden states in another way. The others ask whether the data show the pattern."""
    entropy: str = "entropy"
    """The measure in place of the entropy."""
    minus: str | None = None
    """A measure that is subtracted from it."""
    scaled: str | None = None
    """The entropy of an output with the scale of its input: a change is then this minus the input's entropy."""
    readout: str | None = None
    """Another readout than the view's."""
    without: str | None = None
    """Positions that are left out, a key of `LEAVES_OUT`."""
    option: str = "--controls"
    """The option of `scan` that measures it."""

    @property
    def measures(self) -> list[str]:
        """The measures that it needs."""
        norm = "norm" if self.without == "massive" else None
        return [name for name in (self.entropy, self.minus, self.scaled, norm) if name]


CONTROLS: Sequence[Control] = (
    Control(
        "simultaneous",
        "All layers at once",
        "with intervals for all layers at once",
        "The entropies as measured, with 95% intervals that hold for all layers at once (bootstrap over rollouts).",
        reads=False,
        option="--measures all",
    ),
    Control(
        "first",
        "Without first positions",
        "without the first positions",
        f"Leaves out the positions read at the first {FIRST} tokens of the prompt and response, which may be attention "
        "sinks.",
        reads=False,
        without="first",
        option="--measures all",
    ),
    Control(
        "massive",
        "Without massive activations",
        "without massive activations",
        f"Leaves out the positions where the norm of any layer's output is more than {MASSIVE} times that layer's "
        "median.",
        reads=False,
        without="massive",
        option="--measures all",
    ),
    Control(
        "direction",
        "Direction alone",
        "by direction alone",
        "Scales each output to the norm of its input, so that only the direction changes.",
        scaled="entropy_at_input_norm",
        option="--measures all",
    ),
    Control(
        "logit_scale",
        "Same logit scale",
        "at the input's logit scale",
        "Scales each output so that the standard deviation of its logits is that of its input's.",
        scaled="entropy_at_input_scale",
    ),
    Control(
        "shuffled",
        "Against a shuffled unembedding",
        "against a shuffled unembedding",
        "Subtracts the entropy of the same hidden state with its coordinates in another order.",
        minus="entropy_shuffled",
    ),
    Control(
        "random",
        "Against a random direction",
        "against a random direction",
        "Subtracts the entropy of a random direction with the same norm.",
        minus="entropy_random",
    ),
    Control(
        "renyi_half",
        "Rényi entropy 1/2",
        "by the Rényi entropy of order 1/2",
        "Takes the Rényi entropy of order 1/2, in which unlikely tokens count more.",
        entropy="renyi_half",
    ),
    Control(
        "renyi_2",
        "Rényi entropy 2",
        "by the Rényi entropy of order 2",
        "Takes the Rényi entropy of order 2, in which likely tokens count more.",
        entropy="renyi_2",
    ),
)
"""The controls in the order of the tables; readouts follow."""


def of_readout(name: str) -> Control:
    """The control that reads the same hidden states through the final norm or a lens."""
    how = view.how(name)
    rule = f"Reads the hidden states {how}."
    return Control(f"readout_{name}", how[0].upper() + how[1:], how, rule, readout=name, option="--readout both")


def controls_of(one: View) -> list[Control]:
    """All controls of a view: those of the table, the norm readout, and the lenses that were measured."""
    measured = store.record(one.source)["selection"]["readouts"]
    others = dict.fromkeys(name for name in ("norm", *measured) if name not in ("raw", one.readout))
    return [*CONTROLS, *map(of_readout, others)]
