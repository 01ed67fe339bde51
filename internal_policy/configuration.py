"""The options of a training run, and a file of fields, as a configuration of the trainer."""

import dataclasses
import difflib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from internal_policy import loading
from internal_policy.errors import InputError
from internal_policy.options import ModelOptions, Train

if TYPE_CHECKING:
    from internal_policy.bupo import BuPOConfig
    from internal_policy.hooks import HookPoint

DEFAULTS: dict[str, Any] = {"num_generations": 8, "per_device_train_batch_size": 16, "save_total_limit": 2, "seed": 0}
SMALL: dict[str, Any] = {
    "learning_rate": 1e-4,
    "max_completion_length": 64,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 5,
    "adam_beta2": 0.99,
}
LARGE: dict[str, Any] = {"learning_rate": 1e-6, "max_completion_length": 1024}
"""Where neither an option nor --config says otherwise; SMALL for the bundled models."""
STEPS, PROMPTS, UPDATES, SAVE_EVERY, SHARE = 120, 16, 1, 20, 6
"""Steps of a run, prompts and updates of a step, steps between checkpoints; one step in SHARE is internal."""
FLAGS = {
    "samples": "num_generations",
    "micro_batch": "per_device_train_batch_size",
    "learning_rate": "learning_rate",
    "temperature": "temperature",
    "max_new_tokens": "max_completion_length",
    "seed": "seed",
    "readout": "readout",
}
"""Option -> the field of BuPOConfig that it sets."""


def read(path: str | None) -> dict[str, Any]:
    """The fields in a YAML file. Raises InputError for one that BuPOConfig does not have."""
    if path is None:
        return {}
    import yaml

    from internal_policy.bupo import BuPOConfig

    try:
        found = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}); give a YAML file.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds {type(found).__name__}; write a line NAME: VALUE for each field.")
    fields = {field.name: field for field in dataclasses.fields(BuPOConfig)}
    for key in found:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, 1)
            raise InputError(f"{path} has {key!r}, which is no field of BuPOConfig{f'; {near[0]} is' if near else ''}.")
    return {key: _typed(path, fields[key], value) for key, value in found.items()}


def _typed(path: str, field: "dataclasses.Field[Any]", value: Any) -> Any:
    """The value of a field; YAML reads 1e-6 as text, which is a number where one is expected. Raises InputError."""
    union = get_origin(field.type) in (Union, UnionType)
    kinds = {int, float, bool, str} & set(get_args(field.type) if union else [field.type])
    if value is None or not kinds or isinstance(value, dict | list) or type(value) in kinds:
        return value
    if float in kinds and not isinstance(value, bool):
        with suppress(ValueError):
            return float(value)
    expected = " or ".join(sorted(kind.__name__ for kind in kinds))
    raise InputError(f"{path} has {field.name}: {value}; expected is {expected}.")


def sizes(asked: ModelOptions) -> dict[str, Any]:
    """Defaults that fit the model."""
    return SMALL if asked.model.startswith("demo-") else LARGE


def configured(asked: Train, given: Mapping[str, Any], folder: Path, layer: int | None) -> "BuPOConfig":
    """The options as a configuration of the trainer: options win over the file's fields, those over the defaults."""
    from internal_policy.bupo import check_length

    flags = {field: value for name, field in FLAGS.items() if (value := getattr(asked, name)) is not None}
    values = {**DEFAULTS, **sizes(asked), **given, **flags, "output_dir": str(folder), "disable_tqdm": True}
    shaped = {"generation_batch_size", "steps_per_generation", "gradient_accumulation_steps"} & given.keys()
    if not shaped or asked.prompts is not None or asked.updates is not None:
        values |= _shape(asked, values)
    if asked.chat_template_kwargs != "{}":
        values["chat_template_kwargs"] = loading.chat_of(None, asked.chat_template_kwargs)
    if asked.report_to is not None:
        values["report_to"] = asked.report_to.split(",")
    values.setdefault("report_to", [])
    steps = asked.steps or (None if {"max_steps", "num_train_epochs"} & given.keys() else STEPS)
    if asked.method == "grpo":
        values["schedule"] = []
    elif asked.layer is not None or asked.internal_steps is not None or "schedule" not in values:
        values["schedule"] = [f"{_point(asked, layer)}:{asked.internal_steps or _share(steps, values)}"]
    config = _built(values)
    updates = config.updates_per_step
    if "logging_steps" not in given:
        config.logging_steps = updates
    if steps is not None:
        config.max_steps = steps * updates
    if config.max_steps > 0:
        check_length(config, config.max_steps)
    if asked.save_every is not None or "save_steps" not in given:
        config.save_steps = (asked.save_every or SAVE_EVERY) * updates
    return config


def _built(values: Mapping[str, Any]) -> "BuPOConfig":
    from internal_policy.bupo import BuPOConfig

    try:
        return BuPOConfig(**values)
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The configuration cannot be used: {' '.join(str(error).split())}") from error


def _share(steps: int | None, values: Mapping[str, Any]) -> int:
    """Internal steps where nobody says how many. Raises InputError where the length of training is not known."""
    if steps is None:
        if values.get("max_steps", -1) < 1:
            raise InputError("How long training will be is not known beforehand; give --internal-steps, or --steps.")
        steps = int(values["max_steps"]) // _built({**values, "schedule": []}).updates_per_step
    return max(1, steps // SHARE)


def _point(asked: Train, layer: int | None) -> "HookPoint":
    from internal_policy.hooks import HookPoint

    if layer is None:
        raise InputError("--internal-steps needs a layer; give --layer too.")
    return HookPoint(layer, asked.site)


def _shape(asked: Train, values: Mapping[str, Any]) -> dict[str, Any]:
    """Prompts, responses and updates of a step as TRL counts them. Raises InputError for what does not divide."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    prompts, updates = asked.prompts or PROMPTS, asked.updates or UPDATES
    responses = prompts * values["num_generations"]
    at_once = min(values["per_device_train_batch_size"], max(1, responses // updates // processes))
    if responses % (at_once * processes * updates):
        fitting = [n for n in range(1, at_once + 1) if responses % (n * processes * updates) == 0]
        would = f"--micro-batch {', '.join(map(str, fitting))}" if fitting else "--updates 1 or other --prompts"
        raise InputError(
            f"A step has {responses} responses ({prompts} prompts x {values['num_generations']}), which {updates} "
            f"updates of {processes} x {at_once} at a time do not divide; {would} would do."
        )
    passes = responses // (at_once * processes)
    return {
        "per_device_train_batch_size": at_once,
        "steps_per_generation": passes,
        "gradient_accumulation_steps": passes // updates,
        "generation_batch_size": None,
    }
