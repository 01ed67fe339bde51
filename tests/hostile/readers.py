"""What reads files and texts from others: each with sound examples to start from, and which of their files may lie."""

import io
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from internal_policy.errors import InputError
from internal_policy.models.checkpoint import Checkpoint

from .lies import HELD

CHAT = {"add_generation_prompt": True}
MESSAGES = [{"role": "user", "content": "What is 3 + 4?"}]
D_MODEL, LAYERS = 8, 3
"""Size of the model of the lenses."""


@dataclass(frozen=True)
class Reader:
    """Something that reads files or texts from others."""

    seeds: tuple[str, ...]
    """Folders of sound files, as `seeds` makes them."""
    lying: tuple[str, ...]
    """Files that may lie; the others stay sound."""
    read: Callable[[Path], Any]
    """Reads a folder. Raises InputError for what it can't use."""
    share: float = 1.0
    """How many of all inputs it gets, relative to others: less if it is slow."""
    refuses: bool = False
    """Whether it refuses the sound files too, such as an unfinished scan."""


def _printed(run: Callable[[], Any]) -> None:
    """Run a command, and check that nothing it prints could act on a terminal."""
    from internal_policy.cli.console import visible

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            run()
        except InputError as error:
            err.write(str(error))
            raise
        finally:
            for text in (out.getvalue(),):
                if visible(text) != text:
                    raise AssertionError(f"control characters were printed: {text[:200]!r}")


def _problems(folder: Path) -> None:
    from internal_policy.tasks.problems import read_problems

    for path in sorted(folder.iterdir()):
        read_problems(str(path))


@cache
def _tokenizer() -> Any:
    from internal_policy.models.tokenizers import load_tokenizer

    return load_tokenizer(Checkpoint("demo-qwen3"))


def _rollouts(folder: Path) -> None:
    from internal_policy.tasks import rollouts

    for path in sorted(folder.iterdir()):
        found = rollouts.read_rollouts(path, _tokenizer(), {})
        rollouts.check_ids(found, 512, 448)
        rollouts.to_table(found)


def _tokenizers(folder: Path) -> None:
    from internal_policy.models.tokenizers import inserts_date, load_tokenizer
    from internal_policy.models.vocabulary import vocabulary
    from internal_policy.tasks.problems import Message, Problem
    from internal_policy.tasks.prompts import encode_problem, encode_text

    checkpoint = Checkpoint(str(folder))
    inserts_date(checkpoint, None)
    tokenizer = load_tokenizer(checkpoint)
    vocabulary(tokenizer, min(len(tokenizer), 400))
    encode_text(tokenizer, "1 + 1")
    if tokenizer.chat_template:
        encode_problem(tokenizer, Problem((Message(role="user", content="1 + 1"),), "2"), {})


def _model(folder: Path) -> None:
    from internal_policy.models import generation, loading, weights

    checkpoint = Checkpoint(str(folder))
    config = loading.load_config(checkpoint)
    generation.generation_config(checkpoint)
    model = weights.empty(checkpoint, config)
    import torch

    weights.count(checkpoint, config, model, torch.device("cpu"))
    weights.dtype_of(config, checkpoint, "auto")


def _weights(folder: Path) -> None:
    from internal_policy.models import loading

    loading.load_model(Checkpoint(str(folder)), device="cpu")


def _adapter(folder: Path) -> None:
    from internal_policy.models import loading, weights
    from internal_policy.models.checkpoint import identity

    checkpoint = Checkpoint(str(folder))
    identity(checkpoint)
    weights.adapter_bytes(folder)
    loading.load_config(checkpoint)


def _template(folder: Path) -> None:
    from internal_policy.models import templates

    templates.TIME_LIMIT = 0.3
    path = folder / "chat_template.jinja"
    if not path.is_file():
        raise InputError("nothing here")
    templates.render(path.read_bytes().decode(errors="replace"), MESSAGES, CHAT)


def _lens(folder: Path) -> None:
    from internal_policy.cli import lens_card

    _printed(lambda: lens_card.run(str(folder / "lens.safetensors"), None, force=False, as_json=False))


def _published(folder: Path) -> None:
    from internal_policy.lenses import file, source

    path = source.find(folder / "lens.pt").path
    file.read(path, *file.sizes(path))


def _recipe(folder: Path) -> None:
    from internal_policy.cli import train_configuration, train_options
    from internal_policy.train import fields

    given = fields.read(str(folder / "recipe.yaml"))
    options = train_options.Train(config=str(folder / "recipe.yaml"))
    train_configuration.check(options)
    train_configuration.configured(train_configuration.resolved(options, given), given, folder, 1)


def _shown(folder: Path) -> None:
    """What `ls` and `show` print of a scan, ablation, alignment or run."""
    from internal_policy.cli import contents, inventory, show

    kind = inventory.kind_of(folder)
    if kind is None:
        raise InputError("nothing here")
    contents.described(inventory.Item(kind, folder, str(folder)))
    if kind != "evaluation":
        _printed(lambda: show.run(show.Show(name=str(folder))))


def _opened(folder: Path) -> None:
    """What notebooks, figures and pages read of a scan."""
    from internal_policy.look import scan as look_scan

    scan = look_scan.open_scan(folder)
    scan.means()
    scan.changes()
    scan.tokens(0)
    repr(scan)


def _forged(folder: Path) -> None:
    """The same, with the fingerprints that the damaged tables have."""
    from internal_policy import files

    path, made = folder / "scan.json", folder.parent / HELD / "forged"
    record = json.loads(path.read_text())
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for other in folder.iterdir():
        if other != path:
            (made / other.name).symlink_to(other)
    record["files"] = {name: files.fingerprint(folder / name) or known for name, known in record["files"].items()}
    (made / "scan.json").write_text(json.dumps({name: value for name, value in record.items() if name != "footers"}))
    try:
        _opened(made)
    finally:
        shutil.rmtree(made)


def _evaluation(folder: Path) -> None:
    from internal_policy.cli import evaluate
    from internal_policy.cli.evaluate import Evaluate

    _shown(folder)
    _printed(lambda: evaluate.run(Evaluate(evaluations=(str(folder), str(folder)), paired=True)))


def _argument(folder: Path) -> None:
    text = (folder / "argument").read_bytes().decode(errors="surrogateescape")
    ARGUMENTS[(folder / "which").read_text()][0](text)


def _words(*words: str) -> Callable[[str], Any]:
    """A command with one argument given."""

    def run(text: str) -> None:
        from internal_policy.cli.main import _run

        _printed(lambda: _run([text if word == "{}" else word for word in words]))

    return run


def _address(text: str) -> None:
    import sys

    sys.path[:0] = [] if (app := str(Path(__file__).parents[2] / "app")) in sys.path else [app]
    import address  # pyright: ignore[reportMissingImports]
    import show  # pyright: ignore[reportMissingImports]

    for kind in (int, str):
        value = address._parsed(text, kind)
        assert value is None or isinstance(value, str) or 0 <= value <= show.LARGEST


def _source(text: str) -> None:
    from internal_policy.lenses import source
    from internal_policy.tasks import rows

    rows.from_hub(text)
    if "@" not in text:
        source.find(text)
        rows.read_rows(Path(text))


def _imported(name: str, function: str, *more: Any) -> Callable[[str], Any]:
    def call(text: str) -> Any:
        found: Any = import_module(f"internal_policy.{name}")
        for part in function.split("."):
            found = getattr(found, part)
        return found(text, *more)

    return call


def _template_arguments(text: str) -> None:
    from internal_policy.cli.common import PromptOptions

    _ = PromptOptions(chat_template_kwargs=text).template_arguments


def _sizes(text: str) -> None:
    from internal_policy.cli.common import ModelOptions

    _ = ModelOptions(model="x", max_memory=text).sizes


def _parsed_schedule(text: str) -> None:
    from internal_policy.train import schedule

    for phase in schedule.parse(text.split(",")):
        _ = phase.name, phase.weight(0)


def _frozen(text: str) -> None:
    from internal_policy.train.freezing import Frozen

    Frozen.of(text, None).within(6)


ARGUMENTS: Mapping[str, tuple[Callable[[str], Any], tuple[str, ...]]] = {
    "schedule": (_parsed_schedule, ("5.resid_post@norm*1-0.5:30,11.mlp_out:10,final",)),
    "positions": (_imported("scans.positions", "parse"), ("0-99", "100-")),
    "layers": (_imported("scans.selection", "parse_layers", 12), ("0,5,7-9,-1", "all")),
    "hook point": (_imported("models.hooks", "HookPoint.parse"), ("5.attn_out", "final")),
    "shard": (_imported("scans.shard", "parse"), ("0/4",)),
    "reward": (_imported("train.rewards", "parse"), ("box=0.5", "mine.py:reward=2")),
    "frozen layers": (_frozen, ("0-4,7,embeddings",)),
    "template arguments": (_template_arguments, ('{"enable_thinking": false, "strftime_now": "2026-11-25"}',)),
    "max memory": (_sizes, ("0=20GiB,cpu=60GiB",)),
    "source": (_source, ("openai/gsm8k:main@test", "org/lenses:qwen3/jacobian.pt", "problems.jsonl")),
    "address": (_address, ("12", "resid_post")),
}
"""Argument or parameter -> what reads it, and sound values."""
COMMANDS: Mapping[str, tuple[Callable[[str], Any], tuple[str, ...]]] = {
    "name of show": (_words("show", "{}"), ("demo-qwen3",)),
    "positions of plot": (_words("plot", "demo-qwen3", "flow", "--positions", "{}", "--json"), ("0-99",)),
    "layers of scan": (_words("scan", "--dry-run", "--layers", "{}"), ("0,5",)),
    "sites of scan": (_words("scan", "--dry-run", "--sites", "{}"), ("attn_out,mlp_out",)),
    "measures of scan": (_words("scan", "--dry-run", "--measures", "{}"), ("entropy,kl",)),
    "problems of scan": (_words("scan", "--dry-run", "--problems", "{}"), ("sums.jsonl",)),
    "device of scan": (_words("scan", "--dry-run", "--device", "{}"), ("cuda:1",)),
    "option of ls": (_words("ls", "{}"), ("--json",)),
    "command": (_words("{}"), ("sacn",)),
    "run of rm": (_words("rm", "{}"), ("runs/mine",)),
}
TRAINING = ("schedule", "reward", "frozen layers", "address")
"""Arguments whose readers take long to import."""
GIVEN, TYPED, TRAINED = (
    tuple(f"argument-{name}" for name in rows)
    for rows in ([name for name in ARGUMENTS if name not in TRAINING], COMMANDS, TRAINING)
)
ARGUMENTS = {**ARGUMENTS, **COMMANDS}

TABLES = ("layers-00000.parquet", "policies-00000.parquet", "rollouts-00000.parquet", "vocabulary.parquet")
OF_A_MODEL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
READERS: Mapping[str, Reader] = {
    "problems .jsonl": Reader(("problems-jsonl",), ("problems.jsonl",), _problems, 2),
    "problems .json": Reader(("problems-json",), ("problems.json",), _problems),
    "problems .csv": Reader(("problems-csv",), ("problems.csv",), _problems),
    "problems .parquet": Reader(("problems-parquet", "odd-parquet"), ("problems.parquet",), _problems),
    "rollouts .jsonl": Reader(("rollouts-jsonl", "messages-jsonl"), ("rollouts.jsonl",), _rollouts, 0.5),
    "rollouts .json": Reader(("rollouts-json",), ("rollouts.json",), _rollouts, 0.5),
    "rollouts .csv": Reader(("rollouts-csv",), ("rollouts.csv",), _rollouts),
    "rollouts .parquet": Reader(("rollouts-parquet",), ("rollouts.parquet",), _rollouts),
    "tokenizer": Reader(("model",), ("tokenizer.json", "tokenizer_config.json"), _tokenizers, 0.4),
    "config.json": Reader(("model",), ("config.json", "generation_config.json"), _model, 0.3),
    "safetensors": Reader(("model", "sharded"), ("model.safetensors", "model.safetensors.index.json"), _weights, 0.2),
    "adapter": Reader(("adapter",), ("adapter_config.json", "adapter_model.safetensors"), _adapter, 0.3),
    "chat template": Reader(("template", "template-llama"), ("chat_template.jinja",), _template, 0.2),
    "lens": Reader(("lens", "lens-jacobian"), ("lens.safetensors",), _lens, 0.5),
    "published lens": Reader(("published",), ("lens.pt",), _published),
    "recipe": Reader(("recipe",), ("recipe.yaml",), _recipe, 0.3),
    "scan.json": Reader(("scan",), ("scan.json",), _shown, 0.3),
    "asked.json": Reader(("unfinished",), ("asked.json", "part-00000.json"), _shown, 0.5, refuses=True),
    "scan's tables": Reader(("scan",), ("layers-00000.parquet", "rollouts-00000.parquet"), _opened, 0.2),
    "scan's forged tables": Reader(("scan",), TABLES, _forged, 0.2),
    "ablation": Reader(("ablation",), ("ablation.json", "question.json"), _shown, 0.3),
    "alignment": Reader(("alignment",), ("alignment.json", "alignment.parquet"), _shown, 0.3),
    "run": Reader(("run",), ("run.json", "metrics.parquet", "dynamics.parquet"), _shown, 0.2),
    "evaluation": Reader(("evaluation",), ("evaluation.json", "rollouts.parquet"), _evaluation, 0.3),
    "argument": Reader(GIVEN, ("argument",), _argument, 2, refuses=True),
    "training argument": Reader(TRAINED, ("argument",), _argument, 1, refuses=True),
    "command line": Reader(TYPED, ("argument",), _argument, 0.2, refuses=True),
}
"""Every reader by its name."""


def dumped(value: Any) -> bytes:
    """A value as JSON."""
    return json.dumps(value).encode()


def preload() -> None:
    """Import what readers need, so that no process has to."""
    for name in (
        *("pandas", "pyarrow.parquet", "pyarrow.dataset", "safetensors.torch", "peft", "yaml", "scipy.stats", "torch"),
        *("transformers.models.auto.modeling_auto", "transformers.models.qwen3.modeling_qwen3"),
        *("internal_policy.cli.main", "internal_policy.cli.worker", "internal_policy.look.scan"),
        *("internal_policy.lenses.file", "internal_policy.lenses.published", "internal_policy.lenses.card_text"),
        *("internal_policy.models.loading", "internal_policy.models.trial", "internal_policy.models.weights"),
        *("internal_policy.models.vocabulary", "internal_policy.tasks.rollouts", "internal_policy.train.fields"),
        *("internal_policy.train.configuration", "internal_policy.look.alignment", "internal_policy.look.ablation"),
    ):
        import_module(name)
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig  # noqa: F401
