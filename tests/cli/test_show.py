"""Listing and showing scans."""

import dataclasses
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import jsonl, one_sentence

from internal_policy import bundle
from internal_policy.__main__ import main
from internal_policy.cli import console, train_report
from internal_policy.cli.train_options import Train
from internal_policy.look import summary
from internal_policy.look.view import View
from internal_policy.train import checkpoints

pytestmark = pytest.mark.usefixtures("here")


def test_scans_are_listed_shown_and_exported(asked, here, capsys):
    assert main([*asked, "--readout", "both"]) == 0
    capsys.readouterr()
    assert main(["ls", "--json"]) == 0
    listed = [row for row in json.loads(capsys.readouterr().out) if not row["bundled"]]
    assert [(row["state"], row["rollouts"]) for row in listed] == [("finished", 10)]
    name = listed[0]["name"]
    assert main(["show", name[:5], "--readout", "norm", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["entropy"]) == 3 + 1
    assert main(["ls"]) == 0
    assert name in capsys.readouterr().out
    assert main(["export", name[:5], "--table", "policies"]) == 0
    exported = pd.read_csv(here / "policies.csv")
    assert len(exported) == listed[0]["tokens"] * 2 * 4
    assert len(json.loads(str(exported["resid_post.topk_ids"].dropna().iloc[0]))) == 5


@pytest.mark.parametrize(("rewards", "said"), [([-1, 0.5], ", mean reward -0.25"), ([1, 0], ", 50.0% correct")])
def test_show_gives_the_mean_reward_where_rewards_are_not_0_or_1(rewards, said, here, capsys):
    rows = [{"prompt": "1 + 1?", "response": "2", "reward": reward} for reward in rewards]
    jsonl(here / "r.jsonl", *rows)
    assert main(["scan", "--rollouts", "r.jsonl", "--layers", "0", "--sites", "resid_post"]) == 0
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("width", [50, 60, 80, 200])
def test_no_word_or_number_of_a_scan_is_cut_however_wide_the_terminal_is(width, monkeypatch, capsys):
    monkeypatch.setattr(console.out, "_width", width)
    assert main(["show", "demo-qwen3"]) == 0
    printed = capsys.readouterr().out
    assert "…" not in printed
    table = summary.by_layer(View(bundle.DATA / "scans" / "demo-qwen3"), sites=summary.BRIEF)
    for row in summary.cells(table)[1:]:
        assert " ".join(row).split() in [line.split() for line in printed.splitlines()]


def test_on_a_terminal_findings_break_between_words_and_commands_stay_whole(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console.out, "_width", 40)
    monkeypatch.setattr(console.out, "_file", screen)
    monkeypatch.setattr(console.out, "_force_terminal", True)
    assert main(["show", "demo-qwen3"]) == 0
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    assert "Entropy falls most in layer 0: from 5.98" in lines
    assert "  internal-policy plot demo-qwen3 change -o change.html" in lines


def test_the_next_commands_of_a_scan_run(here, capsys):
    assert main(["show", "demo-qwen3"]) == 0
    printed = capsys.readouterr().out.splitlines()
    commands = printed[printed.index("Next:") + 1 :]
    assert len(commands) == 2
    for command in commands:
        name, *words = shlex.split(command)
        assert (name, main(words)) == ("internal-policy", 0)
    assert (here / "change.html").exists()


def test_json_has_the_findings_as_sentences(capsys):
    assert main(["show", "demo-qwen3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["findings"]
    assert found[0].startswith("Entropy falls most in layer 0")


@pytest.mark.parametrize(
    ("answer", "response", "said"),
    [
        (None, "Blue light.", "1 rollout, not marked; "),
        ("Because air scatters blue light most.", "Blue light.", "1 rollout, not marked; "),
        ("4", "It is 4.", "1 rollout, not marked; "),
        ("4", "It is 4.", r"No response has an answer in \boxed{}, so none was marked."),
        ("4", r"\boxed{5}", "1 rollout, 0.0% correct; "),
    ],
)
def test_what_could_not_be_marked_is_not_called_incorrect(answer, response, said, here, capsys):
    jsonl(here / "r.jsonl", {"prompt": "Why?", "response": response, **({"answer": answer} if answer else {})})
    assert main(["scan", "--rollouts", "r.jsonl", "--layers", "0", "--sites", "resid_post"]) == 0
    assert said in capsys.readouterr().out


def test_show_names_the_target_layer_its_interval_and_the_runner_up(here, capsys):
    assert main(["show", "demo-qwen3"]) == 0
    said = "Target layer: 6, the last whose FFN raises entropy significantly (+2.34 nats, 2.04 to 2.55, with 95%"
    assert said in capsys.readouterr().out
    assert main(["show", "demo-qwen3", "--json"]) == 0
    suggested = json.loads(capsys.readouterr().out)["suggested"]
    assert (suggested["target"], suggested["runner_up"]) == (6, 5)


def test_a_bundled_training_run_is_shown_by_its_name_in_ls(capsys):
    assert main(["show", "experiments/bupo"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "BuPO: steps 1 to 12 train 6.resid_post, steps 13 to 36 the whole policy." in printed
    assert "reward 1 to 3 0.234 34 to 36 0.292" in printed
    assert "7 0.024 0.016 -0.204 -0.315 2.817 3.066 final 0.107 0.075 0.630 0.677" in printed
    assert printed.endswith("Next: internal-policy dashboard")


def test_a_training_run_elsewhere_is_named_to_the_dashboard(here, capsys):
    shutil.copytree(bundle.DATA / "experiments" / "bupo", here / "mine")
    assert main(["show", "mine"]) == 0
    printed = capsys.readouterr().out
    assert "internal-policy dashboard" in printed
    assert "mine" in printed.split("internal-policy dashboard")[1]


def test_columns_of_a_training_run_stay_apart_in_80_columns(monkeypatch, capsys):
    monkeypatch.setattr(console.out, "_width", 80)
    assert main(["show", "experiments/bupo"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    (header,) = [line for line in lines if line.split() == ["steps", "first", "steps", "last"]]
    (reward,) = [line for line in lines if line.split()[:1] == ["reward"]]
    assert re.split("  +", reward.strip()) == ["reward", "1 to 3", "0.234", "34 to 36", "0.292"]
    assert len(header) == len(reward)


def test_tokens_per_response_have_one_decimal(capsys):
    assert main(["show", "experiments/bupo"]) == 0
    assert "tokens per response 1 to 3 35.8 34 to 36 36.2" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("readout", "said"),
    [
        ("foo", "There is no readout 'foo'. Choose from raw."),
        ("norm", "only with raw. Scan again with --readout both."),
        ("tuned", "only with raw. Scan again with --lens FILE."),
    ],
)
def test_a_readout_that_a_scan_lacks_is_refused_with_its_own_remedy(readout, said, folder, problems, here, capsys):
    words = ["--model", str(folder), "--problems", str(problems), "--limit", "1", "--max-new-tokens", "2"]
    assert main(["scan", *words, "--layers", "0", "--readout", "raw", "-o", "mine"]) == 0
    assert main(["show", "mine", "--readout", readout]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("width", [50, 80, 200])
def test_no_word_or_number_of_a_training_run_is_cut(width, monkeypatch, capsys):
    monkeypatch.setattr(console.out, "_width", width)
    assert main(["show", "experiments/bupo"]) == 0
    assert "…" not in capsys.readouterr().out


def test_json_of_a_training_run_has_its_schedule_progress_and_layers(capsys):
    assert main(["show", "experiments/grpo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schedule"] == [{"target": "final", "first": 1, "last": 36}]
    assert found["progress"][0]["measure"] == "reward"
    assert found["layers"][0].keys() >= {"layer", "layer output, step 0", "KL from layer 6, step 36"}
    assert (found["method"], found["steps"], found["evaluations"]) == ("grpo", 36, [])


def run_in(folder: Path, **files: pd.DataFrame) -> Path:
    folder.mkdir()
    for name, table in files.items():
        table.to_parquet(folder / f"{name}.parquet")
    return folder


METRICS = pd.DataFrame({"step": [1], "reward": [0.5], "phase": ["final"], "target": ["final"]})


def test_a_run_of_one_step_is_shown_with_its_evaluation(here, capsys):
    curves = pd.DataFrame({"label": ["mine"], "k": [1], "mean": [0.25], "low": [0.1], "high": [0.5]})
    run_in(here / "mine", metrics=METRICS, pass_at_k=curves)
    assert main(["show", "mine"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "mine: 1 step GRPO: step 1 trains the whole policy. " in printed
    assert "mine 1 25.0 10.0 to 50.0" in printed


def test_an_interrupted_run_says_how_it_goes_on_and_one_without_a_step_is_refused(here, capsys):
    run_in(here / "mine", metrics=METRICS)
    (here / "mine" / "run.json").write_text('{"model": "demo-qwen3"}')
    assert main(["show", "mine"]) == 0
    assert "Unfinished: It has done 1 step. Run its train command again." in capsys.readouterr().out
    (here / "mine" / "metrics.parquet").unlink()
    assert main(["show", "mine"]) == 2
    said = "error: mine has no finished step to show. It has done 0 steps. Run its train command again.\n"
    assert capsys.readouterr().err == said


def test_a_finished_run_names_its_best_model_and_evaluates_as_train_does(here, capsys):
    folder = run_in(here / "mine", metrics=METRICS)
    for name in ("model", "best"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").touch()
        checkpoints.seal(folder / name)
    asked = dataclasses.asdict(Train(problems=("a.jsonl",), eval_problems=("b c.jsonl",), prompt_suffix="Box it."))
    hint = train_report.evaluation(asked, Path("mine"))
    for record, next_up in (asked, [hint]), ({**asked, "answered": False}, []):
        (folder / "run.json").write_text(json.dumps(record, default=str))
        assert main(["show", "mine"]) == 0
        lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
        assert lines[lines.index("Next:") + 1 :] == [*next_up, "internal-policy scan --model mine/model"]
        assert "Model of the best exam: mine/best" in lines
    assert main(["show", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best_model"] == "mine/best"


def test_a_readout_is_refused_for_a_training_run(here, capsys):
    assert main(["show", "experiments/bupo", "--readout", "norm"]) == 2
    one_sentence(capsys, "--readout only applies to scans, but experiments/bupo is a training run.", here)
