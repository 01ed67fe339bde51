"""Sound files to start from: shipped ones, and small ones that the program writes itself. Each seed is a folder."""

import datetime
import decimal
import io
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from internal_policy import bundle

from .readers import ARGUMENTS, D_MODEL, LAYERS, dumped

SCANS = bundle.DATA / "scans"
PROBLEMS = [
    {"problem": "What is 3 + 4?", "answer": "7", "level": 2.5, "tools": []},
    {"problem": [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 2?"}], "answer": 3},
    {"problem": "How much is \u00bd of 10?", "answer": {"ground_truth": "5", "style": "rule"}},
]
ROLLOUTS = [
    {"problem": "1 + 1", "answer": "2", "sample": 0, "prompt_ids": [3, 4], "response_ids": [5, 6, 1], "reward": 1.0,
     "response": "2", "finished": True, "engine_logprob": [-0.1, -0.5, -2.0]},
    {"problem": "1 + 2", "answer": "3", "sample": 1, "prompt_ids": [3], "response_ids": [9], "reward": None},
]  # fmt: skip
TURNS = [
    {"messages": [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}], "answer": "2"},
    {"prompt": "What is 3 + 4?", "response": "7", "reward": 1},
    {"text": "The answer is 7."},
]
RECIPE = """schedule: [1.resid_post:3, "2.mlp_out@norm*1-0.5:2", final]
max_steps: 10
learning_rate: 1e-6
num_generations: 4
per_device_train_batch_size: 4
rewards: [box]
chat_template_kwargs: {enable_thinking: false}
lr_scheduler_type: constant
beta: 0.0
"""


Place = Callable[[str], Path]


def _folder(root: Path, name: str) -> Path:
    (root / name).mkdir(parents=True, exist_ok=True)
    return root / name


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return b"\n".join(map(dumped, rows)) + b"\n"


def _texts(place: Place) -> None:
    (place("problems-jsonl") / "problems.jsonl").write_bytes(_lines(PROBLEMS))
    (place("problems-json") / "problems.json").write_bytes(dumped(PROBLEMS[:2]))
    (place("problems-csv") / "problems.csv").write_text('problem,answer,level\n"What is ""3"" + 4?",7,easy\n1 + 2,3,\n')
    (place("rollouts-jsonl") / "rollouts.jsonl").write_bytes(_lines(ROLLOUTS))
    (place("messages-jsonl") / "rollouts.jsonl").write_bytes(_lines(TURNS))
    (place("rollouts-json") / "rollouts.json").write_bytes(dumped(ROLLOUTS))
    heads, cells = (
        "problem,answer,sample,prompt_ids,response_ids,reward,finished,response",
        '1 + 1,2,0,"[3, 4]","[5, 1]"',
    )
    (place("rollouts-csv") / "rollouts.csv").write_text(f"{heads}\n{cells},1.0,True,'=2\n")
    (place("recipe") / "recipe.yaml").write_text(RECIPE)
    for name, model in (("template", "demo-qwen3"), ("template-llama", "demo-llama")):
        shutil.copy(bundle.DATA / "models" / model / "chat_template.jinja", place(name))


def _parquet(place: Place) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(PROBLEMS[:1] * 3), place("problems-parquet") / "problems.parquet")
    pq.write_table(pa.Table.from_pylist(ROLLOUTS), place("rollouts-parquet") / "rollouts.parquet")
    day = datetime.datetime(2026, 11, 26, tzinfo=datetime.UTC)
    odd = {
        "problem": pa.array(["1 + 1", "2 + 2"]).dictionary_encode(),
        "answer": pa.array([decimal.Decimal("1.50"), None]),
        "bytes": pa.array([b"\xff", None]),
        "days": pa.array([day, None]),
        "long": pa.array([2**64 - 1, 0], pa.uint64()),
        "half": pa.array([1.5, None], pa.float16()),
        "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
        "deep": pa.array([[[{"a": [None, 1]}]], None]),
        "none": pa.nulls(2),
        "time": pa.array([datetime.time(1, 2), None]),
        "span": pa.array([datetime.timedelta(3), None]),
    }
    pq.write_table(pa.table(odd), place("odd-parquet") / "problems.parquet")


def _arguments(place: Place) -> None:
    for name, (_, sound) in ARGUMENTS.items():
        folder = place(f"argument-{name}")
        (folder / "which").write_text(name)
        (folder / "argument").write_text(sound[0])


def _models(place: Place) -> None:
    from safetensors.torch import load_file, save_file

    from internal_policy.models.tiny import tiny

    folder = place("model")
    tiny("qwen3", vocab_size=448).float().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(bundle.DATA / "models" / "demo-qwen3" / name, folder)
    (folder / "modeling_evil.py").write_text("open('ran', 'w').write('remote code')\nclass Model: pass\n")
    sharded = place("sharded")
    for path in folder.iterdir():
        if path.name != "model.safetensors":
            shutil.copy(path, sharded)
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    where = {
        name: f"model-0000{1 + 2 * number // len(names)}-of-00002.safetensors" for number, name in enumerate(names)
    }
    for file in set(where.values()):
        save_file({name: weights[name] for name in names if where[name] == file}, sharded / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (sharded / "model.safetensors.index.json").write_bytes(dumped(index))
    adapter = place("adapter")
    import peft

    peft.get_peft_model(
        tiny("qwen3", vocab_size=448).float(), peft.LoraConfig(r=2, target_modules=["q_proj"])
    ).save_pretrained(str(adapter))
    written = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_bytes(dumped({**written, "base_model_name_or_path": str(folder)}))


def _lenses(place: Place) -> None:
    import torch

    from internal_policy.lenses import card, file, published
    from internal_policy.lenses.lens import FittedLens, Jacobian, Translator
    from internal_policy.models.hooks import HookPoint

    told = {
        "model": "demo-qwen3",
        "identity": "sha256 0",
        "n_layers": LAYERS,
        "d_model": D_MODEL,
        "fitted_on": {"file": "a.jsonl", "source": "sampled", "rollouts": 3, "tokens": 99},
        "held_out": {"file": "b.jsonl", "source": "given", "rollouts": 2, "tokens": 50},
        "kl": [{"layer": 0, "site": "resid_post", "readout": "tuned", "mean": 0.5, "low": 0.4, "high": 0.6}],
        "steps": 10,
    }
    points = [HookPoint(layer, "resid_post") for layer in range(LAYERS - 1)]
    generator = torch.Generator().manual_seed(0)
    matrices = {point: torch.randn(D_MODEL, D_MODEL, generator=generator) for point in points}
    tuned = FittedLens({p: Translator(m, m[0].clone()) for p, m in matrices.items()}, LAYERS, told)
    jacobian = FittedLens({p: Jacobian(m) for p, m in matrices.items()}, LAYERS, {**told, "n_prompts": 3})
    for name, lens in (("lens", tuned), ("lens-jacobian", jacobian)):
        file.save(place(name) / "lens.safetensors", FittedLens(lens.at, LAYERS, {**told, **card.about(lens)}))
    published.publish(place("published") / "lens.pt", jacobian)


def _scans(place: Place) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from internal_policy.cli.main import main

    model, scan = place("model"), place("scan")
    scan.rmdir()
    words = ["--model", str(model), "--device", "cpu", "--text", "1 + 2 is", "--text", "3 and 4", "--output", str(scan)]
    assert main(["scan", *words]) == 0
    _unsigned(scan / "scan.json")
    unfinished = place("unfinished")
    for path in scan.iterdir():
        if path.name != "scan.json":
            shutil.copy(path, unfinished)
    _unsigned(unfinished / "asked.json")
    _unsigned(unfinished / "part-00000.json")
    for kind in ("ablation", "alignment"):
        shutil.copytree(SCANS / f"demo-qwen3-{kind}", place(kind), dirs_exist_ok=True)
        _unsigned(place(kind) / f"{kind}.json")
    problems = place("problems-csv") / "problems.csv"
    short = ["--limit", "1", "--samples", "2", "--max-new-tokens", "2"]
    where = place("evaluation")
    where.rmdir()
    words = ["--model", str(model), "--device", "cpu", "--problems", str(problems), *short, "--output", str(where)]
    assert main(["evaluate", *words]) == 0
    table = pq.read_table(where / "rollouts.parquet")
    marks = pa.array([1.0, 0.0], pa.float64())
    pq.write_table(table.set_column(table.column_names.index("reward"), "reward", marks), where / "rollouts.parquet")


def _unsigned(path: Path) -> None:
    """Leave out the checksums of a record, which would give every lie away; who lies can write them."""
    value = json.loads(path.read_text())
    path.write_bytes(dumped({name: held for name, held in value.items() if name not in ("checksum", "footers")}))


TABLES = {
    "scan": ("layers-00000.parquet", "policies-00000.parquet", "rollouts-00000.parquet", "vocabulary.parquet"),
    "alignment": ("alignment.parquet",),
    "ablation": ("effects-00000.parquet",),
    "evaluation": ("rollouts.parquet", "pass_at_k.parquet"),
    "run": ("metrics.parquet", "dynamics.parquet"),
}
"""Seed -> its tables. Each is also tried with other columns."""


def _variants(root: Path) -> None:
    """Copies of seeds with a table that lacks a column, or has it as texts or without values, truly fingerprinted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from internal_policy import files

    for seed, tables in TABLES.items():
        number = 0
        for file in tables:
            table = pq.read_table(root / seed / file)
            for name in table.column_names[:8]:
                at = table.column_names.index(name)
                texts = table.set_column(at, name, pa.array(["x"] * len(table)))
                for variant in (table.drop_columns([name]), texts):
                    folder, number = root / f"{seed}~{number}", number + 1
                    folder.mkdir()
                    for path in (root / seed).iterdir():
                        (folder / path.name).symlink_to(path)
                    (folder / file).unlink()
                    pq.write_table(variant, folder / file)
                    for path in (folder / "scan.json", folder / "ablation.json"):
                        if path.exists():
                            record = json.loads(path.read_text())
                            record["files"][file] = files.fingerprint(folder / file)
                            path.unlink()
                            path.write_bytes(dumped({key: value for key, value in record.items() if key != "footers"}))


def _runs(place: Place) -> None:
    shutil.copytree(bundle.DATA / "experiments" / "bupo", place("run"), dirs_exist_ok=True)
    asked = {
        "model": "demo-qwen3",
        "method": "bupo",
        "problems": ["sums.jsonl"],
        "schedule": "5.resid_post:30",
        "seed": 0,
    }
    (place("run") / "run.json").write_bytes(dumped(asked))


LIGHT = (_texts, _arguments, _lenses)
"""What writes files that need no model."""
EVERY = (_texts, _parquet, _arguments, _models, _lenses, _scans, _runs)


def make(root: Path, makers: Sequence[Callable[[Place], None]] = EVERY) -> Path:
    """Write seeds into folders of `root`, and with those of EVERY also their variants; return it."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for maker in makers:
            maker(lambda name: _folder(root, name))
        if makers == EVERY:
            _variants(root)
    return root
