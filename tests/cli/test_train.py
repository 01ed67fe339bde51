"""The command that trains: from problems to a run's folder, and on from there."""

import dataclasses
import json
import math
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
from conftest import jsonl
from safetensors.torch import load_file

from internal_policy import bundle
from internal_policy.__main__ import main
from internal_policy.cli import parsing, train, train_configuration, train_report
from internal_policy.cli.commands import COMMANDS
from internal_policy.cli.train import Train
from internal_policy.errors import InputError
from internal_policy.look.run import open_run
from internal_policy.models import loading, tokenizers
from internal_policy.train import card, defaults, fields, resume
from internal_policy.train import run as training
from internal_policy.train.configuration import BuPOConfig

EXAM = str(bundle.DATA / "problems" / "sums-heldout.jsonl")
PROBLEMS = ["--problems", str(bundle.DATA / "problems" / "train.jsonl")]
SHORT = [*PROBLEMS, "--prompts", "2", "--samples", "8", "--micro-batch", "8", "--max-new-tokens", "64", "--limit", "60"]
LEARN = [
    "--layer",
    "3",
    "--updates",
    "2",
    "--internal-steps",
    "2",
    "--steps",
    "4",
    "--scan-every",
    "2",
    "--learning-rate",
    "1e-4",
]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a finished run of 4 steps, 2 of them on layer 3."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *SHORT, *LEARN, "--save-every", "2", "--output", str(folder)]) == 0
    return folder


def given(folder: Path, **fields) -> str:
    """A configuration file."""
    path = folder / "given.yaml"
    path.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in fields.items()))
    return str(path)


def configured(*arguments: str, file=None, layer: int | None = 3, folder: Path = Path("unused")):
    import tyro

    options = train_configuration.resolved(tyro.cli(Train, args=arguments), file or {})
    return train_configuration.configured(options, file or {}, folder, layer)


# what a run leaves


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"content": []}', "{"])
def test_a_damaged_record_of_a_run_is_refused_in_one_sentence(text, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(text)
    assert main(["train", *SHORT, "--layer", "3", "--output", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "run.json is damaged" in said
    assert len(said.splitlines()) == 1


def test_relative_and_absolute_paths_name_the_same_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("problems.jsonl", "others.jsonl"):
        (tmp_path / name).write_text(json.dumps({"problem": name, "answer": "1"}))
    model = bundle.DATA / "models" / "demo-qwen3"
    (tmp_path / "model").symlink_to(model)
    asked = [
        Train(model=model, problems=(problems,))
        for model, problems in [
            ("model", "problems.jsonl"),
            (str(model), str(tmp_path / "problems.jsonl")),
            ("model", "others.jsonl"),
        ]
    ]
    first, second, other = (train._question(one, {}) for one in asked)
    assert resume.difference(first, second) is None
    assert resume.difference(first, other) == "--problems"


def test_a_run_writes_a_row_of_metrics_per_step(run):
    metrics = pd.read_parquet(run / "metrics.parquet")
    assert metrics["step"].tolist() == [1, 2, 3, 4]
    assert metrics["phase"].tolist() == ["internal", "internal", "final", "final"]
    assert metrics["target"].tolist() == ["3.resid_post", "3.resid_post", "final", "final"]
    trained = metrics["rows_trained"] > 0  # not if all responses to each prompt have the same reward
    assert trained.any()
    assert metrics["internal_entropy"].notna().tolist() == [*trained[:2], False, False]
    assert metrics["clip_fraction"].notna().tolist() == [*trained]
    assert metrics[["reward", "entropy", "cut", "seconds"]].notna().all().all()
    assert metrics["perplexity"].notna().tolist() == [False, True, False, True]


def test_a_run_scans_the_layers_before_and_every_few_steps(run):
    dynamics = pd.read_parquet(run / "dynamics.parquet")
    assert dynamics["step"].unique().tolist() == [0, 2, 4]
    entropy = dynamics[dynamics["site"] == "resid_post"].pivot(index="layer", columns="step", values="entropy")
    assert (entropy[0] != entropy[4]).all()
    compared = dynamics[dynamics["kl"].notna() & (dynamics["step"] == 0)]
    assert compared["layer"].tolist() == [4, 5, 6, 7, 8]


def test_a_run_keeps_its_resolved_configuration_and_versions(run):
    written = fields.read(str(run / "config.yaml"))
    again = BuPOConfig(output_dir=str(run), **written)
    assert (again.schedule, again.learning_rate, again.max_steps) == (["3.resid_post:2"], 1e-4, 8)
    assert (again.generation_batch_size, again.updates_per_step, again.max_completion_length) == (16, 2, 64)
    assert card.fields_of(again) == written
    assert "torch" in json.loads((run / "run.json").read_text())["versions"]


def test_the_model_has_a_card_and_no_pickle(run):
    text = (run / "model" / "README.md").read_text()
    assert "BuPO: steps 1 to 2 train 3.resid_post, steps 3 to 4 the whole policy." in text
    assert f"Problems: {PROBLEMS[1]}" in text
    assert "| reward | " in text
    assert not [path.name for path in (run / "model").iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


def test_the_trained_model_can_be_scanned(run, capsys):
    assert main(["scan", "--model", str(run / "model"), "--limit", "1", "--max-new-tokens", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "qwen3"


@pytest.mark.slow
def test_a_resumed_run_equals_an_undisturbed_one(run, tmp_path):
    part = tmp_path / "part"
    code = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "train", *SHORT, *LEARN, "--save-every", "9", "--output", str(part)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert code.returncode == 130, code.stderr
    assert "Continue with: internal-policy train" in code.stderr
    assert code.stderr.strip().endswith(" --resume")
    assert len(pd.read_parquet(part / "metrics.parquet")) == 2
    again = ["train", *SHORT, *LEARN, "--save-every", "9", "--output", str(part)]
    assert main(again) == 2  # a checkpoint is there, and nobody said --resume
    assert main([*again, "--resume"]) == 0
    for name in ("metrics.parquet", "dynamics.parquet"):
        a, b = (pd.read_parquet(folder / name) for folder in (run, part))
        timed = [name for name in map(str, a) if name == "peak_memory" or "second" in name]
        one, other = (frame.drop(columns=timed) for frame in (a, b))
        pd.testing.assert_frame_equal(one, other)


INTERRUPTED = """
import os, signal, sys
from internal_policy.__main__ import main
from internal_policy.train.callbacks import RunLogger
on_log = RunLogger.on_log
def press(self, args, state, control, **more):
    on_log(self, args, state, control, **more)
    if state.global_step == 2:
        os.kill(os.getpid(), signal.SIGINT)
RunLogger.on_log = press
sys.exit(main(sys.argv[1:]))
"""
"""Ctrl-C after the first step: a checkpoint is written at the end of the second."""


KILLED = """
import os, signal, sys
from pathlib import Path
from internal_policy.__main__ import main
from internal_policy.train.bupo import BuPOTrainer
save = BuPOTrainer._save_optimizer_and_scheduler
def kill(self, folder):
    save(self, folder)
    if self.state.global_step == 4:
        (Path(folder) / "optimizer.pt").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
BuPOTrainer._save_optimizer_and_scheduler = kill
sys.exit(main(sys.argv[1:]))
"""
"""kill -9 within the second checkpoint, after half of a file."""


@pytest.mark.slow
def test_a_run_killed_within_a_checkpoint_resumes_from_the_one_before(tmp_path, capsys):
    few = [*SHORT, "--layer", "3", "--internal-steps", "2", "--steps", "6", "--scan-every", "0", "--save-every", "2"]
    weights, killed = Path("model") / "model.safetensors", tmp_path / "killed"
    assert main(["train", *few, "--output", str(tmp_path / "whole")]) == 0
    words = [sys.executable, "-c", KILLED, "train", *few, "--output", str(killed)]
    assert subprocess.run(words, capture_output=True, timeout=120).returncode == -9
    assert [path.name for path in killed.glob("checkpoint-*")] == ["checkpoint-2"]
    assert main(["train", *few, "--output", str(killed), "--resume"]) == 0
    assert (killed / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def cut(path: Path) -> None:
    """As a full disk leaves a file."""
    path.write_bytes(path.read_bytes()[:100])


@pytest.fixture
def copied(run, tmp_path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "copied"))


def test_an_incomplete_model_is_written_again_without_training(run, copied, capsys):
    cut(copied / "model" / "model.safetensors")
    again = ["train", *SHORT, *LEARN, "--save-every", "2", "--output", str(copied)]
    assert main(again) == 2
    assert "Continue it with --resume" in capsys.readouterr().err
    assert main([*again, "--resume"]) == 0
    assert "model is incomplete and will be written again" in " ".join(capsys.readouterr().err.split())
    weights = Path("model") / "model.safetensors"
    assert (copied / weights).read_bytes() == (run / weights).read_bytes()
    assert len(pd.read_parquet(copied / "metrics.parquet")) == 4


def test_a_run_continues_from_the_newest_whole_checkpoint(run, copied, capsys):
    shutil.rmtree(copied / "model")
    cut(copied / "checkpoint-8" / "optimizer.pt")
    assert main(["train", *SHORT, *LEARN, "--save-every", "2", "--output", str(copied), "--resume"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "checkpoint-8 is incomplete. Training continues from checkpoint-4." in said
    weights = Path("model") / "model.safetensors"
    assert (copied / weights).read_bytes() == (run / weights).read_bytes()


@pytest.mark.slow
def test_a_run_without_a_whole_checkpoint_starts_over(run, copied, capsys):
    shutil.rmtree(copied / "model")
    for checkpoint in copied.glob("checkpoint-*"):
        (checkpoint / "scheduler.pt").unlink()
    assert main(["train", *SHORT, *LEARN, "--save-every", "2", "--output", str(copied), "--resume"]) == 0
    assert "continues from the start" in " ".join(capsys.readouterr().err.split())
    weights = Path("model") / "model.safetensors"
    assert (copied / weights).read_bytes() == (run / weights).read_bytes()


def test_a_layer_is_suggested_by_a_scan(tmp_path, capsys):
    few = ["--prompts", "2", "--samples", "2", "--steps", "2", "--internal-steps", "1", "--scan-every", "0"]
    folder = tmp_path / "suggested"
    assert main(["train", *few, "--max-new-tokens", "48", "--output", str(folder), "--json"]) == 0
    said = capsys.readouterr()
    stages = json.loads((folder / "stages.json").read_text())
    layer = stages["target"]
    assert f"Target layer: {layer}, the last whose FFN raises entropy significantly" in said.err
    assert f"the runner-up is layer {stages['runner_up']}" in said.err
    assert json.loads(said.out)["steps"][0]["trained"] == f"{layer}.resid_post"
    assert not (folder / "dynamics.parquet").exists()


@pytest.mark.slow
def test_scanned_responses_respect_the_files_length_limit(tmp_path):
    folder, file = tmp_path / "short", given(tmp_path, max_completion_length=5)
    few = ["--prompts", "2", "--samples", "2", "--steps", "1", "--internal-steps", "1", "--layer", "3"]
    assert main(["train", *PROBLEMS, *few, "--config", file, "--output", str(folder)]) == 0
    assert pd.read_parquet(folder / "rollouts.parquet")["response_ids"].map(len).max() == 5


def test_grpo_has_no_internal_phase(tmp_path):
    folder = tmp_path / "grpo"
    assert (
        main(["train", *SHORT, "--method", "grpo", "--steps", "1", "--scan-every", "0", "--output", str(folder)]) == 0
    )
    assert pd.read_parquet(folder / "metrics.parquet")["phase"].tolist() == ["final"]
    assert not (folder / "stages.json").exists()  # no layer is watched, so none is looked for


def test_a_run_with_another_method_says_so_in_its_records(tmp_path):
    folder = tmp_path / "run"
    assert main(["train", *SHORT, "--method", "rloo", "--steps", "1", "--scan-every", "0", "-o", str(folder)]) == 0
    assert pd.read_parquet(folder / "metrics.parquet")["method"].tolist() == ["rloo"]
    assert fields.read(str(folder / resume.CONFIG))["method"] == "rloo"
    text = (folder / "model" / card.CARD).read_text()
    assert "- RLOO: step 1 trains the whole policy." in text
    assert "- rloo\n" in text


def test_a_schedule_of_several_readouts_is_trained_recorded_and_drawn(tmp_path):
    folder, phases = tmp_path / "run", "2.resid_post@norm:1,final:1,1.mlp_out:1,final"
    few = [*SHORT, "--method", "rloo", "--steps", "4", "--scan-every", "2", "-o", str(folder)]
    assert main(["train", *few, "--schedule", phases]) == 0
    metrics = pd.read_parquet(folder / "metrics.parquet")
    assert metrics["target"].tolist() == ["2.resid_post@norm", "final", "1.mlp_out", "final"]
    assert fields.read(str(folder / resume.CONFIG))["schedule"] == phases.split(",")
    text = (folder / "model" / card.CARD).read_text()
    assert "- RLOO: step 1 trains 2.resid_post@norm, step 2 the whole policy, step 3 1.mlp_out, step 4 the" in text
    drawn = open_run(folder).plot
    assert len(cast(Any, drawn.training()).layout.shapes) == 3 * len({"entropy", "reward", "clip", "perplexity"})
    assert drawn.dynamics(measure="entropy", site="resid_post").data
    assert "layer 2" in str(cast(Any, drawn.trained()).layout.title.text).lower()


def test_a_phase_that_ends_early_is_recorded(tmp_path):
    few = [*SHORT, "--layer", "2", "--internal-steps", "3", "--steps", "3", "--scan-every", "0"]
    switch = ["--switch-below", "1", "--switch-every", "1"]
    assert main(["train", *few, *switch, "-o", str(tmp_path / "run")]) == 0
    metrics = pd.read_parquet(tmp_path / "run" / "metrics.parquet")
    assert metrics["groups_without_spread"].tolist()[:2] == [1.0, 0.5]
    assert metrics["target"].tolist() == ["2.resid_post", "2.resid_post", "final"]
    assert metrics["alignment"].notna().tolist() == [False, True, False]


def test_a_run_with_frozen_layers_says_so_and_keeps_them(tmp_path, capsys):
    folder = tmp_path / "run"
    few = [*SHORT, "--method", "grpo", "--steps", "2", "--scan-every", "0", "--learning-rate", "1e-2"]  # the first is 0
    assert main(["train", *few, "--frozen-layers", "0-6,embeddings", "-o", str(folder)]) == 0
    assert "Frozen: layers 0-6, embeddings, head." in capsys.readouterr().err  # its embeddings are tied
    assert fields.read(str(folder / resume.CONFIG))["frozen_layers"] == "0-6,embeddings"
    before, after = (
        load_file(path / "model.safetensors") for path in (bundle.DATA / "models/demo-qwen3", folder / "model")
    )
    changed = {name for name in after if not after[name].equal(before[name])}
    assert {name for name in changed if "layers.7." in name}
    assert all("layers.7." in name or name == "model.norm.weight" for name in changed)


def test_the_configuration_of_a_run_repeats_its_method(tmp_path):
    for method in ("grpo", "rloo", "dr-grpo", "reinforce++"):
        (tmp_path / "config.yaml").write_text(card.as_yaml(configured("--method", method)))
        read = fields.read(str(tmp_path / "config.yaml"))
        options = train_configuration.resolved(Train(), read)
        again = train_configuration.configured(options, read, Path("unused"), None)
        assert (options.method, again) == (method, configured("--method", method))
        other = train_configuration.resolved(Train(method="grpo"), read)
        assert train_configuration.configured(other, read, Path("unused"), None).loss_type == "grpo"


@pytest.mark.parametrize(
    ("more", "warned"),
    [([], True), (["--prompt-suffix", r"Use \boxed{}."], False), (["--system-prompt", r"Use \boxed{}."], False)],
)
def test_problems_that_do_not_ask_for_a_box_are_pointed_out(more, warned, tmp_path, capsys, monkeypatch):
    def loaded(*_, **__):
        raise InputError("The model is loaded.")

    monkeypatch.setattr(loading, "load_model", loaded)
    mine = shutil.copytree(bundle.DATA / "models" / "demo-qwen3", tmp_path / "mine")
    words = ["train", *SHORT, "--layer", "3", "--model", str(mine), "--output", str(tmp_path / "run"), *more]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert ("No prompt asks for an answer in \\boxed{}" in said) == warned
    assert "The model is loaded." in said


def test_bundled_problems_do_not_ask_for_a_box():
    tokenizer = tokenizers.load_tokenizer(Train().checkpoint)
    assert not training.asks_for_boxes(tokenizer, train._problems(Train()), {})  # the bundled models box by themselves


def test_what_a_loss_has_no_ratio_for_is_left_out(capsys):
    row = {"step": 1, "phase": "final", "target": "final", "reward": 0.5, "entropy": 1.0, "clip_fraction": math.nan}
    assert train_report.in_words(row) == "whole policy: reward 0.50, entropy 1.000"
    rates = {"generation_tokens_per_second": 1234.5, "training_tokens_per_second": 56.7, "peak_memory": 2.26e9}
    said = "sampling 1,234 tokens/s, training 57 tokens/s, MFU 31%, 2.3 GB"
    assert train_report.in_words({**row, **rates, "mfu": 0.31}).endswith(f"entropy 1.000, {said}")
    metrics = pd.DataFrame([row]).drop(columns="clip_fraction")
    train_report.trained(Path("run"), metrics, 1.0, "evaluate")
    said = capsys.readouterr().out
    assert "nan" not in said
    assert "clip" not in said
    train_report.trained(Path("run"), metrics, 1.0, "evaluate", as_json=True)
    (found,) = json.loads(capsys.readouterr().out)["steps"]
    assert (found["steps"], found["clip_fraction"]) == ("1", None)


def test_the_table_has_a_column_for_each_reward_and_no_command_without_answers(capsys):
    row = {"step": 1, "target": "final", "reward": 0.5, "reward/box": 0.25, "reward/brief": 0.75}
    train_report.trained(Path("run"), pd.DataFrame([row]), 1.0, None)
    said = capsys.readouterr().out
    assert ["steps", "trained", "reward", "box", "brief"] in [line.split() for line in said.splitlines()]
    assert "To evaluate" not in said


def test_the_hint_evaluates_what_was_trained_on():
    options = Train(
        problems=("amc.jsonl", "org/math@test"),
        prompt_suffix="Box it.",
        chat_template_kwargs='{"enable_thinking": false}',
    )
    words = shlex.split(train_report.evaluation(dataclasses.asdict(options), Path("runs/mine")))
    asked: Any = parsing.parse(COMMANDS, words[1:])
    assert (asked.model, asked.problems) == ("runs/mine/model", ("amc.jsonl", "org/math@test"))
    assert (asked.prompt_suffix, asked.template_arguments) == ("Box it.", {"enable_thinking": False})
    assert "sums-heldout.jsonl" in train_report.evaluation({}, Path("runs/mine"))


@pytest.mark.parametrize("trained_on", [(), ("amc.jsonl",)])
def test_the_hint_evaluates_on_the_problems_of_the_exams(trained_on):
    options = Train(problems=trained_on, eval_problems=("aime.jsonl", "math.jsonl"))
    words = shlex.split(train_report.evaluation(dataclasses.asdict(options), Path("run")))
    asked: Any = parsing.parse(COMMANDS, words[1:])
    assert asked.problems == ("aime.jsonl", "math.jsonl")


# options, files and defaults


def test_options_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = {"learning_rate": 3e-6, "temperature": 0.9, "epsilon": 0.3}
    config = configured("--learning-rate", "5e-6", file=file)
    assert (config.learning_rate, config.temperature, config.epsilon) == (5e-6, 0.9, 0.3)
    assert config.max_completion_length == 64


def test_a_step_is_a_generation_batch_whatever_the_updates():
    config = configured("--prompts", "8", "--samples", "4", "--updates", "4", "--micro-batch", "4", "--steps", "10")
    assert config.generation_batch_size == 32
    assert config.updates_per_step == 4
    assert (config.max_steps, config.logging_steps, config.save_steps) == (40, 4, 80)


def test_a_sixth_of_the_steps_is_internal_by_default():
    assert configured("--steps", "60").schedule == ["3.resid_post:10"]
    assert configured("--steps", "60", "--site", "attn_out", "--internal-steps", "7").schedule == ["3.attn_out:7"]
    assert configured("--method", "grpo").schedule == []


def test_a_schedule_in_the_file_is_used_unless_a_layer_is_given():
    file = {"schedule": ["1.resid_post:3", "5.mlp_out:4"]}
    assert configured(file=file, layer=None).schedule == file["schedule"]
    assert configured("--layer", "2", "--internal-steps", "9", file=file, layer=2).schedule == ["2.resid_post:9"]


def test_the_files_logging_fields_are_kept():
    config = configured("--updates", "2", file={"logging_steps": 3, "logging_first_step": True})
    assert (config.logging_steps, config.logging_first_step) == (3, True)
    assert configured(file={"logging_strategy": "no"}).logging_strategy == "no"


def test_the_files_template_arguments_are_kept_unless_the_option_is_given():
    file = {"chat_template_kwargs": {"enable_thinking": False}}
    assert configured(file=file).chat_template_kwargs == {"enable_thinking": False}
    option = '{"enable_thinking": true}'
    assert configured("--chat-template-kwargs", option, file=file).chat_template_kwargs == {"enable_thinking": True}


def test_the_file_sets_the_folder_and_the_template_arguments(tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{{ greeting }}: {{ messages[0].content }} =")
    folder = tmp_path / "named"
    file = given(tmp_path, output_dir=str(folder), chat_template_kwargs={"greeting": "Ahoy"}, max_completion_length=5)
    few = ["--prompts", "2", "--samples", "2", "--steps", "1", "--internal-steps", "1", "--layer", "3"]
    assert main(["train", *PROBLEMS, *few, "--limit", "4", "--config", file, "--chat-template", str(template)]) == 0
    prompt = pd.read_parquet(folder / "rollouts.parquet")["prompt_ids"][0]
    tokenizer = tokenizers.load_tokenizer(Train().checkpoint)
    assert str(tokenizer.decode(prompt)).startswith("Ahoy: ")


@pytest.mark.slow
def test_a_layer_is_suggested_through_the_readout_that_is_trained(tmp_path, monkeypatch):
    asked = []
    found = {"target": 2, "runner_up": None, "mean": 1.0, "low": 0.5, "high": 1.5, "spans": [["exploration", 0, 2]]}
    monkeypatch.setattr(training, "suggested", lambda *given: asked.append(given[-1]) or found)
    few = [*SHORT, "--steps", "1", "--internal-steps", "1", "--scan-every", "0", "--readout", "norm"]
    assert main(["train", *few, "--output", str(tmp_path / "run")]) == 0
    assert asked == ["norm"]


def test_a_few_responses_are_called_too_few_to_choose_a_layer(monkeypatch):
    found = {"target": None, "runner_up": 6, "spans": [["integration", 0, 7]], "problems": 4}
    monkeypatch.setattr(training, "stages", lambda *_: found)
    setup: Any = None
    with pytest.raises(InputError, match=r"^4 rollouts are too few .* Choose a layer with --layer\.$"):
        train._suggested(Train(method="bupo"), setup, setup)


def test_lora_without_peft_is_refused_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load_model", None)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert main(["train", "--lora", "--layer", "3", "--output", str(tmp_path / "run")]) == 2
    assert "This needs peft, which isn't installed." in capsys.readouterr().err


def test_max_steps_of_the_file_counts_updates():
    file = {"max_steps": 12, "per_device_train_batch_size": 8, "steps_per_generation": 2}
    config = configured(file=file)
    assert config.max_steps == 12
    assert config.schedule == ["3.resid_post:1"]  # a sixth of its 6 steps of 2 updates


def test_models_that_are_not_bundled_get_the_papers_learning_rate():
    assert configured("--model", "Qwen/Qwen3-4B").learning_rate == 1e-6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "0"], "--steps is 0. Use a number from 1"),
        (["--learning-rate", "0"], "--learning-rate is 0.0. Use a number above 0"),
        (["--temperature", "inf"], "--temperature is inf. Use a number above 0 that is finite."),
        (["--scan-every", "-1"], "--scan-every is -1"),
        (["--samples", "99999999999"], "--samples is 99999999999. Use a number from 1 to 2147483647"),
        (["--seed", "-1"], "--seed is -1. Use a number from 0 to 4294967295"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0. Use a number from 1"),
        (["--method", "ppo"], "There is no method ppo: PPO trains a value model too"),
        (["--method", "grpo", "--internal-steps", "3"], "--internal-steps only applies to --method bupo"),
        (["--prompts", "3", "--samples", "3", "--updates", "2", "--layer", "1"], "A step has 9 responses"),
        (["--samples", "1", "--layer", "1"], "num_generations is 1"),
        (["--layer", "8"], "layers are 0 to 7"),
        (["--layer", "1", "--prompts", "500"], "A step takes 500 problems, more than the 410 given."),
        (
            ["--layer", "3", "--steps", "4", "--internal-steps", "5"],
            "schedule takes 5 steps, but training stops after 4",
        ),
        (["--layer", "3", "--limit", "3"], "A step takes 16 problems, more than the 3 given."),
        (["--layer", "3", "--max-new-tokens", "9999"], "2048 positions"),
        (
            ["--report-to", "papyrus"],
            "--report-to papyrus isn't installed. Choose ",
        ),
        (["--report-to", "trackio"], "Run `pip install trackio`, choose "),
        (["--report-to", ""], "--report-to is empty"),
        (["--report-to", "none,"], "--report-to is empty"),
        (["--system-prompt", "Think.", "--chat-template", "none"], "--system-prompt needs a chat template"),
        (["--resume"], "no run in"),
        (["--config", "nowhere.yaml"], "error: There is no file nowhere.yaml. Check the path."),
        (["--problems", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_invalid_options_are_refused_in_one_sentence_before_training(arguments, said, tmp_path, capsys):
    assert main(["train", "--output", str(tmp_path / "run"), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layer", "8"], "There is no hook point 8.resid_post: the model's layers are 0 to 7."),
        (
            ["--schedule", "2.resid_post:4,8.mlp_out:4"],
            "There is no hook point 8.mlp_out: the model's layers are 0 to 7.",
        ),
        (["--schedule", "2.resid_post"], "'2.resid_post' isn't a phase. Write HOOK POINT[@READOUT][*WEIGHT]:STEPS"),
        (["--schedule", "final,2.resid_post:3"], "final without a number of steps must be the last phase"),
        (["--schedule", "2.resid_post:300"], "The schedule takes 300 steps, but training stops after 120"),
        (
            ["--schedule", "2.resid_post:3", "--layer", "2"],
            "--schedule says what is trained and how long. Remove --layer.",
        ),
        (["--schedule", "2.resid_post:3", "--internal-steps", "2"], "Remove --internal-steps."),
        (["--schedule", "2.resid_post:3", "--site", "mlp_out"], "Remove --site."),
        (["--switch-every", "3", "--layer", "1"], "--switch-every has no effect without --switch-below"),
        (["--target", "align", "--layer", "1"], "--layer says what is trained, so --target has no effect"),
        (["--target", "align", "--schedule", "1.resid_post:3"], "--schedule says what is trained, so --target has no"),
        (["--target", "align", "--method", "grpo", "--scan-every", "0"], "--target has no effect with --method grpo"),
        (["--merge", "--layer", "1"], "--merge needs an adapter. Add --lora"),
        (["--eval-problems", EXAM, EXAM, "--layer", "1"], "is given twice with --eval-problems"),
        (["--schedule", "2.resid_post:3", "--method", "grpo"], "which is --method bupo. Remove --method grpo."),
        (["--layer", "8", "--method", "grpo"], "There is no hook point 8.resid_post: the model's layers are 0 to 7."),
        (["--frozen-layers", "8"], "frozen_layers is 8, but there is no layer 8: they are 0 to 7."),
        (["--frozen-layers", "0-3", "--layer", "3"], "3.resid_post trains layers 0 to 3, which are all frozen"),
        (["--frozen-layers", "top"], "'top' isn't a part of a model. Write layers and embeddings, norm, head"),
        (["--frozen-layers", "1", "--only-layers", "2"], "Remove frozen_layers"),
        (["--layer-lr-scale", "0"], "--layer-lr-scale is 0.0. Use a number above 0"),
        (["--method", "grpo", "--layer-lr-scale", "2"], "layer_lr_scale needs a schedule"),
        (["--layer", "-1"], "--layer is -1. Use a number from 0, which is the first layer."),
        (["--max-new-tokens", "9999"], "2048 positions"),
        (["--limit", "3"], "A step takes 16 problems, more than the 3 given."),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_it_is_loaded(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load_model", None)
    assert main(["train", "--output", str(tmp_path / "run"), *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("use_vllm: true", "use_vllm needs vLLM, which isn't installed"),
        ("deepspeed: {zero_optimization: {stage: 2}}", "deepspeed isn't installed"),
        ("report_to: wandb", "Weights & Biases has no API key. Run `wandb login`, set WANDB_MODE=offline"),
    ],
)
def test_missing_packages_and_keys_are_named_before_the_model_is_loaded(text, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load_model", None)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(login=lambda *, prompt, verify: prompt or verify))
    monkeypatch.setattr(defaults, "get_available_reporting_integrations", lambda: ["wandb"])
    monkeypatch.delenv("WANDB_MODE", raising=False)
    path, folder = tmp_path / "given.yaml", tmp_path / "run"
    path.write_text(text)
    few = [*PROBLEMS, "--layer", "3", "--prompts", "2", "--scan-every", "0"]
    assert main(["train", *few, "--config", str(path), "--output", str(folder)]) == 2
    assert said in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("use_liger_kernel: true", "has use_liger_kernel: True, which can't be used: use_liger_kernel bypasses"),
        ("optim: sgdd", "has optim: sgdd, which can't be used"),
        ("lr_scheduler_type: wavy", "has lr_scheduler_type: wavy, which can't be used"),
        ("report_to: papyrus", "has report_to: papyrus, which isn't installed"),
        ("lr_scheduler_type: cosine_with_min_lr", "made training fail before its first step:"),
    ],
    ids=lambda text: text[:40],
)
def test_a_file_whose_fields_cannot_be_combined_is_refused_in_one_sentence(text, said, tmp_path, capsys):
    path = tmp_path / "given.yaml"
    path.write_text(text)
    few = [*PROBLEMS, "--layer", "3", "--prompts", "2", "--scan-every", "0"]
    assert main(["train", *few, "--config", str(path), "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error
    *before, refusal = error.splitlines()
    assert refusal.startswith(f"error: {path} ")
    assert before in ([], ["Training in 1 process."])


MINE = """
from internal_policy.train.dataset import texts

def brief(completions, topic, **columns):
    if columns["trainer_state"].global_step == 1:
        return [1 / 0 for _ in completions]
    return [len(text) / 100 if name == "sums" else None for text, name in zip(texts(completions), topic)]
"""


@pytest.fixture
def mine(tmp_path) -> list[str]:
    """A file with a reward that fails in the second step, and problems with the column that it needs."""
    (tmp_path / "mine.py").write_text(MINE)
    rows = ({"problem": f"What is {n} + {n + 1}?", "answer": str(2 * n + 1), "topic": "sums"} for n in range(4))
    jsonl(tmp_path / "sums.jsonl", *rows)
    few = ["--prompts", "2", "--samples", "2", "--layer", "1", "--internal-steps", "1", "--scan-every", "0"]
    few += ["--max-new-tokens", "4"]
    return ["train", "--problems", str(tmp_path / "sums.jsonl"), *few, "--output", str(tmp_path / "run")]


def test_a_reward_of_the_user_is_trained_on_and_its_changed_file_refuses_resume(mine, tmp_path, capsys):
    named = ["--reward", "box", "--reward", f"{tmp_path / 'mine.py'}:brief=0.5", "--save-every", "1"]
    assert main([*mine, *named, "--steps", "2"]) == 2
    said = capsys.readouterr().err
    where = f"(mine.py, line {MINE.splitlines().index('        return [1 / 0 for _ in completions]') + 1})"
    assert f"The reward brief failed at response 1 of 4 {where}: ZeroDivisionError: division by zero." in said
    assert "Traceback" not in said
    metrics = pd.read_parquet(tmp_path / "run" / "metrics.parquet")
    assert metrics["reward"].item() == pytest.approx((metrics["reward/box"] + 0.5 * metrics["reward/brief"]).item())
    assert metrics["reward/brief"].item() > 0
    (tmp_path / "mine.py").write_text(MINE.replace("1 / 0", "0.0"))
    assert main([*mine, *named, "--steps", "2", "--resume"]) == 2
    assert "a run with a different --reward" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--reward", "bix"], "There is no reward 'bix'. Use box, last-number, format"),
        (["--reward", "nowhere.py"], "There is no file nowhere.py"),
        (["--reward", "mine.py:long"], "mine.py has no function long. Choose from mine.py:brief."),
        (["--reward", "mine.py", "--problem-column", "topic"], "needs 'topic', which the problems don't have"),
        (["--reward", "mine.py", "--reward", "mine.py:mine"], "Two rewards are called mine"),
        (["--reward", "box=0"], "All rewards have weight 0"),
        (["--reward", "nowhere.inside:brief"], "There is no module nowhere.inside"),
        (["--config", "weights.yaml"], "reward_weights is [1.0, 2.0], but needs a finite weight for each of box"),
    ],
)
def test_rewards_that_cannot_be_used_are_refused_before_the_model_is_loaded(more, said, mine, monkeypatch, capsys):
    monkeypatch.chdir(Path(mine[-1]).parent)
    monkeypatch.setattr(loading, "load_model", None)
    Path("weights.yaml").write_text("reward_weights: [1.0, 2.0]")
    assert main([*mine, *more]) == 2
    assert said in capsys.readouterr().err


def test_several_files_of_problems_are_mixed_and_each_problem_knows_its_own(mine, tmp_path, monkeypatch):
    jsonl(tmp_path / "words.jsonl", {"problem": "Add 2 to 3.", "answer": "5", "level": 1})
    options = Train(problems=(str(tmp_path / "words.jsonl"), str(tmp_path / "sums.jsonl")))
    found = train._problems(options)
    assert [problem.columns["problems"] for problem in found] == ["sums", "sums", "words", "sums", "sums"]
    assert found[2].columns == {"answer": "5", "level": 1, "problems": "words"}
    monkeypatch.chdir(tmp_path)
    question = train._question(options, {})
    again = train._question(Train(problems=("words.jsonl", "sums.jsonl")), {})
    assert resume.difference(question, again) is None
    jsonl(tmp_path / "words.jsonl", {"problem": "Add 2 to 4.", "answer": "6"})
    assert resume.difference(question, train._question(options, {})) == "--problems"


def test_folders_with_anything_else_are_refused(run, tmp_path, capsys):
    again = ["train", *SHORT, *LEARN, "--save-every", "2"]
    assert main([*again, "--output", str(run)]) == 2
    assert "finished run" in capsys.readouterr().err
    assert main(["train", *SHORT, *LEARN, "--seed", "5", "--output", str(run), "--resume"]) == 2
    assert "a different --seed" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    assert main([*again, "--output", str(tmp_path / "mine")]) == 2
    assert "contains no training run" in capsys.readouterr().err


def test_a_problem_without_an_answer_is_refused(tmp_path, capsys):
    path = tmp_path / "problems.jsonl"
    jsonl(path, *({"problem": f"What is {n}?"} for n in range(20)))
    assert main(["train", "--layer", "1", "--problems", str(path), "--output", str(tmp_path / "run")]) == 2
    assert "has no answer" in capsys.readouterr().err


def test_the_time_of_a_run_is_divided_among_its_activities():
    metrics = pd.DataFrame(
        {
            "seconds": [4.0, 4.0],
            "generation_seconds": [1.0, 2.0],
            "rewards_seconds": 0.0,
            "scoring_seconds": 0.5,
            "training_seconds": 1.5,
            "scan_seconds": [float("nan"), 1.0],
        }
    )
    exams = pd.DataFrame({"step": [0, 0, 2], "seconds": [0.5, 0.5, 0.5]})
    shares = {"sampling": 0.3, "rewards": 0, "scoring": 0.1, "training": 0.3, "scans": 0.1, "exams": 0.1, "other": 0.1}
    assert train_report.times(metrics, exams) == pytest.approx(shares)
    assert train_report.times(metrics[["seconds"]], exams) == {}
