"""What can be asked on the command line: a dataclass is a command, its fields are the options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Text = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
Number = Annotated[int | None, tyro.conf.arg(constructor=int, metavar="INT", help_behavior_hint="")]
Fraction = Annotated[float | None, tyro.conf.arg(constructor=float, metavar="FLOAT", help_behavior_hint="")]
Readout = Annotated[Literal["raw", "norm"] | None, tyro.conf.arg(metavar="{raw,norm}", help_behavior_hint="")]
File = Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Output = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
ScanName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SCAN")]
ScanNames = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SCAN")]
Sources = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Others = Annotated[tuple[str, ...], tyro.conf.arg(metavar="SCAN", help_behavior_hint="")]
Figure = Literal[
    "flow", "change", "norm-control", "residual", "convergence", "readouts", "distribution", "tokens", "cell", "compare"
]
Measure = Literal["entropy", "change", "logprob", "rank", "top1", "kl", "norm", "cosine", "entropy_at_input_norm"]


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


@dataclass(frozen=True, kw_only=True)
class ProblemOptions:
    """What is asked."""

    problems: File = None
    """File .jsonl, .json, .csv or .parquet, or a data set of the hub, NAME[:CONFIG]@SPLIT; by default the bundled
    held-out problems, the first 64 of them."""


@dataclass(frozen=True, kw_only=True)
class PromptOptions(ReadingOptions, ProblemOptions):
    """What is asked, and how it is put to the model."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How responses are sampled."""

    samples: int = 1
    """Responses per problem."""
    temperature: float = 1.0
    """Of sampling; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    max_new_tokens: int = 1024
    """Length limit of a response."""
    seed: int = 0
    """Of sampling."""
    batch_size: int = 8
    """Rollouts at a time; halved where memory runs out."""


@dataclass(frozen=True, kw_only=True)
class Scan(SamplingOptions, PromptOptions, ModelOptions):
    """Measure the policy of every layer, attention block and FFN at every response token.

    The model answers the problems first, unless --rollouts gives it responses. The scan is kept as Parquet: an
    interrupted one continues where it stopped, and the same question asked again is answered at once.

    For example:
    $ internal-policy scan
    $ internal-policy scan --model Qwen/Qwen3-4B --problems HuggingFaceH4/MATH-500@test --limit 100
    $ internal-policy scan --model ./my-llama --rollouts responses.jsonl --layers 0,5,10-20,-1 --readout both
    """

    rollouts: File = None
    """Measure these responses instead: .jsonl, .json, .parquet or .csv, as `generate` and `export` write them, or with
    columns prompt and response, or messages, or text."""
    layers: str = "all"
    """Layers to measure, from 0, such as 0,5,10-20,-1."""
    sites: str = "all"
    """Of resid_pre, attn_in, attn_out, resid_mid, mlp_in, mlp_out, resid_post, separated by commas; all: those that the
    model's family has."""
    readout: Literal["raw", "norm", "both"] = "raw"
    """Unembed hidden states as they are (raw, the paper), or through the final norm (norm, the logit lens)."""
    lens: File = None
    """Also read them through this lens, as `fit-lens` writes it, or the tuned-lens library as .safetensors; the readout
    is called tuned."""
    measures: str = "all"
    """Of entropy, logprob, rank, kl, topk, norm, cosine, entropy_at_input_norm, separated by commas."""
    top_k: int = 5
    """How many of the likeliest tokens to keep at each hook point; 0 for none."""
    reader: Literal["hooks", "transformer-lens", "nnsight"] = "hooks"
    """What reads the hidden states: hooks of our own, or a library, which is an extra: internal-policy[nnsight]."""
    remote: bool = False
    """With --reader nnsight and --rollouts: measure on NDIF (ndif.us), which holds the model; precision is its own."""
    output: Output = None
    """Folder for the scan; by default one under ~/.cache/internal-policy (or $INTERNAL_POLICY_CACHE)."""
    json: bool = False
    """Print the result as JSON."""
    dry_run: bool = False
    """Only say what would be measured, and the memory and disk that it needs."""
    remeasure: bool = False
    """Check every file of a finished scan, and measure the damaged parts again."""


@dataclass(frozen=True, kw_only=True)
class Generate(SamplingOptions, PromptOptions, ModelOptions):
    """Sample responses, from the model or from one of its internal policies, and mark them.

    For example:
    $ internal-policy generate --samples 4 --output rollouts.jsonl
    $ internal-policy generate --at 5.resid_post --limit 8 --output layer5.parquet
    """

    output: Path = Path("rollouts.parquet")
    """File to write, .parquet or .jsonl."""
    at: str = "final"
    """Hook point to sample from: final is the model itself, 5.resid_post what layer 5 alone would write."""
    readout: Literal["raw", "norm"] = "raw"
    """How hidden states of that hook point are unembedded."""
    lens: File = None
    """Unembed them through this lens instead, as `fit-lens` writes it."""
    json: bool = False
    """Print the result as JSON."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(SamplingOptions, ReadingOptions, ModelOptions):
    """Sample K responses to every problem, and say how many are right: Avg@K and Pass@k, with 95 % intervals.

    They are Wilson intervals over the problems. An interrupted evaluation continues where it stopped, and the same
    question asked again is answered at once. pass_at_k.parquet holds the curves, rollouts.parquet the responses.

    For example:
    $ internal-policy evaluate --samples 16
    $ internal-policy evaluate --at 5.resid_post --limit 32 --output layer5
    $ internal-policy evaluate --model Qwen/Qwen3-4B --problems amc.jsonl HuggingFaceH4/MATH-500@test
    """

    problems: Sources = ()
    """Files .jsonl, .json, .csv or .parquet, or data sets of the hub, NAME[:CONFIG]@SPLIT, that have answers; by
    default the bundled held-out problems, the first 64 of them. --limit is for each."""
    samples: int = 8
    """Responses per problem: K."""
    at: str = "final"
    """Hook point to sample from: final is the model itself, 5.resid_post what layer 5 alone would write."""
    readout: Literal["raw", "norm"] = "raw"
    """How hidden states of that hook point are unembedded."""
    lens: File = None
    """Unembed them through this lens instead, as `fit-lens` writes it."""
    label: Text = None
    """Name of the curve; by default the model's, with @5.resid_post for an internal policy."""
    output: Output = None
    """Folder for the two files; by default one under ~/.cache/internal-policy (or $INTERNAL_POLICY_CACHE)."""
    json: bool = False
    """Print the result as JSON."""


@dataclass(frozen=True, kw_only=True)
class FitLens(SamplingOptions, ReadingOptions, ModelOptions):
    """Fit a tuned lens: at each hook point an affine map whose policy comes close to the model's own.

    The model answers problems first, unless --rollouts gives it responses. The maps begin as the norm readout (the
    logit lens), and are then fitted to what the model's own policy says at the response tokens. What is printed is
    KL(final || readout) on problems that were held out. `scan --lens FILE` measures what layers say through the lens.

    For example:
    $ internal-policy fit-lens --output lens.safetensors
    $ internal-policy fit-lens --model Qwen/Qwen3-0.6B --problems train.jsonl --sites all
    $ internal-policy scan --lens lens.safetensors --sites resid_pre,resid_post
    """

    problems: File = None
    """File .jsonl, .json, .csv or .parquet, or a data set of the hub, NAME[:CONFIG]@SPLIT; by default the bundled
    training problems, the first 512 of them."""
    rollouts: File = None
    """Fit on these responses instead: what `scan --rollouts` reads."""
    sites: str = "resid_pre,resid_post"
    """Sites that get a map in each layer, separated by commas, or all: of resid_pre, attn_in, attn_out, resid_mid,
    mlp_in, mlp_out, resid_post. The last layer's resid_post needs none: normed it is the model's own policy."""
    held_out: float = 0.2
    """Share of the problems that are not fitted on: what the KL is measured on."""
    steps: int = 800
    """Updates of the maps."""
    batch_tokens: int = 256
    """Response tokens of a step."""
    learning_rate: float = 1.0
    """Of Adam, times the size of a hidden state (d_model); it falls to 0 over the steps."""
    max_new_tokens: int = 128
    """Length limit of a response."""
    batch_size: int = 32
    """Responses sampled at a time; halved where memory runs out."""
    output: Path = Path("lens.safetensors")
    """File to write."""
    json: bool = False
    """Print the result as JSON."""


@dataclass(frozen=True, kw_only=True)
class Train(PromptOptions, ModelOptions):
    """Train a model with BuPO: on one internal policy first, then on the whole; or with plain GRPO.

    With no options the bundled demo-qwen3 model is trained on bundled problems, sums of three numbers. The run's folder
    gets metrics.parquet (a row a step), dynamics.parquet (what happens to every layer), checkpoints and, at the end,
    the model. Ctrl-C writes a checkpoint and prints the command that goes on.

    For example:
    $ internal-policy train
    $ internal-policy train --method grpo --steps 40 --output grpo
    $ internal-policy train --layer 3 --internal-steps 20 --report-to tensorboard
    $ accelerate launch --num-processes 2 -m internal_policy train --model ./my-qwen --problems problems.jsonl
    data/recipes/ has the paper's runs on 8 GPUs, each with its command.
    """

    problems: File = None
    """File .jsonl, .json, .csv or .parquet, or a data set of the hub, NAME[:CONFIG]@SPLIT; by default bundled ones."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "float32"
    """What the weights are loaded as, and trained in; bf16 (a key of --config) computes in bfloat16 beside that."""
    method: Literal["bupo", "grpo"] = "bupo"
    """grpo trains the whole policy from the start."""
    layer: Number = None
    """Layer that BuPO trains first, from 0; by default the last whose FFN raises entropy significantly in a scan of a
    few responses (its 95 % interval, widened for the number of layers, is above 0). With grpo: the layer that later
    ones are compared with in dynamics.parquet."""
    site: Literal["resid_post", "attn_out", "mlp_out"] = "resid_post"
    """What of that layer: its output, or that of its attention or FFN."""
    readout: Readout = None
    """How its hidden states are unembedded: raw (the paper, and the default) or norm (through the final norm)."""
    internal_steps: Number = None
    """Steps on the internal policy; by default a sixth of all."""
    steps: Number = None
    """Steps in all; a step is a batch of sampled responses, whatever the number of updates. By default 120."""
    prompts: Number = None
    """Prompts of a step; by default 16."""
    samples: Number = None
    """Responses to each prompt; by default 8."""
    updates: Number = None
    """Optimizer updates of a step; by default 1."""
    micro_batch: Number = None
    """Responses that one process computes at a time, for the memory; by default 16."""
    learning_rate: Fraction = None
    """Of AdamW; by default 1e-4 for a bundled model, 1e-6 (the paper's) for others."""
    temperature: Fraction = None
    """Of sampling; by default 1."""
    max_new_tokens: Number = None
    """Length limit of a response; by default 64 for a bundled model, 1024 for others."""
    seed: Number = None
    """Of sampling and of the order of problems; by default 0."""
    save_every: Number = None
    """Steps between two checkpoints, of which the last two are kept; by default 20."""
    scan_every: int = 5
    """Steps between two scans of the layers for dynamics.parquet; 0 for none."""
    report_to: Text = None
    """Where else to log, as in TRL: tensorboard, wandb, trackio, ...; by default nowhere."""
    config: File = None
    """YAML file whose keys are any fields of TRL's GRPOConfig and of BuPOConfig; options given here win over it."""
    output: Output = None
    """Folder of the run; by default one under ~/.cache/internal-policy (or $INTERNAL_POLICY_CACHE), where the dashboard
    finds it."""
    resume: bool = False
    """Go on from the last checkpoint in the folder."""
    json: bool = False
    """Print the result as JSON."""


@dataclass(frozen=True, kw_only=True)
class Ls:
    """List the scans in the cache, newest first."""

    json: bool = False
    """Print the result as JSON."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """Print a scan: what was measured, and the entropies by layer.

    For example:
    $ internal-policy show 3fa9
    $ internal-policy show ./my-scan --readout norm
    """

    scan: ScanName
    """Folder of the scan, or the first digits of its name in `internal-policy ls`."""
    readout: Text = None
    """raw, norm or tuned; by default the first that was measured."""
    json: bool = False
    """Print the result as JSON."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a table of a scan as one file.

    For example:
    $ internal-policy export 3fa9 --format csv
    $ internal-policy export 3fa9 --table policies --format parquet --output policies.parquet
    """

    scan: ScanName
    """Folder of the scan, or the first digits of its name in `internal-policy ls`."""
    format: Literal["csv", "json", "parquet"] = "csv"
    """Of the file."""
    table: Literal["layers", "policies", "rollouts"] = "layers"
    """layers: a row a rollout x readout x layer x site; policies: a row a token x readout x layer; rollouts: the
    responses."""
    output: Output = None
    """File to write; by default TABLE.FORMAT here."""


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """What of a scan is looked at."""

    readout: Text = None
    """raw, norm or tuned; by default the first that was measured."""
    outcome: Literal["all", "correct", "incorrect"] = "all"
    """Which responses to include; a response is correct if its reward is 1 or more."""
    positions: Text = None
    """Window of the responses' tokens, from 0, such as 0-99 or 100-; by default all."""


@dataclass(frozen=True, kw_only=True)
class Plot(ViewOptions):
    """Draw one figure of a scan, as .html that needs no network, or as .png, .svg or .pdf.

    flow: entropy from layer to layer (Fig. 2 of the paper); change: entropy change with the stages (Fig. 3);
    norm-control: the change as direction and norm; residual: cosines with the residual stream, and norms (Fig. 12);
    convergence: KL to the model's policy and where its first choice settles; readouts: raw, norm and a lens in one
    figure; distribution: spread over the tokens; tokens: token x layer heatmap of a response; cell: what the policies
    of a layer would say at a token; compare: up to four scans side by side.

    For example:
    $ internal-policy plot demo-qwen3 flow -o flow.png
    $ internal-policy plot 3fa9 change --style paper -o change.pdf
    $ internal-policy plot demo-qwen3 tokens --rollout 3 --site mlp_out --measure change -o tokens.html
    $ internal-policy plot demo-qwen3 compare --against demo-llama -o compare.svg
    """

    scan: ScanName
    """Folder of the scan, the first digits of its name in `internal-policy ls`, or demo-qwen3 or demo-llama."""
    figure: Annotated[Figure, tyro.conf.Positional]
    """What to draw."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
    """File to write: .html, .png, .svg or .pdf. An existing one is replaced."""
    style: Literal["screen", "paper"] = "screen"
    """paper: black on white, sized for a column of print, without a title."""
    average: Literal["tokens", "rollouts"] = "tokens"
    """Every token counts the same (the paper), or every rollout does."""
    against: Others = ()
    """Of compare: the other scans."""
    measure: Measure = "entropy"
    """Measure to draw in tokens, distribution, readouts and compare. change is for tokens and compare, top1 for
    readouts, entropy_at_input_norm for tokens and distribution."""
    site: str = "resid_post"
    """Of tokens, distribution and readouts: resid_pre, attn_in, attn_out, resid_mid, mlp_in, mlp_out, resid_post."""
    rollout: Number = None
    """Of tokens and cell: number of the response; by default the first."""
    position: Number = None
    """Of cell: which token of the response, from 0; by default the first."""
    layer: int = 0
    """Of cell: from 0; one past the last for the model's own policy."""


@dataclass(frozen=True, kw_only=True)
class Report(ViewOptions):
    """Write one offline HTML file with every figure of one or more scans, their table and provenance.

    For example:
    $ internal-policy report demo-qwen3 demo-llama -o report.html
    $ internal-policy report 3fa9 --readout norm --outcome correct -o correct.html
    """

    scans: ScanNames
    """Folders of the scans, first digits of their names in `internal-policy ls`, or demo-qwen3 or demo-llama."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = Path("report.html")
    """File to write. An existing one is replaced."""


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """Open the dashboard on this machine; it shows the scans in the cache, and the bundled ones.

    For example:
    $ internal-policy dashboard
    $ internal-policy dashboard --scan 3fa9 --port 8600
    """

    scan: Text = None
    """Scan to begin with: its folder, or the first digits of its name in `internal-policy ls`."""
    port: int = 8501
    """Where it listens, on 127.0.0.1 alone."""


@dataclass(frozen=True, kw_only=True)
class Families:
    """List the model families that can be read, each proved now, and how to add one.

    Every row of the table is put to the proof on a tiny random model, with the transformers that is installed: that
    what is read is what the model adds to its residual stream, to the last bit. The exit code is 1 where a row fails.
    """

    json: bool = False
    """Print the result as JSON."""


COMMANDS = {
    "scan": Scan,
    "generate": Generate,
    "evaluate": Evaluate,
    "fit-lens": FitLens,
    "train": Train,
    "ls": Ls,
    "show": Show,
    "export": Export,
    "plot": Plot,
    "report": Report,
    "dashboard": Dashboard,
    "families": Families,
}
