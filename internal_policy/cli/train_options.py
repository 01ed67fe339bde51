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

Names = Literal["bupo", "grpo", "dr-grpo", "rloo", "reinforce++", "ppo"]
Method = Annotated[Names | None, tyro.conf.arg(metavar="{bupo,grpo,dr-grpo,rloo,reinforce++}")]


@dataclass(frozen=True, kw_only=True)
class TrainSampling:
    """How responses are sampled. None leaves a field to --config, or to its default."""

    group: ClassVar = "Sampling"
    prompts: Number = None
    """Prompts per step; by default 16."""
    samples: Number = None
    """Responses per prompt; by default 8."""
    resample: Number = None
    """Draw other prompts in place of those whose responses all have the same reward, up to this many times in a step.
    By default 0."""
    temperature: Fraction = None
    """Sampling temperature; by default 1."""
    max_new_tokens: Number = None
    """Length limit of a response, in tokens; by default 64 for a bundled model, 1024 for others."""
    engine: Literal["torch", "vllm", "vllm-server"] | None = None
    """What samples: the trained model itself (torch, the default), vLLM on the same GPUs (vllm), or a vLLM server on
    others, whose address is in --config (vllm_server_host and vllm_server_port; by default port 8000 here)."""
    seed: Number = None
    """Random seed of sampling and of the order of problems; by default 0."""


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How the weights are updated. None leaves a field to --config, or to its default."""

    group: ClassVar = "Optimization"
    steps: Number = None
    """Steps to train. In a step a batch of responses is sampled and trained on, with any number of updates. By default
    120."""
    updates: Number = None
    """Optimizer updates per step; by default 1."""
    micro_batch: Number = None
    """Responses that one process computes at a time; fewer need less memory. By default 16."""
    learning_rate: Fraction = None
    """Learning rate of AdamW; by default 1e-4 for a bundled model, 1e-6 (the paper's) for others."""
    frozen_layers: Text = None
    """Layers that don't change, counted from 0: 0-5, or 0-4,7. `embeddings`, `norm` (the final one) and `head` (the
    unembedding) can be named too; otherwise they are trained."""
    only_layers: Text = None
    """The only layers that change, written as in --frozen-layers: 5 trains layer 5, and freezes everything else."""
    layer_lr_scale: Fraction = None
    """Learning rate of the layers above the first one that BuPO trains, as a multiple of --learning-rate. By default
    1."""
    config: File = None
    """YAML file with any fields of TRL's GRPOConfig and of BuPOConfig. Options on the command line override it."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """What is trained in place of all weights. None leaves a field to --config, or to its default."""

    group: ClassVar = "LoRA"
    lora: bool = False
    """Train a LoRA adapter, which needs less memory, in place of all weights. Needs internal-policy[peft]."""
    lora_rank: Number = None
    """Rank of the adapter; by default 16."""
    lora_alpha: Number = None
    """The adapter is scaled by this divided by its rank; by default twice the rank."""
    lora_targets: Modules = ()
    """Modules to adapt, such as q_proj v_proj; by default all linear ones of the decoder layers."""
    merge: bool = False
    """Save the model with the adapter merged into its weights, not the adapter alone."""


@dataclass(frozen=True, kw_only=True)
class Exams:
    """Held-out problems that the model solves during training."""

    group: ClassVar = "Exams"
    eval_problems: Sources = ()
    """Held-out problems to solve during training, with answers: .jsonl, .json, .csv or .parquet files, or data sets of
    the hub as NAME[:CONFIG]@SPLIT. Avg@K and Pass@K go to evaluations.parquet. --limit doesn't apply to them."""
    eval_every: Number = None
    """Steps between two exams; by default 20. There is one before the first step and one after the last, too. With the
    bundled problems this alone holds exams on 64 others."""
    eval_samples: Number = None
    """Responses to each problem of an exam (K); by default 8."""
    keep_best: bool = False
    """Keep the model of the exam with the highest Avg@K, in the folder best of the run: one more model on disk."""
    stop_below: Fraction = None
    """Stop, with a checkpoint, when Avg@K falls below this share of its value before training: 0.8 stops after a loss
    of a fifth."""


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
    """Steps between two checkpoints, of which the last two are kept. By default 20."""
    scan_every: int = 5
    """Steps between two scans of the layers for dynamics.parquet; 0 turns them off."""
    samples_every: int = 10
    """Steps between two samples of responses for samples.parquet, which the Training page of the dashboard shows: two
    responses to each of four problems. 0 keeps none."""
    report_to: Text = None
    """More loggers, as in TRL: tensorboard, wandb, trackio, ...; by default none."""


@dataclass(frozen=True, kw_only=True)
class Train(TrainOutput, Exams, Lora, Optimization, TrainSampling, ReadingOptions, ModelOptions):
    """Train a model with BuPO (an internal policy first) or GRPO.

    BuPO trains one internal policy first, then the whole model. With no options the bundled demo-qwen3 is trained on
    bundled problems, sums of three numbers. The run has metrics.parquet (a row per step), dynamics.parquet (what
    happens to every layer), checkpoints and, at the end, the model. Ctrl-C writes a checkpoint and prints the command
    that continues. data/recipes has the paper's runs on 8 GPUs, each with its command.

    For example:
    $ internal-policy train
    $ internal-policy train --method grpo --steps 40 -o grpo
    $ internal-policy train --layer 3 --internal-steps 20 --report-to tensorboard
    $ internal-policy train --schedule 2.resid_post:10,5.mlp_out@norm:10,final
    $ internal-policy train --model ./my-qwen --lora --reward mine.py --reward box
    $ torchrun --nproc-per-node 2 -m internal_policy train --model ./my-qwen
    """

    group: ClassVar = "Method"
    problems: Sources = ()
    """Problems to train on: .jsonl, .json, .csv or .parquet files, or data sets of the hub as NAME[:CONFIG]@SPLIT.
    Several are mixed, and --limit applies to each. By default bundled sums."""
    reward: Rewards = ()
    """What is rewarded: box (the answer is in the last \\boxed{}, the default), last-number (the last number is the
    answer), format (there is a box), or a function of your own, FILE.py:FUNCTION or MODULE:FUNCTION. Repeat it to train
    on a sum, each with a weight if you like: --reward box --reward format=0.2."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "float32"
    """Type of the weights in training; with bf16 in --config, computations are in bfloat16 anyway."""
    method: Method = None
    """Training method: bupo (the default) trains an internal policy first. grpo, dr-grpo, rloo and reinforce++ train
    the whole policy from the start. ppo isn't available."""
    layer: Number = None
    """Layer that BuPO trains first, counted from 0. By default the last one whose FFN raises entropy significantly in a
    scan of a few responses (its 95% interval, widened for the number of layers, is above 0). With grpo, the layer that
    later ones are compared with in dynamics.parquet."""
    target: Literal["stages", "align"] = "stages"
    """How the default layer is chosen: by the stages of the entropy changes, as above, or as `internal-policy align`
    suggests (align), from --samples responses to each of the first 96 problems."""
    site: Literal["resid_post", "attn_out", "mlp_out"] = "resid_post"
    """Output whose policy is trained: that of the layer (resid_post), its attention (attn_out) or its FFN (mlp_out)."""
    readout: Readout = None
    """How hidden states are unembedded: as they are (raw, the paper, and the default) or through the final norm
    (norm)."""
    schedule: Annotated[Text, tyro.conf.arg(metavar="PHASES")] = None
    """Hook points to train one after another, with their steps, in place of --layer and --internal-steps:
    5.resid_post:20,11.mlp_out@norm:10,final. @raw or @norm is the readout of a phase. final:10 trains the whole policy
    for 10 steps, and final at the end for the rest, as it is without. *0.3 trains both at once, the internal policy
    with weight 0.3, and *1-0 with one that falls from 1 to 0."""
    switch_below: Fraction = None
    """End an internal phase early: after a step in which the cosine of its policy's gradient with the whole policy's,
    on the sampled responses, is below this number. By default phases have their full length."""
    switch_every: Number = None
    """Steps of an internal phase between two measurements for --switch-below; by default 5."""
    internal_steps: Number = None
    """Steps on the internal policy; by default a sixth of all steps."""
