"""The methods, the sizes and the order of the runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

DATA = Path(__file__).parent.parent
MODELS = ("demo-qwen3", "demo-llama")
LARGE = "large"
"""The model of 16 layers that `make_large.py` puts into models/, for a GPU."""
LOW, MIDDLE, ALIGNED = 1, 3, 6
"""Layers from 0 whose policy is trained first. The gradient at ALIGNED points most towards GRPO's, of all layers but
the last, whose policy is almost the model's own, as `internal-policy align` measures it."""
NO_LAYER = -1
"""Layer of methods that have none."""
CHOOSING = 100
"""First seed of the runs that choose the learning rates. No reported run has it or a higher one."""
RATES = (2e-5, 4e-5, 8e-5)
"""Learning rates to choose from, for every method."""


@dataclass(frozen=True)
class Method:
    """A training method at a layer."""

    name: str
    """grpo, bupo, bupo-norm (through the final norm), rloo, frozen (up to `layer`), single (all but it) or grpo-matched
    (GRPO at the learning rate of BuPO at ALIGNED)."""
    layer: int = NO_LAYER
    """Layer from 0 whose policy is trained first, or by which a baseline is defined."""
    length: str = ""
    """How long the internal policy is trained: short or long, or empty for methods that don't train it."""

    @property
    def chosen_as(self) -> "Method":
        """The method whose runs choose its learning rate: a long phase and another readout take BuPO's at the layer."""
        if self.name == "grpo-matched":
            return Method("bupo", ALIGNED, "short")
        return Method("bupo", self.layer, "short") if self.length else self

    @property
    def key(self) -> str:
        """Its name in file names."""
        layer = "" if self.layer == NO_LAYER else f"-{self.layer}"
        return f"{self.name}{layer}{'-long' if self.length == 'long' else ''}"


BASELINES = (Method("grpo"), Method("rloo"), Method("frozen", MIDDLE), Method("single", MIDDLE))
INTERNAL = tuple(Method("bupo", layer, "short") for layer in (LOW, MIDDLE, ALIGNED))
NORM = tuple(Method("bupo-norm", layer, "short") for layer in (LOW, MIDDLE, ALIGNED))
LONG = tuple(Method("bupo", layer, "long") for layer in (LOW, MIDDLE, ALIGNED))
METHODS = {
    "demo-qwen3": (*BASELINES, *INTERNAL, *NORM, *LONG),
    "demo-llama": (*BASELINES, *INTERNAL, NORM[-1], LONG[-1], Method("grpo-matched")),
    LARGE: (Method("grpo"), *(Method("bupo", layer, "short") for layer in (2, 7, 13)), Method("bupo", 7, "long")),
}
"""Model -> its methods, in the order in which the runs of a seed are done.

GRPO at BuPO's rate was added to demo-llama after the comparison, because GRPO's own rate made its runs unstable. On
demo-qwen3 the two rates are the same.
"""
SHOWN = {"grpo": Method("grpo"), "bupo": Method("bupo", ALIGNED, "short")}
"""Folder in the result -> the method of the run that it has whole, of seed 0 on the first model."""
SEEDS = {"demo-qwen3": 8, "demo-llama": 5, LARGE: 3}
"""Model -> seeds of every method."""


@dataclass(frozen=True)
class Sizes:
    """How much is trained and evaluated. The defaults give the bundled results."""

    steps: int = 36
    """Steps of a run. A step is a generation batch."""
    choosing_steps: int = 16
    """Steps of a run that chooses a learning rate."""
    choosing_internal: int = 4
    """Internal steps of BuPO in such a run."""
    every: int = 12
    """Steps between two exams."""
    short: int = 12
    """Internal steps of BuPO."""
    long: int = 24
    """Internal steps of BuPO with a long first phase."""
    prompts: int = 8
    """Prompts per step."""
    samples: int = 8
    """Responses per prompt."""
    updates: int = 4
    """Optimizer updates per step."""
    max_new_tokens: int = 48
    """Length limit of a response."""
    pool: int = 640
    """Problems to train on; each run draws its own from them, none twice."""
    exam: int = 128
    """Problems of the exam."""
    choosing: int = 96
    """Problems of the exam that chooses the learning rates."""
    exam_samples: int = 8
    """Responses to each problem in the exam at the end."""
    way_samples: int = 4
    """Responses to each problem in the exams on the way."""
    untrained_samples: int = 32
    """Responses of the untrained model to each problem of the exam."""

    def internal_steps(self, run: "Run") -> int:
        """Steps of a run's first phase."""
        short = self.choosing_internal if run.chooses else self.short
        return {"": 0, "short": short, "long": self.long}[run.method.length]


@dataclass(frozen=True)
class Run:
    """One training run."""

    model: str
    method: Method
    learning_rate: float
    seed: int

    @property
    def chooses(self) -> bool:
        """Whether this run only chooses a learning rate."""
        return self.seed >= CHOOSING

    @property
    def is_shown(self) -> bool:
        """Whether its metrics and scans of the layers are bundled whole."""
        return self.model == MODELS[0] and self.seed == 0 and self.method in SHOWN.values()

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.model}-{self.method.key}-{self.learning_rate:g}-{self.seed}"


def choosing(model: str, rates: tuple[float, ...] = RATES, seeds: int = 2) -> list[Run]:
    """The runs that choose the learning rates of a model."""
    methods = dict.fromkeys(method.chosen_as for method in METHODS[model])
    each = product(range(seeds), methods, rates)
    return [Run(model, method, rate, CHOOSING + seed) for seed, method, rate in each]


def compared(rates: dict[str, dict[str, float]], seeds: int | None = None) -> Iterator[Run]:
    """The runs to report, seed by seed, so that those done at any time are paired; `rates` are by model and method."""
    for seed in range(max(SEEDS.values())):
        for model, chosen in rates.items():
            if seed < (SEEDS[model] if seeds is None else min(seeds, SEEDS[model])):
                for method in METHODS[model]:
                    yield Run(model, method, chosen[method.chosen_as.key], seed)
