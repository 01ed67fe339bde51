"""What a run leaves for its readers: the resolved configuration, the versions of packages, and the model's card."""

import dataclasses
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from internal_policy.look import run_summary, runs
from internal_policy.models.naming import title
from internal_policy.scans import versions
from internal_policy.secrecy import printable, redacted
from internal_policy.train import methods, rewards
from internal_policy.train.configuration import BuPOConfig

CARD = "README.md"
"""File with the card."""
LEFT_OUT = {"output_dir", "hub_token", "generation_batch_size", "use_cpu", "disable_tqdm", "logging_dir"}
"""Fields that aren't in the file: the folder, a secret, what follows from others, and what follows from the machine."""
PACKAGES = ("internal-policy", "torch", "transformers", "trl", "accelerate", "datasets")
"""Packages whose versions are recorded."""


def fields_of(config: BuPOConfig) -> dict[str, Any]:
    """The fields that differ from their defaults and from what the method sets, without secrets, as YAML holds them."""
    found, follow = {}, methods.method(config.method).fields
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = value.value if isinstance(value, Enum) else value
        known = (default, follow.get(field.name, default))
        if field.init and field.name not in LEFT_OUT and value not in known and _plain(value):
            found[field.name] = value
    return redacted(found)


def _plain(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def as_yaml(config: BuPOConfig) -> str:
    """The configuration as a file for --config."""
    return "# Resolved by internal-policy; `train --config` takes this file.\n" + yaml.safe_dump(fields_of(config))


def card(
    metrics: pd.DataFrame, about: Mapping[str, str], config: BuPOConfig, exams: pd.DataFrame, *, is_best: bool = False
) -> str:
    """The model's card: how it was trained, on what, and its figures. `about` has "name", "model" and "problems".

    `exams` has the rows of evaluations.parquet so far. `is_best` says that the model was kept for its exam.
    """
    about = {name: printable(text) for name, text in about.items()}
    base = about["model"]
    front = {
        "library_name": "peft" if config.lora else "transformers",
        "tags": [methods.called(config), "internal-policy"],
    }
    if not Path(base).exists():
        front["base_model"] = base
    figures = run_summary.first_and_last(metrics)
    rows = [
        f"| {run_summary.called(row['measure'])} | {row['first_mean']:.3f} | {row['last_mean']:.3f} |"
        for row in figures.to_dict("records")
    ]
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(front)}---",
            f"# {about['name']}{'-best' if is_best else ''}\n",
            f"{title(base)}, trained with internal-policy.\n",
            *(f"- {sentence}" for sentence in run_summary.sentences(metrics, None, None if exams.empty else exams)),
            *([_why_kept(exams)] if is_best else []),
            f"- Problems: {about['problems']}.",
            *(f"- Reward {line}." for line in rewards.in_words(config.rewards, config.reward_weights)),
            "",
            "| mean over | first tenth of the steps | last tenth |\n|---|---|---|",
            *rows,
            *([] if exams.empty else _exams(exams)),
            f"\n## Configuration\n\n```yaml\n{yaml.safe_dump(fields_of(config))}```\n",
            f"Versions: {', '.join(map(' '.join, versions.of(PACKAGES).items()))}.\n",
        ]
    )


def _why_kept(exams: pd.DataFrame) -> str:
    """What the model of the best exam is, as an item of a list."""
    row, number = runs.best(exams), exams["step"].nunique()
    return (
        f"- This is the model after step {row['step']}, kept because its Avg@{row['samples']} ({row['avg_at_k']:.1%}) "
        f"is the highest of {number} exams. That overstates how good it is; evaluate it on other problems."
    )


def _exams(exams: pd.DataFrame) -> list[str]:
    """The exams as a Markdown table."""
    samples = exams["samples"].iloc[0]
    rows = [
        f"| {row['step']} | {row['problems']} | {row['avg_at_k']:.3f} | {_between(row)} | {row['pass_at_k']:.3f} |"
        for row in run_summary.some_exams(exams).to_dict("records")
    ]
    head = f"\n| exam after step | problems | Avg@{samples} | 95% | Pass@{samples} |\n|---|---|---|---|---|"
    return [head, *rows]


def _between(row: Mapping[Any, Any]) -> str:
    """The interval of Avg@K; nothing with a single problem."""
    low, high = row["avg_at_k_low"], row["avg_at_k_high"]
    return "" if pd.isna(low) else f"{low:.3f} to {high:.3f}"
