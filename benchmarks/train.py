"""Compare the time of a training step, in phase one and after, with TRL's GRPO trainer: python benchmarks/train.py.

A Qwen 3 model with random weights is trained on one batch repeatedly. The candidates take turns on one thread, each
from the same weights; the numbers are median CPU times without the first step of each. A step is a generation batch:
responses are scored once, then trained on in two updates.
"""

import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import tyro
from datasets import Dataset, disable_progress_bars
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    logging,
)
from trl.trainer.grpo_trainer import GRPOTrainer

from internal_policy.bundle import DATA
from internal_policy.models.head import unembedding
from internal_policy.models.modules import decoder_layers
from internal_policy.train.bupo import BuPOTrainer
from internal_policy.train.configuration import BuPOConfig

UPDATES = 2
PARTS = ("generation", "scoring", "entropy", "forward", "backward", "optimizer")
"""Of a step. Scoring is for the old log-probabilities, entropy the whole policy's, which phase one logs; the optimizer
clips gradients too."""
LAYER_PRODUCTS, HEAD_PRODUCTS = 4, 5
"""Products with each weight, for a token: scoring, forward, and backward two. The backward of TRL's fused head computes
the logits again."""


Runs = list[list[dict[str, float]]]
"""Runs of one candidate, each with its steps and their CPU seconds by part."""


@dataclass(frozen=True)
class Benchmark:
    """Compare the time of a training step, in phase one and after, with TRL's GRPO trainer."""

    layers: int = 16
    """Layers of the model; phase one trains the policy after a quarter of them."""
    d_model: int = 768
    """Width of the hidden states; heads are 64 wide, the FFN 8/3 of it."""
    d_vocab: int = 32768
    """Rows of the unembedding, which is tied to the embedding."""
    prompts: int = 2
    """Prompts per step."""
    responses: int = 4
    """Responses to each prompt."""
    tokens: int = 24
    """Tokens in a response; a prompt has 6 to 8."""
    steps: int = 2
    """Steps to measure in each training."""
    runs: int = 3
    """Number of trainings of each candidate."""


class Clock:
    """Records the CPU seconds of each part of each step."""

    def __init__(self) -> None:
        """Start before the first step."""
        self.steps: list[dict[str, float]] = []
        self.now: dict[str, float] = defaultdict(float)
        self.last = self.mark = time.process_time()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside towards this part."""
        start = time.process_time()
        try:
            yield
        finally:
            self.mark = time.process_time()
            self.now[name] += self.mark - start

    def end(self) -> None:
        """End a step."""
        now = time.process_time()
        self.steps.append({**self.now, "all": now - self.last})
        self.now, self.last = defaultdict(float), now


class Ticking(TrainerCallback):
    """Tells the clock when a step ends."""

    def __init__(self, clock: Clock) -> None:
        """Start before the first update."""
        self.clock, self.updates = clock, 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Discard the time before training."""
        self.clock.last = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Count the time since the backward pass as the optimizer's, with clipping."""
        self.clock.now["optimizer"] += time.process_time() - self.clock.mark
        self.updates += 1
        if self.updates % UPDATES == 0:
            self.clock.end()


class Timed(GRPOTrainer):
    """TRL's trainer, timed; `given` are the responses to every prompt, or None to sample them."""

    clock: Clock
    given: list[list[int]] | None

    def _generate_single_turn(self, prompt_ids: Any, *more: Any, **named: Any) -> Any:
        if self.given is not None:
            return self.given[: len(prompt_ids)], None
        with self.clock.part("generation"):
            return super()._generate_single_turn(prompt_ids, *more, **named)

    def _get_per_token_logps_and_entropies(self, *args: Any, **named: Any) -> Any:
        scoring = "entropy" if getattr(self, "whole", False) else "scoring"
        with self.clock.part("forward" if torch.is_grad_enabled() else scoring):
            return super()._get_per_token_logps_and_entropies(*args, **named)


class Ours(Timed, BuPOTrainer):
    """Our trainer, timed in the same places."""


def model_of(options: Benchmark) -> PreTrainedModel:
    """A Qwen 3 model with random weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen3",
        hidden_size=options.d_model,
        intermediate_size=options.d_model * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=options.d_model // 64,
        num_key_value_heads=max(1, options.d_model // 192),
        head_dim=64,
        vocab_size=options.d_vocab,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def train(options: Benchmark, kind: type[Timed], model: PreTrainedModel, layer: int | None, given: bool) -> Clock:
    """Train a copy of the model for a warm-up step and the measured ones."""
    tokenizer = AutoTokenizer.from_pretrained(DATA / "models" / "demo-qwen3")
    size, steps = options.prompts * options.responses, options.steps + 1
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(10, len(tokenizer), (size, options.tokens), generator=draw).tolist()
    with tempfile.TemporaryDirectory() as folder:
        config = BuPOConfig(
            output_dir=folder,
            schedule=[] if layer is None else [f"{layer}.resid_post:{steps}"],
            per_device_train_batch_size=size // UPDATES,
            steps_per_generation=UPDATES,
            num_generations=options.responses,
            max_steps=steps * UPDATES,
            max_completion_length=options.tokens,
            generation_kwargs={"min_new_tokens": options.tokens},
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        rows = Dataset.from_list([{"prompt": f"What is {n} + {n + 1}?"} for n in range(2, 2 + options.prompts)])
        trainer = kind(deepcopy(model), every_other, config, train_dataset=rows, processing_class=tokenizer)
        trainer.clock, trainer.given = Clock(), ids if given else None
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Ticking(trainer.clock))
        trainer.accelerator.backward = timed(trainer.clock, trainer.accelerator.backward)
        trainer.train()
    return trainer.clock


def every_other(completions: list[Any], **_: Any) -> list[float | None]:
    """A reward that varies, whatever the response is."""
    return [float(number % 2) for number in range(len(completions))]


def timed(clock: Clock, backward: Callable[..., None]) -> Callable[..., None]:
    """The backward pass, timed."""

    def run(*args: Any, **named: Any) -> None:
        with clock.part("backward"):
            backward(*args, **named)

    return run


def promised(model: PreTrainedModel, layers: int) -> float:
    """The products in a step on the policy after `layers` layers, as a share of the whole policy's.

    Attention's own products are left out: at these lengths they are less than one in a hundred.
    """
    layer = sum(part.weight.numel() for part in decoder_layers(model)[0].modules() if isinstance(part, nn.Linear))
    head = unembedding(model).weight.numel() * HEAD_PRODUCTS

    def products(count: int) -> int:
        return count * layer * LAYER_PRODUCTS + head

    return products(layers) / products(len(decoder_layers(model)))


def main(options: Benchmark) -> None:
    """Print a line for each candidate, then a summary."""
    quiet()
    model, quarter = model_of(options), max(1, options.layers // 4)
    inner = f"phase one, {quarter - 1}.resid_post"
    candidates: dict[tuple[str, bool], tuple[type[Timed], int | None]] = {
        ("TRL's GRPOTrainer", True): (Timed, None),
        ("ours, whole policy", True): (Ours, None),
        (inner, True): (Ours, quarter - 1),
        ("ours, whole policy", False): (Ours, None),
        (inner, False): (Ours, quarter - 1),
    }  # name, whether the responses are given: trainer, layer
    runs: dict[tuple[str, bool], Runs] = {key: [] for key in candidates}
    for number in range(options.runs):
        for name, given in list(candidates)[:: 1 if number % 2 == 0 else -1]:  # no candidate always comes first
            kind, layer = candidates[name, given]
            runs[name, given].append(train(options, kind, model, layer, given).steps[1:])
    print(options)
    print(f"{model.num_parameters() / 1e6:.0f} M parameters; CPU seconds of a step, medians of {options.runs} runs")
    print(f"{'':34}{'step':>6}" + "".join(f"{part:>11}" for part in (*PARTS, "rest")))
    for (name, given), found in runs.items():
        print(line(f"{name}{'' if given else ', sampled'}", [step for run in found for step in run]))
    theirs, ours, phase_one = list(runs.values())[:3]
    conclude(options, model, quarter, theirs, ours, phase_one)


def line(name: str, steps: list[dict[str, float]]) -> str:
    """The medians of all parts."""
    rest = [step["all"] - sum(step.get(part, 0.0) for part in PARTS) for step in steps]
    parts = [median(step.get(part, 0.0) for step in steps) for part in PARTS]
    return f"{name:34}{median(step['all'] for step in steps):6.2f}" + "".join(
        f"{seconds:11.2f}" for seconds in (*parts, median(rest))
    )


def conclude(
    options: Benchmark, model: PreTrainedModel, layers: int, theirs: Runs, ours: Runs, phase_one: Runs
) -> None:
    """Print what phase one saves and what our trainer costs: ratios of each run's medians, with given responses."""

    def seconds(run: list[dict[str, float]], without: str = "") -> float:
        return median(step["all"] - step.get(without, 0.0) for step in run)

    alone = [seconds(a, "entropy") / seconds(b) for a, b in zip(phase_one, ours, strict=True)]
    logged = [seconds(a) / seconds(b) for a, b in zip(phase_one, ours, strict=True)]
    over = [seconds(a) / seconds(b) - 1 for a, b in zip(ours, theirs, strict=True)]
    print(
        f"Phase one after {layers} of {options.layers} layers takes {spread(alone)} of a step of the whole policy; "
        f"the products left promise {promised(model, layers):.1%}.\n"
        f"With the whole policy's entropy, at one response of {options.responses}, it is {spread(logged)}.\n"
        f"Ours on the whole policy costs {spread(over, '+')} over TRL's own trainer."
    )


def spread(values: list[float], sign: str = "") -> str:
    """Median, and the range."""
    return f"{median(values):{sign}.1%} ({min(values):{sign}.1%} to {max(values):{sign}.1%})"


def quiet() -> None:
    """Use one thread, and print nothing but the numbers."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    disable_progress_bars()
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
