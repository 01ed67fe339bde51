"""The options of `internal-policy train` as the configuration of its trainer."""

import dataclasses
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internal_policy import bundle
from internal_policy.cli import train_engine
from internal_policy.cli.train_options import Train
from internal_policy.errors import InputError
from internal_policy.models import templates

if TYPE_CHECKING:
    from internal_policy.models.hooks import HookPoint
    from internal_policy.train.configuration import BuPOConfig

COUNT = (1, 2**31 - 1, "from 1 to 2147483647")
ABOVE_0 = (math.nextafter(0, 1), sys.float_info.max, "above 0 that is finite")
LIMITS = {
    **dict.fromkeys(("steps", "prompts", "samples", "updates", "micro_batch", "internal_steps", "switch_every"), COUNT),
    **dict.fromkeys(("save_every", "max_new_tokens", "eval_every", "eval_samples", "lora_rank", "lora_alpha"), COUNT),
    **dict.fromkeys(("learning_rate", "temperature", "layer_lr_scale"), ABOVE_0),
    "stop_below": (math.nextafter(0, 1), 1, "above 0, at most 1"),
    "switch_below": (-1, 1, "from -1 to 1"),
    "layer": (0, 2**31 - 1, "from 0, which is the first layer"),
    "resample": (0, 2**31 - 1, "from 1 to 2147483647, or 0 for no more prompts"),
    "seed": (0, 2**32 - 1, "from 0 to 4294967295"),
    "samples_every": (0, 2**31 - 1, "from 1 to 2147483647, or 0 to keep no responses"),
    "scan_every": (0, 2**31 - 1, "from 1 to 2147483647, or 0 to turn scans off"),
}
"""Option -> its smallest and largest value, and the range in words."""
FLAGS = {
    "samples": "num_generations",
    "micro_batch": "per_device_train_batch_size",
    "max_new_tokens": "max_completion_length",
    **{name: name for name in ("learning_rate", "temperature", "seed", "resample", "readout", "switch_below")},
    **{name: name for name in ("switch_every", "frozen_layers", "only_layers", "layer_lr_scale")},
    **{name: name for name in ("lora_rank", "lora_alpha")},
}
"""Option -> the field of BuPOConfig that it sets."""


def check(options: Train) -> None:
    """Raise InputError for numbers out of range, and for a method that can't be used."""
    from internal_policy.train import methods

    for name, (low, high, words) in LIMITS.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:  # NaN is in no range
            raise InputError(f"--{name.replace('_', '-')} is {value}. Use a number {words}.")
    if options.schedule is not None:
        _check_schedule(options, options.schedule)
    if options.method is not None:
        methods.method(options.method)
    if options.force and options.resume:
        raise InputError("--resume continues the run in the folder, but --force removes it. Use one of them.")
    if options.force and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("--force can't be used with several processes. Run `internal-policy rm FOLDER` first.")


def _check_schedule(options: Train, text: str) -> None:
    """Raise InputError for a schedule that can't be read, and for options that would contradict it."""
    from internal_policy.train import schedule

    schedule.parse(text.split(","))
    if options.method == "grpo":
        raise InputError("--schedule trains internal policies, which is --method bupo. Remove --method grpo.")
    for name in ("layer", "internal_steps"):
        if getattr(options, name) is not None:
            raise InputError(f"--schedule says what is trained and how long. Remove --{name.replace('_', '-')}.")
    if options.site != "resid_post":
        raise InputError("--schedule says which hook points are trained. Remove --site.")


def resolved(options: Train, given: Mapping[str, Any]) -> Train:
    """The options with a method: that of the file, or bupo. Raises InputError for options that it doesn't use."""
    from internal_policy.train import methods

    name = options.method or given.get("method", "bupo")
    if options.internal_steps is not None and not methods.method(name).internal:
        raise InputError("--internal-steps only applies to --method bupo.")
    phases = methods.method(name).internal or options.schedule is not None or "schedule" in given
    if options.switch_below is not None and not phases:
        raise InputError(f"--switch-below ends an internal phase, but --method {name} has none. Add --schedule.")
    if options.switch_every is not None and options.switch_below is None and given.get("switch_below") is None:
        raise InputError("--switch-every has no effect without --switch-below. Add --switch-below.")
    if options.target != "stages":
        _check_target(options, given, name)
    return dataclasses.replace(options, method=name)


def _check_target(options: Train, given: Mapping[str, Any], method: str) -> None:
    """Raise InputError if no layer is chosen by --target."""
    from internal_policy.train import methods

    chosen = [f"--{name}" for name in ("layer", "schedule") if getattr(options, name) is not None]
    if chosen or "schedule" in given:
        by = chosen[0] if chosen else f"The schedule of {options.config}"
        raise InputError(f"{by} says what is trained, so --target has no effect. Remove one of them.")
    if not methods.method(method).internal and not options.scan_every:
        raise InputError(f"--target has no effect with --method {method} and --scan-every 0. Remove it.")


def internal(options: Train) -> bool:
    """Whether the method of resolved options trains an internal policy first by default."""
    from internal_policy.train import methods

    return methods.method(str(options.method)).internal


def configured(
    options: Train, given: Mapping[str, Any], folder: Path, layer: int | None, day: str | None = None
) -> "BuPOConfig":
    """The configuration of the trainer, from resolved options. `given` has the fields of --config; BuPO trains `layer`
    first."""
    from internal_policy.train import defaults

    for name in ("lora_rank", "lora_alpha", "lora_targets"):
        if getattr(options, name) not in (None, ()) and not (options.lora or given.get("lora")):
            raise InputError(f"--{name.replace('_', '-')} has no effect without --lora. Add --lora.")
    return defaults.configured(
        folder,
        given,
        _flags(options, given, day),
        defaults.BUNDLED if bundle.model(options.model) else defaults.PAPER,
        target=_target(options, given, layer),
        internal_steps=options.internal_steps,
        steps=options.steps,
        prompts=options.prompts,
        updates=options.updates,
        save_every=options.save_every,
        file=options.config,
    )


def _flags(options: Train, given: Mapping[str, Any], day: str | None) -> dict[str, Any]:
    """The fields of the configuration that options set."""
    flags = {field: value for name, field in FLAGS.items() if (value := getattr(options, name)) is not None}
    chat = given.get("chat_template_kwargs")
    if options.chat_template_kwargs != "{}":
        chat = options.template_arguments
    if day is not None:
        chat = {templates.DATE: day, **(chat or {})}
    if chat is not None:
        flags["chat_template_kwargs"] = chat
    if options.lora:
        flags["lora"] = True
    if options.lora_targets:
        flags["lora_targets"] = list(options.lora_targets)
    if options.reward:
        flags["rewards"] = list(options.reward)
    if options.report_to is not None:
        flags["report_to"] = options.report_to.split(",")
    flags["method"] = options.method
    if options.schedule is not None:
        flags["schedule"] = [part.strip() for part in options.schedule.split(",")]
    elif not internal(options) and options.method != given.get("method"):
        flags["schedule"] = []
    return {**flags, **train_engine.fields(options)}


def _target(options: Train, given: Mapping[str, Any], layer: int | None) -> "HookPoint | None":
    """The hook point that BuPO trains first; None for GRPO, or if the file contains the schedule."""
    from internal_policy.models.hooks import HookPoint

    scheduled = "schedule" in given and options.layer is None and options.internal_steps is None
    if not internal(options) or scheduled or options.schedule is not None:
        return None
    if layer is None:
        raise InputError("--internal-steps needs a layer. Add --layer.")
    return HookPoint(layer, options.site)


def point(options: Train) -> "HookPoint | None":
    """The hook point that --layer names."""
    from internal_policy.models.hooks import HookPoint

    return None if options.layer is None else HookPoint(options.layer, options.site)
