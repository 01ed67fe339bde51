"""Options that several commands share, and the types of options."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from internal_policy.errors import InputError
from internal_policy.models.loading import Checkpoint

Text = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
Number = Annotated[int | None, tyro.conf.arg(constructor=int, metavar="INT", help_behavior_hint="")]
Fraction = Annotated[float | None, tyro.conf.arg(constructor=float, metavar="FLOAT", help_behavior_hint="")]
Readout = Annotated[Literal["raw", "norm"] | None, tyro.conf.arg(metavar="{raw,norm}", help_behavior_hint="")]
File = Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Texts = Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT", help_behavior_hint=""), tyro.conf.UseAppendAction]
Output = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
ScanName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SCAN")]
ScanNames = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SCAN")]
Sources = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it is loaded."""

    model: str = "demo-qwen3"
    """Folder or hub id of a model, such as Llama, Qwen or Gemma (`internal-policy families` lists what can be read), or
    the folder of a PEFT adapter; demo-qwen3 and demo-llama are the bundled ones."""
    revision: str = "main"
    """Branch, tag or commit of a model on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """What the weights are loaded as, and so how exact the hidden states are; auto: as they were saved."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, ...; auto: the accelerator if there is one."""
    device_map: Text = None
    """Spread a large model over devices, as in transformers: auto, balanced, sequential."""
    attn_implementation: Text = None
    """eager, sdpa, flash_attention_2, ...; by default what transformers picks."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""

    @property
    def checkpoint(self) -> Checkpoint:
        """Which files the model is loaded from."""
        return Checkpoint(self.model, self.revision, self.trust_remote_code)

    @property
    def arguments(self) -> dict[str, Any]:
        """How its weights are loaded: arguments of `loading.load_model`."""
        names = ("dtype", "device", "device_map", "attn_implementation")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How problems are read, and put to the model."""

    problem_column: Text = None
    """Column that holds the problem; by default problem, question or prompt."""
    answer_column: Text = None
    """Column that holds the answer; by default answer, final_answer, reward_model or solution."""
    limit: Number = None
    """Take only so many problems (or rollouts), from the first."""
    chat_template: File = None
    """Jinja file to use instead of the tokenizer's own chat template, or `none`: the problem's text as it is."""
    chat_template_kwargs: str = "{}"
    """More arguments for the chat template, as JSON, such as '{"enable_thinking": false}'. Templates that write
    the date use today's, or the one you give: '{"strftime_now": "2026-11-25"}'."""

    @property
    def template_arguments(self) -> dict[str, Any]:
        """More arguments for the chat template. Raises InputError unless they are a JSON object."""
        text = self.chat_template_kwargs
        try:
            arguments = json.loads(text)
        except ValueError as error:
            raise InputError(f"--chat-template-kwargs isn't JSON ({error}). Write '{{\"name\": value}}'.") from error
        if not isinstance(arguments, dict):
            raise InputError(f"--chat-template-kwargs is {text}, but a JSON object is needed: '{{\"name\": value}}'.")
        return arguments

    @property
    def chat(self) -> dict[str, Any] | None:
        """Arguments for the chat template, None for no template."""
        return None if self.chat_template == "none" else self.template_arguments


@dataclass(frozen=True, kw_only=True)
class ProblemOptions:
    """The problems to solve."""

    problems: File = None
    """File .jsonl, .json, .csv, .parquet or .txt (a line a problem), or a data set of the hub, NAME[:CONFIG]@SPLIT; by
    default the bundled held-out problems, the first 64 of them."""


@dataclass(frozen=True, kw_only=True)
class PromptOptions(ReadingOptions, ProblemOptions):
    """The problems to solve, and how they are put to the model."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How responses are sampled."""

    samples: int = 1
    """Responses per problem."""
    temperature: float = 1.0
    """Sampling temperature; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    max_new_tokens: int = 1024
    """Length limit of a response."""
    seed: int = 0
    """Random seed."""
    batch_size: int = 8
    """Rollouts at a time; halved when memory runs out."""


@dataclass(frozen=True, kw_only=True)
class ResponseOptions(SamplingOptions, ReadingOptions, ModelOptions):
    """What the commands that sample responses, or read given ones, have in common."""


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """Which part of a scan to look at."""

    readout: Text = None
    """raw, norm or tuned; by default the first that was measured."""
    outcome: Literal["all", "correct", "incorrect"] = "all"
    """Which responses to include; a response is correct if its reward is 1 or more."""
    positions: Text = None
    """Window of the responses' tokens, from 0, such as 0-99 or 100-; by default all."""
