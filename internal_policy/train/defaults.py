"""The options of a training run, and a file of fields, as a configuration of the trainer."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from internal_policy.errors import InputError
from internal_policy.models import loading
from internal_policy.train import fields

if TYPE_CHECKING:
    from internal_policy.cli.common import ModelOptions
    from internal_policy.cli.train import Train
    from internal_policy.models.hooks import HookPoint
    from internal_policy.train.configuration import BuPOConfig

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
EVALUATED = "train doesn't evaluate. Remove it, and run `internal-policy evaluate` on the trained model"
UNHEEDED = {
    **dict.fromkeys(("do_eval", "do_predict", "eval_strategy", "eval_on_start", "load_best_model_at_end"), EVALUATED),
    "resume_from_checkpoint": "runs are continued with --resume. Remove it",
    "model_init_kwargs": "--dtype, --device-map and --attn-implementation decide how the model is loaded. Remove it",
    "auto_find_batch_size": "a step needs all responses to a prompt. Remove it, and lower --micro-batch",
}
"""Fields that have no effect on `train` -> why, and what to use instead."""
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
    """The fields in a YAML file. Raises InputError for one that is invalid, or that `train` would ignore."""
    if path is None:
        return {}
    from internal_policy.train.configuration import BuPOConfig

    types, default = get_type_hints(BuPOConfig), {field.name: field.default for field in dataclasses.fields(BuPOConfig)}
    found = fields.read(Path(path), {name: types[name] for name in default})
    for name in ("max_completion_length", "num_generations"):
        if name in found and found[name] is None:
            raise InputError(f"{path} has {name}: null. Give a number, or remove it.")
    for name, remedy in UNHEEDED.items():
        if name in found and found[name] not in (default[name], None):
            raise InputError(f"{path} has {name}: {found[name]}, but {remedy}.")
    return found


def sizes(asked: "ModelOptions") -> dict[str, Any]:
    """Defaults that fit the model."""
    return SMALL if asked.model.startswith("demo-") else LARGE


def configured(asked: "Train", given: Mapping[str, Any], folder: Path, layer: int | None) -> "BuPOConfig":
    """The options as a configuration of the trainer: options win over the file's fields, those over the defaults."""
    from internal_policy.train.configuration import check_length

    flags = {field: value for name, field in FLAGS.items() if (value := getattr(asked, name)) is not None}
    values = {**DEFAULTS, **sizes(asked), **given, **flags, "output_dir": str(folder), "disable_tqdm": True}
    shaped = {"generation_batch_size", "steps_per_generation", "gradient_accumulation_steps"} & given.keys()
    if not shaped or asked.prompts is not None or asked.updates is not None:
        values |= _shape(asked, values)
    if asked.chat_template_kwargs != "{}":
        values["chat_template_kwargs"] = loading.chat_of(None, asked.chat_template_kwargs)
    values["report_to"] = _reporters(asked, given.get("report_to"))
    steps = asked.steps or (None if {"max_steps", "num_train_epochs"} & given.keys() else STEPS)
    if asked.method == "grpo":
        values["schedule"] = []
    elif asked.layer is not None or asked.internal_steps is not None or "schedule" not in values:
        values["schedule"] = [f"{_point(asked, layer)}:{asked.internal_steps or _share(steps, values)}"]
    config = _built(values, asked.config, given)
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


def _built(values: Mapping[str, Any], file: str | None = None, given: Iterable[str] = ()) -> "BuPOConfig":
    """The configuration. Raises InputError naming the field of the file that breaks it, if a single one does."""
    from internal_policy.train.configuration import BuPOConfig

    try:
        return BuPOConfig(**values)
    except Exception as error:  # whatever transformers, accelerate and TRL raise
        wrong = [name for name in given if _builds({key: values[key] for key in values if key != name})]
        where = f"{file} has {wrong[0]}: {values[wrong[0]]}, which can't be used" if wrong else ""
        if isinstance(error, InputError):
            raise (InputError(f"{where}: {error}") if wrong else error) from error
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{where or 'The configuration cannot be used'}: {said}") from error


def _builds(values: Mapping[str, Any]) -> bool:
    from internal_policy.train.configuration import BuPOConfig

    with suppress(Exception):
        BuPOConfig(**values)
        return True
    return False


def _reporters(asked: "Train", given: str | list[str] | None) -> list[str]:
    """Where else the trainer logs, by the option or else by the file. Raises InputError for what is not installed."""
    from transformers.integrations.integration_utils import get_available_reporting_integrations

    option = asked.report_to is not None
    names = asked.report_to.split(",") if asked.report_to is not None else given or []
    names = [names] if isinstance(names, str) else names
    known = get_available_reporting_integrations() if names else []
    for name in names:
        if name not in ("none", "all", *known):
            where = f"--report-to {name}".rstrip() if option else f"{asked.config} has report_to: {name}, which"
            what = "is not installed here" if name else "is empty"
            raise InputError(f"{where} {what}. Choose from {', '.join(['none', *known])}, or leave it out.")
    return names


def _share(steps: int | None, values: Mapping[str, Any]) -> int:
    """Internal steps where nobody says how many. Raises InputError where the length of training is not known."""
    if steps is None:
        if values.get("max_steps", -1) < 1:
            raise InputError("How long training will be is not known beforehand; give --internal-steps, or --steps.")
        steps = int(values["max_steps"]) // _built({**values, "schedule": []}).updates_per_step
    return max(1, steps // SHARE)


def _point(asked: "Train", layer: int | None) -> "HookPoint":
    from internal_policy.models.hooks import HookPoint

    if layer is None:
        raise InputError("--internal-steps needs a layer; give --layer too.")
    return HookPoint(layer, asked.site)


def _shape(asked: "Train", values: Mapping[str, Any]) -> dict[str, Any]:
    """Prompts, responses and updates of a step as TRL counts them. Raises InputError for what does not divide."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    prompts, updates = asked.prompts or PROMPTS, asked.updates or UPDATES
    responses = prompts * (values["num_generations"] or 0)
    at_once = min(values["per_device_train_batch_size"], max(1, responses // updates // processes))
    if responses % (at_once * processes * updates):
        fitting = [n for n in range(1, min(at_once, 1024) + 1) if responses % (n * processes * updates) == 0]
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
