"""Configure a training run: options win over a file's fields, and those over defaults."""

import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import get_available_reporting_integrations

from internal_policy.errors import InputError, counted
from internal_policy.models.hooks import HookPoint
from internal_policy.train import methods
from internal_policy.train.configuration import MANY, BuPOConfig, check_length

COMMON: dict[str, Any] = {
    "num_generations": 8,
    "per_device_train_batch_size": 16,
    "save_total_limit": 2,
    "seed": 0,
    "report_to": [],
}
INSTALLABLE = ("tensorboard", "wandb", "trackio")
"""Loggers whose package has their name."""
PAPER: dict[str, Any] = {**COMMON, "learning_rate": 1e-6, "max_completion_length": 1024}
"""Fields of BuPOConfig, used if neither an option nor a file sets them."""
BUNDLED: dict[str, Any] = {
    **COMMON,
    "learning_rate": 1e-4,
    "max_completion_length": 64,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 5,
    "adam_beta2": 0.99,
}
"""The same for bundled models, which are tiny and answer in a few tokens."""
STEPS, PROMPTS, UPDATES, SAVE_EVERY, SHARE = 120, 16, 1, 20, 6
"""Steps of a run, prompts and updates of a step, steps between checkpoints; one step in SHARE is internal."""
PACKAGES = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio", "wandb": "wandb"}
"""Logger -> the module that it needs; others are imported by transformers."""
FASTER = 10
"""LoRA's default learning rate as a multiple of that of all weights."""
SHAPE = {"generation_batch_size", "steps_per_generation", "gradient_accumulation_steps"}
"""Fields that say how a generation batch is split into passes and updates."""


def configured(
    folder: Path,
    fields: Mapping[str, Any],
    flags: Mapping[str, Any],
    defaults: Mapping[str, Any] = PAPER,
    *,
    target: HookPoint | None = None,
    internal_steps: int | None = None,
    steps: int | None = None,
    prompts: int | None = None,
    updates: int | None = None,
    save_every: int | None = None,
    file: str | None = None,
) -> BuPOConfig:
    """A configuration from `flags`, then the `fields` of `file`, then `defaults`; all three are fields of BuPOConfig.

    With a `target` the schedule trains it for `internal_steps`, by default a sixth of all. `steps` are the run's,
    each with `prompts` prompts and `updates` optimizer updates; `save_every` is the steps between checkpoints. Raises
    InputError for values that can't be combined, naming the field if it comes from the file.
    """
    named = {"run_name": folder.absolute().name}  # loggers would make one up
    values = {**named, **defaults, **fields, **flags, "output_dir": str(folder), "disable_tqdm": True}
    if values.get("lora") and not {"learning_rate"} & {*fields, *flags}:
        values["learning_rate"] *= FASTER
    if not SHAPE & fields.keys() or prompts is not None or updates is not None:
        values |= _shape(prompts or PROMPTS, updates or UPDATES, values)
    values["report_to"] = _reporters(values["report_to"], None if "report_to" in flags else file)
    steps = steps or (None if {"max_steps", "num_train_epochs"} & fields.keys() else STEPS)
    if target is not None:
        values["schedule"] = [f"{target}:{internal_steps or _share(steps, values)}"]
    config = _built(values, file, fields)
    per_step = config.updates_per_step
    if "logging_steps" not in fields:
        config.logging_steps = per_step
    if steps is not None:
        config.max_steps = steps * per_step
    if config.max_steps > 0:
        check_length(config, config.max_steps)
    if save_every is not None or "save_steps" not in fields:
        config.save_steps = (save_every or SAVE_EVERY) * per_step
    return config


def _built(values: Mapping[str, Any], file: str | None = None, fields: Iterable[str] = ()) -> BuPOConfig:
    """The configuration. Raises InputError naming the field of the file that breaks it, if a single one does."""
    try:
        return _checked(values)
    except Exception as error:  # transformers, accelerate and TRL raise many kinds
        wrong = [name for name in fields if _builds({key: values[key] for key in values if key != name})]
        where = f"{file} has {wrong[0]}: {values[wrong[0]]}, which can't be used" if wrong else ""
        if isinstance(error, InputError):
            raise (InputError(f"{where}: {error}") if wrong else error) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{where or 'This configuration is invalid'}: {reason}") from error


def _builds(values: Mapping[str, Any]) -> bool:
    with suppress(Exception):
        _checked(values)
        return True
    return False


def _checked(values: Mapping[str, Any]) -> BuPOConfig:
    """The configuration, in which even a given default must not contradict the method."""
    methods.check(values.get("method", "bupo"), values)
    return BuPOConfig(**values)


def _reporters(names: str | Sequence[str] | None, file: str | None) -> list[str]:
    """Other places where the trainer logs. Raises InputError for one that isn't installed; `file` names its source."""
    names = [names] if isinstance(names, str) else list(names or [])
    known = _loggers() if names else []
    for name in names:
        if name not in ("none", "all", *known):
            where = f"{file} has report_to: {name}, which" if file else f"--report-to {name}".rstrip()
            problem = "isn't installed" if name else "is empty"
            raise InputError(f"{where} {problem}. {_remedy(name, known)}")
    for name in known if "all" in names else names:
        _import(name)
    if {"wandb", "all"} & {*names} and "wandb" in known:
        _check_wandb()
    return names


def _remedy(name: str, known: Sequence[str]) -> str:
    """What to do if a logger isn't among the installed ones, `known`."""
    install = [f"run `pip install {name}`"] if name in INSTALLABLE else []
    others = ", ".join(install + [f"choose {' or '.join(known)}"] * bool(known))
    text = f"{others}, or leave it out." if others else "leave it out."
    return text[0].upper() + text[1:]


def _loggers() -> list[str]:
    """The loggers that are installed. Raises InputError if finding out breaks, as a damaged W&B makes it."""
    try:
        return get_available_reporting_integrations()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"A logger that is installed can't be imported ({reason}). Install it again.") from error


def _import(name: str) -> None:
    """Raise InputError if the package of a logger is installed but can't be imported."""
    try:
        import_module(PACKAGES.get(name, "trl"))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name} is installed but can't be imported ({reason}). Install it again.") from error


def _check_wandb() -> None:
    """Raise InputError if Weights & Biases would ask for an API key once the model is loaded."""
    import wandb

    offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled")
    if offline or "prompt" not in inspect.signature(wandb.login).parameters:  # an older version
        return
    if not wandb.login(prompt=False, verify=False):
        raise InputError(
            "Weights & Biases has no API key. Run `wandb login`, set WANDB_MODE=offline, or leave out wandb."
        )


def _share(steps: int | None, values: Mapping[str, Any]) -> int:
    """The default number of internal steps. Raises InputError if the length of training is not known."""
    if steps is None:
        if values.get("max_steps", -1) < 1:
            raise InputError("Can't tell how long training is. Give --internal-steps or --steps.")
        steps = int(values["max_steps"]) // _built({**values, "schedule": []}).updates_per_step
    return max(1, steps // SHARE)


def _shape(prompts: int, updates: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """Prompts and updates of a step, as TRL counts them. Raises InputError for numbers that don't divide."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    responses = prompts * (values["num_generations"] or 0)
    at_once = min(values["per_device_train_batch_size"], max(1, responses // updates // processes))
    if responses % (at_once * processes * updates):
        fitting = [n for n in range(1, min(at_once, MANY) + 1) if responses % (n * processes * updates) == 0]
        remedy = f"--micro-batch {', '.join(map(str, fitting))}" if fitting else "--updates 1 or other --prompts"
        raise InputError(
            f"A step has {responses} responses ({prompts} prompts x {values['num_generations']}), which can't be split "
            f"into {counted(updates, 'update')} of {processes} x {at_once} at a time. Try {remedy}."
        )
    passes = responses // (at_once * processes)
    return {
        "per_device_train_batch_size": at_once,
        "steps_per_generation": passes,
        "gradient_accumulation_steps": passes // updates,
        "generation_batch_size": None,
    }
