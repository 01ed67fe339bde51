"""`ablate` reads a scan's responses again without each layer and module, continues, and refuses what can't be right."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import SUMS, jsonl, saved, tiny_model

from internal_policy.__main__ import main
from internal_policy.look import ablation
from internal_policy.scans import ablation_job, effects, records, store
from internal_policy.scans.ablation import Ablator

FEW = ["--layers", "0,2", "--replacement", "zero"]


@pytest.fixture(scope="module")
def once(tmp_path_factory, folder) -> Path:
    """The scan of a tiny model with 6 rollouts."""
    place = tmp_path_factory.mktemp("scan")
    options = ["--problems", str(jsonl(place / "problems.jsonl", *SUMS)), "--limit", "6", "--max-new-tokens", "6"]
    options += ["--batch-size", "4", "--readout", "raw", "--sites", "resid_pre,resid_post", "-o", str(place / "scan")]
    assert main(["scan", "--model", str(folder), *options]) == 0
    return place / "scan"


@pytest.fixture
def scanned(once, here, capsys) -> Path:
    """A copy of it here."""
    capsys.readouterr()
    return Path(shutil.copytree(once, here / "scan"))


def found(printed: str) -> dict:
    return json.loads(printed)


def test_an_ablation_is_printed_listed_drawn_and_read_again(scanned, capsys):
    assert main(["ablate", "scan", *FEW, "--json"]) == 0
    first = found(capsys.readouterr().out)
    assert {(row["layer"], row["module"], row["replacement"]) for row in first["effects"]} == {
        (layer, module, "zero") for layer in (0, 2) for module in ("layer", "attn", "mlp")
    }
    assert not first["cached"]
    assert main(["ablate", "scan", *FEW, "--json"]) == 0
    again = found(capsys.readouterr().out)
    assert again["cached"]
    assert again["effects"] == first["effects"]
    assert main(["ls"]) == 0
    assert Path(first["ablation"]).name in capsys.readouterr().out
    assert main(["show", Path(first["ablation"]).name]) == 0
    assert "Skipping an FFN changes the policy most in layer" in capsys.readouterr().out
    assert main(["plot", "scan", "ablation", "-o", "figure.html"]) == 0
    assert main(["rm", Path(first["ablation"]).name, "--yes"]) == 0
    assert effects.of_scan(scanned) == []


def test_an_interrupted_ablation_continues(scanned, capsys, monkeypatch):
    command = ["ablate", "scan", "--layers", "1", "--batch-size", "4"]
    assert main([*command, "-o", "whole"]) == 0
    measured = Ablator.effects

    def interrupted(self, rollouts, first, **given):
        if first:
            raise KeyboardInterrupt
        return measured(self, rollouts, first, **given)

    with monkeypatch.context() as patch:
        patch.setattr(Ablator, "effects", interrupted)
        assert main([*command, "-o", "twice"]) == 130
    assert "Continue with: internal-policy ablate scan" in capsys.readouterr().err
    assert main(["show", "twice"]) == 2
    assert "an unfinished ablation" in capsys.readouterr().err
    assert main([*command, "-o", "twice"]) == 0
    pd.testing.assert_frame_equal(effects.read(Path("whole"), "effects"), effects.read(Path("twice"), "effects"))


def test_rewards_are_those_of_responses_of_the_ablated_models(scanned, monkeypatch, capsys):
    asked = []

    def marked(self, model, tokenizer, smaller):
        asked.append(len(self.prompts) * self.samples)
        return [float(len(asked) == 1)] * len(self.prompts), 5

    monkeypatch.setattr(ablation_job.Asking, "rewards", marked)
    assert main(["ablate", "scan", *FEW, "--modules", "mlp", "--reward", "2", "--json"]) == 0
    printed = capsys.readouterr()
    assert "36 responses of at most 6 tokens: 12 with the model itself, and 12 with each of 2 ablated" in printed.err
    rows = found(printed.out)["rewards"]
    assert asked == [12] * 3
    assert [(row["layer"], row["intact"], row["mean"]) for row in rows] == [(0, 1.0, -1.0), (2, 1.0, -1.0)]


def test_rewards_of_the_same_model_are_the_same(scanned, folder):
    import internal_policy as ip

    model, tokenizer = ip.load(str(folder))
    batch, *_ = store.pieces(scanned, "rollouts")
    prompts = [tuple(ids) for ids in batch["prompt_ids"].to_pylist()]
    options = {"temperature": 1.0, "top_p": 1.0, "seed": 0, "max_new_tokens": 6}
    asking = ablation_job.Asking(prompts, batch["answer"].to_pylist(), 1, options, 4)
    once = asking.rewards(model, tokenizer, lambda _: None)
    assert once == asking.rewards(model, tokenizer, lambda _: None)
    assert once[1] == sum(map(len, batch["response_ids"].to_pylist()))  # as the scan sampled them


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layers", "7"], "layer"),
        (["--modules", "ffn"], "There is no module 'ffn'. Choose from layer, attn, mlp."),
        (["--limit", "0"], "--limit is 0; it must be 1 or more."),
        (["--reward", "-1"], "--reward is -1; it must be 1 or more."),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(scanned, capsys, options, said):
    assert main(["ablate", "scan", *options]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.strip().splitlines()) == 1
    assert not effects.folders(unfinished=True)


def test_another_model_is_refused_and_a_moved_one_is_used(scanned, folder, tokenizer, capsys, tmp_path):
    other = saved(tiny_model("llama"), tokenizer, tmp_path / "other")
    assert main(["ablate", "scan", "--model", str(other)]) == 2
    assert "isn't the model of" in capsys.readouterr().err
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert main(["ablate", "scan", *FEW, "--modules", "layer", "--model", str(moved)]) == 0


def test_a_scan_whose_model_runs_code_needs_the_users_word(scanned, capsys):
    record = records.read(scanned / "scan.json")
    records.write(scanned / "scan.json", {**record, "asked": {**record["asked"], "trust_remote_code": True}})
    assert main(["ablate", "scan"]) == 2
    assert "add --trust-remote-code" in capsys.readouterr().err


def test_a_damaged_table_is_named(scanned, capsys):
    assert main(["ablate", "scan", *FEW, "-o", "ablation"]) == 0
    (Path("ablation") / "effects-00000.parquet").write_bytes(b"nothing")
    capsys.readouterr()
    assert main(["show", "ablation"]) == 2
    assert "effects-00000.parquet is damaged or missing" in capsys.readouterr().err


def test_a_scan_without_an_ablation_says_how_to_make_one(scanned, capsys):
    assert main(["plot", "scan", "ablation", "-o", "figure.html"]) == 2
    assert "has no ablation. Run `internal-policy ablate" in capsys.readouterr().err
    assert ablation.FEWEST_LAYERS == 4
