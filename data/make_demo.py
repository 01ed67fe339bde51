"""Make the demo data: two tiny models that answer arithmetic, and their problems.

    python data/make_demo.py

One seed determines everything. A model is trained in float32 on exercises made on the fly, never on a held-out
problem; it is saved in bfloat16, like published models, and then measured.
"""

import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import torch
import tyro
from arithmetic import Exercise, exercises
from chat_models import FAMILIES, make_model, make_tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

N_TRAIN, N_HELDOUT, N_CORPUS = 2000, 500, 20_000
MAX_RESPONSE = 80  # tokens; the longest correct response has fewer


@dataclass(frozen=True)
class Recipe:
    """Make the demo models and their problems."""

    output: Path = Path(__file__).parent
    """Folder for models/ and problems/, which are copied there at the end."""
    steps: int = 1500
    """Steps of AdamW."""
    batch_size: int = 16
    """Exercises per step."""
    learning_rate: float = 2e-3
    """Peak learning rate, after a warm-up of a twentieth of the steps and before a cosine decay to 0."""
    samples: int = 8
    """Responses sampled to each held-out problem."""
    seed: int = 0
    """Random seed for problems, weights and samples."""


def draw(seed: int) -> tuple[list[Exercise], list[Exercise]]:
    """The held-out exercises, then those for reinforcement learning; no problem occurs twice."""
    distinct = {exercise.problem: exercise for exercise in islice(exercises(seed), 2 * (N_TRAIN + N_HELDOUT))}
    drawn = list(distinct.values())
    return drawn[:N_HELDOUT], drawn[N_HELDOUT : N_HELDOUT + N_TRAIN]


def write_problems(path: Path, problems: list[Exercise]) -> None:
    """Write one JSON object per line, with `problem` and `answer`."""
    lines = (json.dumps({"problem": exercise.problem, "answer": exercise.answer}) for exercise in problems)
    path.write_text("".join(f"{line}\n" for line in lines))


def corpus(seed: int) -> Iterator[str]:
    """Conversations without special tokens, to train a tokenizer on."""
    for exercise in islice(exercises(seed), N_CORPUS):
        yield f"system\n\nuser\n{exercise.problem}\nassistant\n\n{exercise.response}"


def prompt(tokenizer: PreTrainedTokenizerFast, problem: str) -> str:
    """A problem rendered by the chat template."""
    turn = [{"role": "user", "content": problem}]
    return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))


def batches(stream: Iterator[Exercise], size: int, random: Random) -> Iterator[list[Exercise]]:
    """An endless stream of batches, each with exercises of similar length to keep padding small."""
    while True:
        pool = sorted(islice(stream, 4 * size), key=lambda exercise: len(exercise.problem + exercise.response))
        chunks = [pool[start : start + size] for start in range(0, len(pool), size)]
        yield from random.sample(chunks, len(chunks))


def encode(tokenizer: PreTrainedTokenizerFast, batch: list[Exercise]) -> tuple[Tensor, Tensor]:
    """Token ids and their targets, both (batch, seq); the target is -100 outside the response."""
    prompts = [prompt(tokenizer, exercise.problem) for exercise in batch]
    texts = [f"{start}{exercise.response}{tokenizer.eos_token}" for start, exercise in zip(prompts, batch, strict=True)]
    rows = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    starts = torch.tensor([len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]])
    in_prompt = torch.arange(rows["input_ids"].shape[1]) < starts[:, None]
    return rows["input_ids"], rows["input_ids"].masked_fill(in_prompt | (rows["attention_mask"] == 0), -100)


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    stream: Iterator[Exercise],
    recipe: Recipe,
    progress: tqdm,
) -> float:
    """Train on the responses; return the mean loss of the last hundred steps in nats per token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, recipe.steps // 20, recipe.steps)
    losses: list[float] = []
    for batch in islice(batches(stream, recipe.batch_size, Random(recipe.seed)), recipe.steps):
        input_ids, targets = encode(tokenizer, batch)
        logits = model(input_ids).logits  # no mask is needed: padding comes last, and attention is causal
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
        progress.update()
    return sum(losses[-100:]) / len(losses[-100:])


@torch.no_grad()
def count_right(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, problems: list[Exercise], n: int, **sampling: Any
) -> list[int]:
    """The number of correct responses among `n` to each problem."""
    counts: list[int] = []
    for start in range(0, len(problems), 50):
        part = problems[start : start + 50]
        prompts = [prompt(tokenizer, exercise.problem) for exercise in part]
        rows = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        out = model.generate(**rows, max_new_tokens=MAX_RESPONSE, num_return_sequences=n, **sampling)  # pyright: ignore[reportCallIssue]
        texts = tokenizer.batch_decode(out[:, rows["input_ids"].shape[1] :], skip_special_tokens=True)
        boxed = [(re.findall(r"\\boxed\{([^{}]*)\}", text) or [""])[-1] for text in texts]
        counts += [boxed[i * n : (i + 1) * n].count(exercise.answer) for i, exercise in enumerate(part)]
    return counts


def make(folder: Path, heldout: list[Exercise], recipe: Recipe, row: int) -> None:
    """Train the model of the family in the name of `folder`, save it there, and measure the saved model."""
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    family = FAMILIES[folder.name.removeprefix("demo-")]
    tokenizer = make_tokenizer(family, corpus(recipe.seed + 2))
    model = make_model(family, tokenizer)
    stream = exercises(recipe.seed + 3, without=frozenset(exercise.problem for exercise in heldout))
    started, started_on_cpu = time.perf_counter(), time.process_time()
    with tqdm(total=recipe.steps, desc=folder.name, position=row, unit="step", mininterval=5) as progress:
        loss = train(model, tokenizer, stream, recipe, progress)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_on_cpu
    tokenizer.save_pretrained(folder)
    model.bfloat16().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)

    saved, tokenizer = family.model.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(recipe.seed)
    sampled = count_right(saved, tokenizer, heldout, recipe.samples)
    greedy = count_right(saved, tokenizer, heldout, 1, do_sample=False)
    measured = {
        "parameters": saved.num_parameters(),
        "dtype": str(saved.dtype).removeprefix("torch."),
        "tokens": len(tokenizer),
        "vocab_size": saved.config.vocab_size,
        "steps": recipe.steps,
        "batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "seed": recipe.seed,
        "final_loss": round(loss, 4),
        "training_minutes": round(seconds / 60, 1),
        "training_cpu_minutes": round(cpu_seconds / 60, 1),
        "training_threads": torch.get_num_threads(),
        "heldout_problems": len(heldout),
        f"avg_at_{recipe.samples}": round(sum(sampled) / len(sampled) / recipe.samples, 4),
        f"pass_at_{recipe.samples}": round(sum(map(bool, sampled)) / len(sampled), 4),
        "greedy": round(sum(greedy) / len(greedy), 4),
    }
    (folder / "training.json").write_text(json.dumps(measured, indent=2) + "\n")


def main(recipe: Recipe) -> None:
    """Make everything in a temporary folder, with the models in parallel, then copy it to the output folder."""
    heldout, training = draw(recipe.seed + 1)
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary)
        (made / "problems").mkdir()
        write_problems(made / "problems" / "heldout.jsonl", heldout)
        write_problems(made / "problems" / "train.jsonl", training)
        folders = [made / "models" / f"demo-{family}" for family in FAMILIES]
        with ProcessPoolExecutor(len(folders), get_context("spawn")) as workers:
            for job in [workers.submit(make, folder, heldout, recipe, row) for row, folder in enumerate(folders)]:
                job.result()
        shutil.copytree(made, recipe.output, dirs_exist_ok=True)
    for folder in folders:
        print(folder.name, (recipe.output / "models" / folder.name / "training.json").read_text())


if __name__ == "__main__":
    main(tyro.cli(Recipe))
