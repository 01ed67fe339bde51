"""Options that several commands share, and the types of options.

The help groups options by `group` of the class that declares them, and a field's docstring is its help.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from internal_policy.errors import InputError, is_count
from internal_policy.models.checkpoint import Checkpoint
from internal_policy.models.quantized import Quantize
from internal_policy.scans.shard import Worker, worker_of

Text = Annotated[str | None, tyro.conf.arg(metavar="TEXT")]
Number = Annotated[int | None, tyro.conf.arg(constructor=int, metavar="INT")]
Fraction = Annotated[float | None, tyro.conf.arg(constructor=float, metavar="FLOAT")]
Readout = Annotated[Literal["raw", "norm"] | None, tyro.conf.arg(metavar="{raw,norm}")]
DeviceMap = Annotated[
    Literal["auto", "balanced", "balanced_low_0", "sequential"] | None,
    tyro.conf.arg(metavar="{auto,balanced,balanced_low_0,sequential}"),
]
File = Annotated[str | None, tyro.conf.arg(metavar="FILE")]
Conditions = Annotated[tuple[str, ...], tyro.conf.arg(metavar="MARK>=NUMBER"), tyro.conf.UseAppendAction]
Files = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE"), tyro.conf.UseAppendAction]
Lenses = Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME=]FILE"), tyro.conf.UseAppendAction]
Modules = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")]
Rewards = Annotated[tuple[str, ...], tyro.conf.arg(metavar="REWARD[=WEIGHT]"), tyro.conf.UseAppendAction]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")]
Texts = Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT"), tyro.conf.UseAppendAction]
OutputFolder = Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")]
OutputPath = Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
OutputFile = Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
ScanName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SCAN")]
ScanNames = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SCAN")]
Sources = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE")]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it is loaded."""

    group: ClassVar = "Model"
    model: str = "demo-qwen3"
    """Model to use: a folder, a hub id, the folder of a PEFT adapter, or one of the bundled demo-qwen3 and demo-llama.
    `internal-policy families` lists the supported model families."""
    revision: str = "main"
    """Branch, tag or commit of a model on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Data type of the weights and hidden states; auto keeps the one that the weights were saved in."""
    device: str = "auto"
    """Device to run on: cpu, cuda, cuda:1, mps, ...; auto uses an accelerator if there is one."""
    device_map: DeviceMap = None
    """How to spread a large model over several GPUs, then the CPU, then the disk, as in transformers."""
    max_memory: Annotated[Text, tyro.conf.arg(metavar="SIZES")] = None
    """Memory that --device-map may fill with weights, such as 0=20GiB,cpu=60GiB for the first GPU and the CPU; by
    default 90% of what is free."""
    offload_folder: Folder = None
    """Folder for weights that --device-map converts before it offloads them to disk, which are removed at the end; by
    default the system's folder for temporary files."""
    attn_implementation: Text = None
    """Attention kernel: eager, sdpa, flash_attention_2, ...; by default what transformers picks."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    gguf_file: File = None
    """Name of a GGUF file in the model's folder, or on the hub, to load instead of safetensors; needs
    internal-policy[gguf]."""
    quantize: Annotated[Quantize | None, tyro.conf.arg(metavar="{nf4,int8}")] = None
    """Quantize the weights with bitsandbytes when they are loaded, to 4 bits (nf4) or 8 (int8); needs
    internal-policy[bitsandbytes]. Quantized checkpoints are loaded as they are."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The files of the model."""
        return Checkpoint(self.model, self.revision, self.trust_remote_code, self.gguf_file, self.quantize)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `loading.load_model`. Raises InputError for options that would have no effect."""
        for name in ("max_memory", "offload_folder"):
            if self.device_map is None and getattr(self, name) is not None:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(f"{flag} has no effect without --device-map. Add --device-map auto.")
        names = ("dtype", "device", "device_map", "offload_folder", "attn_implementation")
        return {**{name: getattr(self, name) for name in names}, "max_memory": self.sizes}

    @property
    def sizes(self) -> dict[int | str, int | str] | None:
        """Device -> size, as --max-memory gives them; None without it. Raises InputError."""
        if self.max_memory is None:
            return None
        pairs = [part.partition("=") for part in self.max_memory.split(",")]
        if not all(device.strip() and size.strip() for device, _, size in pairs):
            raise InputError(f"--max-memory is '{self.max_memory:.60}'. Write DEVICE=SIZE, such as 0=20GiB,cpu=60GiB.")
        names = [device.strip() for device, *_ in pairs]
        return {int(n) if is_count(n) else n: size.strip() for n, (*_, size) in zip(names, pairs, strict=True)}


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How problems are read and turned into prompts."""

    group: ClassVar = "Data"
    problem_column: Text = None
    """Column with the problems; by default problem, question or prompt, preferring one with chat messages."""
    answer_column: Text = None
    """Column with the answers; by default answer, final_answer, reward_model or solution."""
    system_prompt: Text = None
    """System message for every problem, in place of its own."""
    prompt_suffix: Text = None
    """Line to add to every problem, such as 'Put your final answer within \\boxed{}.'."""
    limit: Number = None
    """Number of problems to use, from the first; by default all."""
    chat_template: File = None
    """Jinja file to use instead of the tokenizer's own chat template, or none to use the text as it is."""
    chat_template_kwargs: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}"
    """More arguments for the chat template, such as '{"enable_thinking": false}'. A template that writes the date uses
    today's, unless you give one: '{"strftime_now": "2026-11-25"}'."""

    @property
    def reading(self) -> dict[str, Any]:
        """Arguments of `read_problems`. Raises InputError for a system prompt without a chat template."""
        if self.system_prompt is not None and self.chat_template == "none":
            raise InputError("--system-prompt needs a chat template. Leave out --chat-template none.")
        names = ("problem_column", "answer_column", "limit", "system_prompt", "prompt_suffix")
        return {name: getattr(self, name) for name in names}

    @property
    def template_arguments(self) -> dict[str, Any]:
        """More arguments for the chat template. Raises InputError unless they are a JSON object."""
        text = self.chat_template_kwargs
        try:
            arguments = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"--chat-template-kwargs isn't JSON ({error}). Write '{{\"name\": value}}'.") from error
        if not isinstance(arguments, dict):
            raise InputError(f"--chat-template-kwargs is {text:.60}, but an object is needed: '{{\"name\": value}}'.")
        return arguments

    @property
    def chat(self) -> dict[str, Any] | None:
        """Arguments for the chat template; None without a template."""
        return None if self.chat_template == "none" else self.template_arguments


@dataclass(frozen=True, kw_only=True)
class ProblemOptions:
    """The problems to solve."""

    group: ClassVar = "Data"
    problems: File = None
    """Problems to solve: a .jsonl, .json, .csv, .parquet or .txt file (a line a problem), or a data set of the hub as
    NAME[:CONFIG]@SPLIT. By default the first 64 of the bundled held-out problems."""


@dataclass(frozen=True, kw_only=True)
class PromptOptions(ReadingOptions, ProblemOptions):
    """The problems to solve, and how they are turned into prompts."""


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """Responses that exist already."""

    group: ClassVar = "Data"
    rollouts: Files = ()
    """Responses to use instead of sampling them: a file, or a folder of files, that `generate` or `export` wrote, or
    TRL (log_completions), verl, lm-eval (--log_samples), lighteval, Inspect, or a batch of vLLM or OpenAI; with columns
    prompt and response, prompt and completion, messages, text, or a list of responses; or a .txt file, which is one
    text. For several files repeat the option."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How responses are sampled."""

    group: ClassVar = "Sampling"
    samples: int = 1
    """Responses per problem."""
    temperature: float = 1.0
    """Sampling temperature; 0 always takes the most likely token."""
    top_p: float = 1.0
    """Sample only from the most likely tokens that together have this probability."""
    max_new_tokens: int = 1024
    """Length limit of a response, in tokens."""
    seed: int = 0
    """Random seed."""
    batch_size: int = 8
    """Rollouts processed at a time; halved when memory runs out."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What samples responses or runs the model."""

    group: ClassVar = "Engine"
    engine: Literal["local", "ray", "vllm", "server"] = "local"
    """What runs the model: local, this process; ray, copies of the model on a Ray cluster. Or what samples responses
    before this process measures them: vllm, vLLM on this machine; server, a server that takes and returns token ids."""
    tensor_parallel: int = 1
    """Number of GPUs that vLLM divides the model among. Needs internal-policy[vllm]."""
    url: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """Address of the server, such as http://localhost:8000. If it needs an API key, set the environment variable
    INTERNAL_POLICY_API_KEY. Needs internal-policy[server]."""
    served_model: Text = None
    """Name of the model on the server; by default that of --model."""


@dataclass(frozen=True, kw_only=True)
class SamplerOptions(EngineSettings):
    """What samples responses."""

    group: ClassVar = "Engine"
    engine: Literal["local", "vllm", "server"] = "local"
    """What samples the responses: local, the model in this process; vllm, vLLM on this machine; server, a server that
    takes and returns token ids."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions(EngineSettings):
    """What samples responses or runs the model, and the settings of Ray."""

    group: ClassVar = "Engine"
    address: Annotated[str, tyro.conf.arg(metavar="HOST:PORT")] = "local"
    """Ray cluster of --engine ray: local starts Ray on this machine, auto joins this machine's cluster, and HOST:PORT
    joins another one. All machines of the cluster must share the scan's folder. Needs internal-policy[ray]."""
    replicas: Number = None
    """Copies of the model that --engine ray runs, each measuring whole batches; by default as many as the GPUs allow,
    or without GPUs one per machine."""
    gpus_per_replica: int = 1
    """GPUs of each copy of the model that --engine ray runs; with 0 the copies share the CPUs."""


@dataclass(frozen=True, kw_only=True)
class PolicyOptions:
    """The policy to sample from."""

    group: ClassVar = "Policy"
    at: str = "final"
    """Hook point to sample from, such as 5.resid_post for what layer 5 alone would write; final is the model itself."""
    readout: Literal["raw", "norm"] = "raw"
    """How the hidden states at --at are unembedded: as they are (raw) or through the final norm (norm)."""
    lens: File = None
    """Lens to unembed the hidden states at --at through, as for `scan --lens`."""
    lens_of_another_model: bool = False
    """Unembed through a lens that was fitted to another model, such as the base of a fine-tuned one. Without this
    option such a lens is refused."""


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """How several processes share the work."""

    group: ClassVar = "Several processes"
    shard: Annotated[str | None, tyro.conf.arg(metavar="I/N")] = None
    """Do only every N-th part of the work, counted from part I, such as 0/4 to 3/4 in four processes with one --output.
    The process that finishes last prints the result. auto takes I and N from a SLURM array, and shares the work among
    the tasks of srun. Under `accelerate launch` and torchrun, processes share the work without this option."""

    @property
    def worker(self) -> Worker:
        """This process among those that share the work. Raises InputError."""
        return worker_of(self.shard, os.environ)


@dataclass(frozen=True, kw_only=True)
class ResponseOptions(ShardOptions, SamplingOptions, ReadingOptions, ModelOptions):
    """Options of all commands that sample responses or read them from files."""


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """Which part of a scan to look at."""

    group: ClassVar = "Part of the scan"
    readout: Text = None
    """Readout to show: raw, norm, tuned, jacobian or the name of a lens; by default the first that was measured."""
    outcome: Literal["all", "correct", "incorrect"] = "all"
    """Responses to include; a response is correct if its reward is 1 or more."""
    positions: Text = None
    """Positions in the responses to include, counted from 0, such as 0-99 or 100-; by default all."""
    where: Conditions = ()
    """Conditions that responses must meet, on their reward or the marks that came with them, such as acc>=0.5."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where the result is written. Each command sets its own default."""

    group: ClassVar = "Output"
    output: Path | None
    """File or folder to write."""
    force: bool = False
    """Replace the file if it exists."""


@dataclass(frozen=True, kw_only=True)
class JsonOptions:
    """How the result is printed."""

    group: ClassVar = "Output"
    json: bool = False
    """Print the result as JSON."""
