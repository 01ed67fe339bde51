"""The options of `internal-policy train`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from internal_policy.cli.common import (
    File,
    Fraction,
    JsonOptions,
    ModelOptions,
    Modules,
    Number,
    OutputFolder,
    OutputOptions,
    ReadingOptions,
    Readout,
    Rewards,
    Sources,
    Text,
)

Engine = Literal["torch", "vllm", "vllm-server"]
"""Names of what samples."""
Names = Literal["bupo", "grpo", "dr-grpo", "rloo", "reinforce++", "ppo"]
MethodName = Annotated[Names | None, tyro.conf.arg(metavar="{bupo,grpo,dr-grpo,rloo,reinforce++}")]


@dataclass(frozen=True, kw_only=True)
class TrainProblems:
    """The problems to train on."""

    group: ClassVar = "Data"
    problems: Sources = ()
    """Problems to train on: .jsonl, .json, .csv or .parquet files, or data sets of the hub as NAME[:CONFIG]@SPLIT.
    Several are mixed, and --limit applies to each. By default bundled sums."""


@dataclass(frozen=True, kw_only=True)
class TrainSampling:
    """How responses are sampled. None leaves a field to --config, or to its default."""

    group: ClassVar = "Sampling"
    prompts: Number = None
    """Prompts per step; by default 16."""
    samples: Number = None
    """Responses per prompt; by default 8."""
    resample: Number = None
    """Times in a step to draw other prompts in place of those whose responses all have the same reward; by default
    0."""
    temperature: Fraction = None
    """Sampling temperature; by default 1."""
    max_new_tokens: Number = None
    """Length limit of a response, in tokens; by default 64 for a bundled model, 1024 for others."""
    engine: Engine | None = None
    """What samples: the trained model itself (torch, the default), vLLM on the same GPUs (vllm), or a vLLM server on
    other GPUs (vllm-server), by default at port 8000 here; --config has its address (vllm_server_host,
    vllm_server_port)."""
    seed: Number = None
    """Random seed of sampling and of the order of problems; by default 0."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is rewarded, and whose policy is trained when. None leaves a field to --config, or to its default."""

    group: ClassVar = "Method"
    reward: Rewards = ()
    """What is rewarded: box (the answer is in the last \\boxed{}, the default), last-number (the last number is the
    answer), format (there is a box), or a function of your own, FILE.py:FUNCTION or MODULE:FUNCTION. Repeat it to train
    on a sum, each with a weight if you like: --reward box --reward format=0.2."""
    method: MethodName = None
    """Training method: bupo (the default) trains an internal policy first; grpo, dr-grpo, rloo and reinforce++ train
    the whole policy from the start."""
    layer: Number = None
    """Layer that BuPO trains first, counted from 0; by default the one that --target chooses. With grpo, the layer that
    later ones are compared with in dynamics.parquet."""
    target: Literal["stages", "align"] = "stages"
    """How to choose the default layer. stages takes the last layer whose FFN raises entropy significantly in a scan of
    a few responses (its 95% interval, widened for the number of layers, is above 0). align takes the one that
    `internal-policy align` suggests, from --samples responses to each of the first 96 problems."""
    site: Literal["resid_post", "attn_out", "mlp_out"] = "resid_post"
    """Output whose policy is trained: that of the layer (resid_post), its attention (attn_out) or its FFN (mlp_out)."""
    readout: Readout = None
    """How hidden states are unembedded: as they are (raw, the paper, and the default) or through the final norm
    (norm)."""
    internal_steps: Number = None
    """Steps on the internal policy; by default a sixth of all steps."""
    schedule: Annotated[str | None, tyro.conf.arg(metavar="PHASES")] = None
    """Phases to train in turn, in place of --layer and --internal-steps, each a hook point and its steps:
    5.resid_post:20,11.mlp_out@norm:10,final. @raw or @norm is its readout. *0.3 trains both policies, the internal one
    with weight 0.3, and *1-0 with a weight that falls from 1 to 0. final:10 trains the whole policy for 10 steps. After
    the last phase the whole policy is trained."""
    switch_below: Fraction = None
    """End an internal phase after a step in which the cosine of its policy's gradient with the whole policy's is below
    this. By default phases have their full length."""
    switch_every: Number = None
    """Steps of an internal phase between two measurements for --switch-below; by default 5."""


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How the weights are updated. None leaves a field to --config, or to its default."""

    group: ClassVar = "Optimization"
    steps: Number = None
    """Steps to train, each on a batch of sampled responses, with --updates updates; by default 120."""
    updates: Number = None
    """Optimizer updates per step; by default 1."""
    micro_batch: Number = None
    """Responses that one process computes at a time; by default 16. Fewer need less memory."""
    learning_rate: Fraction = None
    """Learning rate of AdamW; by default 1e-4 for a bundled model, 1e-6 (the paper's) for others."""
    frozen_layers: Text = None
    """Layers that don't change, counted from 0: 0-5, or 0-4,7. `embeddings`, `norm` (the final one) and `head` (the
    unembedding) can be named too; otherwise they are trained."""
    only_layers: Text = None
    """The only layers that change, written as in --frozen-layers: 5 trains layer 5 and freezes everything else."""
    layer_lr_scale: Fraction = None
    """Learning rate of the layers above the first one that BuPO trains, as a multiple of --learning-rate; by default
    1."""
    config: File = None
    """YAML file with any fields of TRL's GRPOConfig and of BuPOConfig, or a bundled recipe, such as qwen3-4b.
    Options on the command line override it."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """An adapter to train in place of all weights. None leaves a field to --config, or to its default."""

    group: ClassVar = "LoRA"
    lora: bool = False
    """Train a LoRA adapter in place of all weights, which takes less memory; needs internal-policy[peft]."""
    lora_rank: Number = None
    """Rank of the adapter; by default 16."""
    lora_alpha: Number = None
    """Number that the adapter is scaled by, after division by its rank; by default twice the rank."""
    lora_targets: Modules = ()
    """Modules to adapt, such as q_proj v_proj; by default all linear ones of the decoder layers."""
    merge: bool = False
    """Save the whole model, with the adapter merged into its weights, in place of the adapter alone."""


@dataclass(frozen=True, kw_only=True)
class Exams:
    """Held-out problems that the model solves during training."""

    group: ClassVar = "Exams"
    eval_problems: Sources = ()
    """Held-out problems with answers to solve during training: .jsonl, .json, .csv or .parquet files, or data sets of
    the hub as NAME[:CONFIG]@SPLIT. Avg@K and Pass@K go to evaluations.parquet. --limit doesn't apply to them."""
    eval_every: Number = None
    """Steps between two exams; by default 20. The first is before the first step, and the last after the last step.
    With the bundled problems this option alone holds exams on 64 others."""
    eval_samples: Number = None
    """Responses per problem of an exam (K); by default 8."""
    keep_best: bool = False
    """Keep the model of the exam with the highest Avg@K in the run's folder best, which takes the disk space of one
    more model."""
    stop_below: Fraction = None
    """Stop with a checkpoint when Avg@K falls below this share of its value before training; 0.8 allows the loss of a
    fifth."""


@dataclass(frozen=True, kw_only=True)
class TrainOutput(JsonOptions, OutputOptions):
    """Where the run is written, and what it logs."""

    group: ClassVar = "Output"
    output: OutputFolder = None
    """Folder for the run; by default one under ~/.cache/internal-policy (or $INTERNAL_POLICY_CACHE)."""
    force: bool = False
    """Replace the run in the folder and begin anew; only files that internal-policy wrote are removed."""
    resume: bool = False
    """Continue from the last checkpoint in the folder."""
    save_every: Number = None
    """Steps between two checkpoints; by default 20. The last two are kept."""
    scan_every: int = 5
    """Steps between two scans of the layers for dynamics.parquet; 0 turns them off."""
    samples_every: int = 10
    """Steps between two samples for samples.parquet, each with two responses to each of four problems, which the
    dashboard's Training page shows; 0 keeps none."""
    report_to: Text = None
    """More loggers, as in TRL: tensorboard, wandb, trackio, ...; by default none."""


@dataclass(frozen=True, kw_only=True)
class Train(
    TrainOutput,
    Exams,
    Lora,
    Optimization,
    Method,
    TrainSampling,
    ReadingOptions,
    TrainProblems,
    ModelOptions,
):
    """Train with BuPO (an internal policy first), GRPO or others.

    BuPO trains one internal policy first, then the whole policy. With no options the bundled demo-qwen3 is trained on
    bundled problems, sums of three numbers. The run's folder has metrics.parquet (a row per step), dynamics.parquet
    (the entropies of all layers), checkpoints and, at the end, the model. Ctrl-C writes a checkpoint and prints the
    command that continues. Recipes of the paper's runs on 8 GPUs come with the package.

    For example:
    $ internal-policy train
    $ internal-policy train --method grpo --steps 40 -o grpo
    $ internal-policy train --layer 3 --internal-steps 20 --report-to tensorboard
    $ internal-policy train --schedule 2.resid_post:10,5.mlp_out@norm:10,final
    $ internal-policy train --model ./my-qwen --lora --reward mine.py --reward box
    $ torchrun --nproc-per-node 2 -m internal_policy train --model ./my-qwen
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "float32"
    """Type of the weights in training; with bf16 in --config, computations are in bfloat16 anyway."""
