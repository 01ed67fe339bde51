"""Measure before training how far GRPO's gradient at each layer is GRPO's own."""

from pathlib import Path

from experiment.plan import Sizes
from experiment.problems import load, read
from experiment.training import write
from internal_policy.tasks.generate import generate
from internal_policy.train.align import align

ALIGNMENT = "alignment.parquet"
PROMPTS = 256
"""Problems whose responses give the gradients, from the pool."""


def measure(model: str, sizes: Sizes, work: Path) -> None:
    """Write the alignment of a model's layers, unless it is there: layer, readout, measure, mean, low and high."""
    path = work / model / ALIGNMENT
    if path.exists():
        return
    loaded, tokenizer = load(model)
    batches = generate(
        loaded,
        tokenizer,
        read(work / model, "training")[:PROMPTS],
        samples=8,
        max_new_tokens=sizes.max_new_tokens,
        seed=14,
        batch_size=256,
    )
    found = align(loaded, [rollout for batch in batches for rollout in batch], batch_size=32)
    write(path, found.table.drop(columns=["left_out"]).assign(model=model))
