"""`scan --checkpoints` scans a series of checkpoints over the same responses into one study."""

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import jsonl, moved, saved, tiny_model
from huggingface_hub import constants, hf_api

from internal_policy.__main__ import main
from internal_policy.look.study import open_study
from internal_policy.scans import scan, store, study

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.filterwarnings("ignore::FutureWarning")]
TOLD = ["--layers", "0,2", "--sites", "resid_post,mlp_out", "--readout", "raw", "--measures", "entropy,norm"]
IDS = [{"prompt_ids": [5, 6, 7], "response_ids": [8, 9, 10, n]} for n in range(11, 16)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer) -> Path:
    """A folder with two checkpoints of a tiny model."""
    place = tmp_path_factory.mktemp("run")
    saved(tiny_model("llama").float(), tokenizer, place / "checkpoint-10")
    saved(moved(tiny_model("llama")).float(), tokenizer, place / "checkpoint-20")
    return place


@pytest.fixture
def asked(trained, here) -> list[str]:
    rollouts = jsonl(here / "given.jsonl", *IDS)
    return ["scan", "--checkpoints", str(trained), "--rollouts", str(rollouts), *TOLD]


def measured(monkeypatch) -> list[int]:
    """The sizes of the batches that are measured from now on."""
    sizes, whole = [], scan.Scanner.measured

    def noted(self, rollouts, *more):
        sizes.append(len(rollouts))
        return whole(self, rollouts, *more)

    monkeypatch.setattr(scan.Scanner, "measured", noted)
    return sizes


def test_a_study_has_the_scan_of_each_checkpoint(asked, trained, capsys):
    assert main([*asked, "--output", "mine"]) == 0
    printed = capsys.readouterr()
    assert "2 checkpoints of" in printed.out
    assert "Checkpoint 2 of 2: checkpoint-20" in printed.err
    found = open_study("mine")
    assert found.steps == [10, 20]
    assert found.checkpoints["name"].tolist() == ["checkpoint-10", "checkpoint-20"]
    assert main(["scan", "--model", str(trained / "checkpoint-20"), *asked[3:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cached"]  # it is a scan like any other
    alone = found.scan(20).means()
    mine = found.means()
    assert mine[mine["step"] == 20]["mean"].tolist() == alone["mean"].tolist()


def test_a_scan_that_is_in_the_cache_is_not_measured_again(asked, trained, monkeypatch):
    assert main(["scan", "--model", str(trained / "checkpoint-10"), *asked[3:]]) == 0
    sizes = measured(monkeypatch)
    assert main(asked) == 0
    assert sizes == [len(IDS)]
    assert main(asked) == 0
    assert sizes == [len(IDS)]


def test_an_interrupted_study_continues_and_takes_in_new_checkpoints(asked, trained, tmp_path, monkeypatch):
    place = shutil.copytree(trained, tmp_path / "run")
    asked[2] = str(place)
    later = (place / "checkpoint-20").rename(tmp_path / "later")
    assert main([*asked, "--output", "mine"]) == 0
    later.rename(place / "checkpoint-20")
    with monkeypatch.context() as patch:
        patch.setattr(study, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main([*asked, "--output", "mine"]) == 130
    assert open_study("mine").steps == [10]
    sizes = measured(monkeypatch)
    assert main([*asked, "--output", "mine"]) == 0
    assert open_study("mine").steps == [10, 20]
    assert sizes == []  # its scan was whole


def test_the_first_checkpoint_answers_once_for_all(trained, problems, monkeypatch, capsys):
    words = ["scan", "--checkpoints", str(trained), "--problems", str(problems), "--max-new-tokens", "4", *TOLD]
    assert main([*words, "--output", "mine", "--limit", "3"]) == 0
    assert "Sampling responses from checkpoint-10, once for all checkpoints." in capsys.readouterr().err
    record = study.record(Path("mine"))
    assert (record["rollouts"], record["responses"]) == (3, "sampled from checkpoint-10")
    assert main([*words, "--output", "other", "--limit", "3", "--sampled-from", "20"]) == 0
    assert study.record(Path("other"))["responses"] == "sampled from checkpoint-20"
    one, two = (store.read_part(Path(name) / study.ROLLOUTS)["response_ids"] for name in ("mine", "other"))
    assert one != two


def test_a_checkpoint_that_is_not_whole_is_skipped_with_a_note(asked, trained, tmp_path, capsys):
    place = shutil.copytree(trained, tmp_path / "run")
    weights = place / "checkpoint-20" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    asked[2] = str(place)
    assert main([*asked, "--output", "mine"]) == 0
    assert "Skipping checkpoint-20, which isn't complete: model.safetensors is cut short." in capsys.readouterr().err
    assert open_study("mine").steps == [10]


def test_adapters_share_their_base(asked, trained, tmp_path):
    import peft

    place = tmp_path / "adapters"
    for step in (1, 2):
        base = tiny_model("llama").float()
        base.config.name_or_path = base.name_or_path = str(trained / "checkpoint-10")
        adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"]))
        adapted = moved(adapted) if step == 2 else adapted
        adapted.save_pretrained(place / f"checkpoint-{step}")
    asked[2] = str(place)
    assert main([*asked, "--output", "mine"]) == 0
    assert main([*asked[:2], str(trained), *asked[3:], "--output", "whole"]) == 0
    means, whole = open_study("mine").means(), open_study("whole").means()
    first, base = means[means["step"] == 1]["mean"], whole[whole["step"] == 10]["mean"]
    assert first.to_numpy() == pytest.approx(base.to_numpy(), rel=1e-5)  # a new adapter changes nothing
    assert means[means["step"] == 2]["mean"].tolist() != first.tolist()


def test_the_tags_of_a_hub_model_are_scanned_at_their_commits(asked, trained, tmp_path, monkeypatch):
    commits = {"step10": "1" * 40, "step20": "2" * 40, "main": "3" * 40}
    for step in (10, 20):
        snapshot = tmp_path / "hub" / "models--org--model" / "snapshots" / commits[f"step{step}"]
        shutil.copytree(trained / f"checkpoint-{step}", snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    refs = [hf_api.GitRefInfo(name=name, ref=f"refs/tags/{name}", target_commit=to) for name, to in commits.items()]
    listing = hf_api.GitRefs(branches=[], converts=[], tags=refs)
    monkeypatch.setattr(hf_api.HfApi, "list_repo_refs", lambda *_: listing)
    asked[2] = "org/model@step*"
    assert main([*asked, "--output", "hub"]) == 0
    asked[2] = str(trained)
    assert main([*asked, "--output", "mine"]) == 0
    hub, mine = open_study("hub"), open_study("mine")
    assert hub.checkpoints["name"].tolist() == ["step10", "step20"]
    assert hub.means()["mean"].tolist() == mine.means()["mean"].tolist()


def test_show_compare_plot_ls_and_rm_take_a_study(asked, capsys):
    assert main(asked) == 0
    name = f"studies/{next(path.name for path in (store.root() / study.FOLDER).iterdir())}"
    capsys.readouterr()
    assert main(["show", name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    since = {(row["layer"], row["site"]): row["mean"] for row in found["since_first"]}
    assert main(["compare", name, "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)["differences"]
    assert {(row["layer"], row["site"]): row["difference"] for row in compared} == pytest.approx(since)
    assert main(["show", f"{name}@20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == found["tokens"]
    assert main(["plot", name, "flow", "-o", "flow.html"]) == 2
    assert f"Name one of its steps, such as {name}@20" in capsys.readouterr().err
    assert main(["ls"]) == 0
    assert "2 (10 to 20)" in capsys.readouterr().out
    assert main(["rm", name, "--yes"]) == 0
    assert not (store.root() / name).exists()


def test_a_dry_run_lists_the_checkpoints(asked, capsys):
    assert main([*asked, "--dry-run", "--json", "--steps", "15-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["steps"]] == ["checkpoint-20"]
    assert not (store.root() / study.FOLDER).exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--model", "demo-llama"], "--model has no effect with --checkpoints. Leave it out. To choose the model that"),
        (["--sampled-from", "10"], "--sampled-from has no effect with --rollouts or --text"),
        (["--shard", "0/2"], "--checkpoints takes a single process"),
        (["--steps", "x"], "'x' in --steps isn't a step or a range"),
        (["--steps", "30"], "No checkpoint has such a step; there are 10, 20"),
    ],
)
def test_options_that_cannot_be_used_are_refused(asked, more, said, capsys):
    assert main([*asked, *more]) == 2
    assert said in capsys.readouterr().err


def test_options_of_a_series_are_refused_without_one(capsys):
    assert main(["scan", "--every-step", "10"]) == 2
    assert "--every-step only applies to --checkpoints" in capsys.readouterr().err


def test_the_folder_of_another_study_is_kept_unless_forced(asked, capsys):
    assert main([*asked, "--output", "mine"]) == 0
    other = [*asked[:-1], "entropy", "--output", "mine"]
    assert main(other) == 2
    assert "already contains another study with different settings (--measures)" in capsys.readouterr().err
    assert main([*other, "--force"]) == 0
    assert "norm" not in open_study("mine").layers()
