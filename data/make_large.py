"""Make a chat model of 150 million parameters that solves a share of the problems: `python data/make_large.py OUTPUT`.

It is trained from random weights on the exercises of the demo models, and saved as soon as it solves `--share` of the
sums of three numbers, so that reinforcement learning has something to start from and something left to do. On an H100
this takes minutes.
"""

import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Annotated, Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # before torch

import torch
import tyro
from arithmetic import Exercise, exercises, two_steps
from chat_models import FAMILIES, make_model, make_tokenizer
from make_demo import batches, corpus, encode
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from internal_policy.models.passes import evaluating
from internal_policy.tasks.generate import generate
from internal_policy.tasks.problems import Problem

SIZE: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 64,
    "initializer_range": 0.02,
}


@dataclass(frozen=True)
class Large:
    """How to make the model."""

    output: Annotated[Path, tyro.conf.Positional]
    """Folder for the model."""
    share: float = 0.25
    """Share of correct responses to stop at."""
    steps: int = 4000
    """Most steps of AdamW."""
    every: int = 50
    """Steps between two evaluations."""
    batch_size: int = 64
    """Exercises per step."""
    learning_rate: float = 3e-4
    """Learning rate, after a warm-up of 100 steps."""
    problems: int = 128
    """Problems to evaluate on, with 4 responses each."""
    layers: int = SIZE["num_hidden_layers"]
    """Number of layers."""
    seed: int = 7
    """Seed of weights and exercises."""


def solved(model: Any, tokenizer: Any, problems: list[Exercise]) -> float:
    """Share of correct responses, 4 to each problem."""
    asked = [Problem(({"role": "user", "content": one.problem},), one.answer) for one in problems]
    with evaluating(model):
        sampled = generate(model, tokenizer, asked, samples=4, max_new_tokens=64, batch_size=512)
        rewards = [rollout.reward or 0.0 for batch in sampled for rollout in batch]
    return sum(rewards) / len(rewards)


def main(options: Large) -> None:
    """Train, evaluate now and then, and save."""
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    family = FAMILIES["qwen3"]
    tokenizer = make_tokenizer(family, corpus(options.seed))
    model: Any = make_model(family, tokenizer, **{**SIZE, "num_hidden_layers": options.layers})
    model.to(device)
    random = Random(options.seed + 1)
    held_out = [two_steps(random) for _ in range(options.problems)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100))
    stream = exercises(options.seed, frozenset(one.problem for one in held_out))
    with tqdm(total=options.steps, desc=f"{model.num_parameters() / 1e6:.0f} M parameters") as progress:
        for step, batch in enumerate(islice(batches(stream, options.batch_size, Random(0)), options.steps)):
            if step and step % options.every == 0:
                share = solved(model, tokenizer, held_out)
                progress.set_postfix(solved=f"{share:.3f}")
                print(f"step {step}: solved {share:.3f}", flush=True)
                if share >= options.share:
                    break
            input_ids, targets = (part.to(device) for part in encode(tokenizer, batch))
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                logits = model(input_ids).logits
            loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            warm_up.step()
            progress.update()
    partial = options.output.with_name(f".{options.output.name}")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(options.output)


if __name__ == "__main__":
    main(tyro.cli(Large))
