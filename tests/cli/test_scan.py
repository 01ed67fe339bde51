"""Scans: what is measured, printed and cached."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SUMS, jsonl, numbers, undisturbed

from internal_policy.__main__ import main
from internal_policy.look import catalogue, report
from internal_policy.measure.sites import SITES
from internal_policy.models.rows import FAMILIES
from internal_policy.scans import scan, store

pytestmark = pytest.mark.usefixtures("here")


def test_a_scan_shows_the_entropies_by_layer_and_where_it_is(asked, here, capsys):
    assert main([*asked, "--output", "mine"]) == 0
    printed = capsys.readouterr()
    assert "Δ attention" in printed.out
    assert "final" in printed.out
    assert "Scan: mine" in printed.out
    assert len(numbers(here / "mine")) == 3 * 3 + 1
    layers = store.read(here / "mine", "layers")
    assert set(layers["site"]) == {*SITES, "final"}
    assert layers["rollout"].nunique() == len(SUMS)


def test_the_same_question_is_answered_from_the_cache(asked, capsys, monkeypatch):
    assert main([*asked, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(scan.Scanner, "measured", None)
    monkeypatch.setattr(torch.nn.Module, "__call__", None)
    assert main([*asked, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (first.pop("cached"), again.pop("cached")) == (False, True)
    assert first == again


@pytest.mark.parametrize("other", [["--seed", "1"], ["--layers", "0"], ["--readout", "norm"], ["--top-k", "0"]])
def test_another_question_has_another_scan(asked, other, capsys):
    for words in (asked, [*asked, *other]):
        assert main([*words, "--dry-run", "--json"]) == 0
    one, two = (json.loads(text)["scan"] for text in capsys.readouterr().out.replace("}\n{", "}\0{").split("\0"))
    assert one != two


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["--layers", "all"], ["--layers", "2,0,1"]),
        (["--layers", "0"], ["--layers=-3"]),
        (["--sites", "mlp_out,attn_out"], ["--sites", "attn_out,mlp_out"]),
        (["--sites", "all"], ["--sites", ",".join(SITES[::-1])]),
        (["--measures", "entropy,kl"], ["--measures", "kl,entropy"]),
        (["--chat-template-kwargs", '{"a": 1, "b": 2}'], ["--chat-template-kwargs", '{"b":2,"a":1}']),
        (["--problems", "problems.jsonl"], ["--problems", "./problems.jsonl"]),
        (["--problems", "problems.jsonl"], ["--problems", "../work/problems.jsonl"]),
        (["--problems", "problems.jsonl"], []),
        (["--model", "model"], ["--model", "./model/"]),
        (["--model", "model"], []),
    ],
)
def test_one_question_typed_in_two_ways_is_one_scan(asked, one, other, here, folder, problems, capsys):
    (here / "problems.jsonl").symlink_to(problems)
    (here / "model").symlink_to(folder)
    found = []
    for words in (one, other):
        assert main([*asked, *words, "--dry-run", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["scan"])
    assert found[0] == found[1]


def test_columns_stand_in_one_order_however_the_sites_were_typed(asked, here):
    for name, sites in (("one", "attn_out,mlp_out"), ("two", "mlp_out,attn_out")):
        assert main([*asked, "--sites", sites, "--output", name]) == 0
    assert numbers(here / "one") == numbers(here / "two")


def test_two_files_with_other_problems_are_two_scans(asked, problems, capsys):
    assert main([*asked, "--dry-run", "--json"]) == 0
    before = json.loads(capsys.readouterr().out)["scan"]
    jsonl(problems, *SUMS[:5])
    assert main([*asked, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scan"] != before


def test_a_model_whose_weights_changed_is_another_model(asked, folder, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    words = ["--model" if word == "--model" else str(copy) if word == str(folder) else word for word in asked]
    assert main([*words, "--dry-run", "--json"]) == 0
    before = json.loads(capsys.readouterr().out)["scan"]
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert main([*words, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scan"] != before


def test_a_dry_run_says_what_is_needed_and_writes_nothing(asked, here, capsys):
    assert main([*asked, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "unembeddings per token" in printed
    assert "disk at most" in printed
    assert not list(here.iterdir())
    assert not store.root().exists()


def test_both_readouts_share_the_final_policy(asked, here):
    assert main([*asked, "--output", "mine", "--readout", "both"]) == 0
    policies = store.read(here / "mine", "policies", ["rollout", "position", "layer", "readout", "final.entropy"])
    final = policies.dropna().pivot_table(index=["rollout", "position"], columns="readout", values="final.entropy")
    assert final["raw"].tolist() == final["norm"].tolist()


def test_generated_rollouts_are_scanned_as_the_token_ids_that_they_are(asked, folder, problems, here):
    options = ["--model", str(folder), "--problems", str(problems), "--max-new-tokens", "6", "--batch-size", "4"]
    assert main(["generate", *options, "--output", "r.jsonl"]) == 0
    assert (
        main(["scan", "--model", str(folder), "--rollouts", "r.jsonl", "--batch-size", "4", "--output", "given"]) == 0
    )
    whole = undisturbed(asked, here / "whole")
    given = numbers(here / "given")
    assert {n: c for n, c in given.items() if "policies" in n} == {n: c for n, c in whole.items() if "policies" in n}


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "gpt_neox", "granite", "mixtral"])
def test_a_model_of_another_family_is_scanned_and_sampled_from(name, folders, problems, here, capsys):
    words = ["--model", str(folders[name]), "--problems", str(problems), "--max-new-tokens", "6", "--limit", "2"]
    assert main(["scan", *words, "--dry-run", "--json"]) == 0
    forecast = json.loads(capsys.readouterr().out)
    has = list(FAMILIES[name].sites)
    assert (forecast["family"], forecast["sites"], forecast["layers"]) == (name, has, [0, 1, 2])
    assert forecast["hidden_states_per_token"] == 3 * (len(has) - 1) + 2  # a layer's input is read once
    assert main(["scan", *words, "--output", "mine"]) == 0
    record = store.record(here / "mine")
    assert (record["family"], record["n_layers"], record["d_model"], record["d_vocab"]) == (name, 3, 32, 320)
    assert record["selection"]["sites"] == has
    assert set(store.read(here / "mine", "layers")["site"]) == {*has, "final"}
    assert main(["generate", *words, "--at", "1.attn_out"]) == 0
    assert main(["evaluate", *words, "--at", "1.mlp_out", "--samples", "2"]) == 0


@pytest.mark.slow
def test_a_scan_without_resid_mid_is_drawn_whole(folders, problems, here, capsys):
    words = ["--model", str(folders["gpt_neox"]), "--problems", str(problems), "--max-new-tokens", "6"]
    assert main(["scan", *words, "--output", "mine"]) == 0
    assert main(["ablate", "mine"]) == 0
    assert main(["report", "mine", "demo-qwen3", "-o", "report.html"]) == 0
    written = (here / "report.html").read_text()
    assert "Not drawn" not in written
    assert written.count("plotly-graph-div") == 2 * len(report.SECTIONS) + len(report.COMPARISONS)
    for figure in catalogue.FIGURES:
        against = ["--against", "demo-qwen3"] if figure == "compare" else []
        assert main(["plot", "mine", figure, *against, "-o", "figure.html", "--force"]) == 0
    capsys.readouterr()
    assert main(["plot", "mine", "tokens", "--site", "resid_mid", "-o", "mid.html"]) == 2
    assert "mine has no entropy at resid_mid" in capsys.readouterr().err


def test_the_folder_of_another_scan_is_refused(asked, here, capsys):
    assert main([*asked, "--output", "mine"]) == 0
    assert main([*asked, "--output", "mine", "--seed", "5"]) == 2
    assert "already contains another scan with different settings (--seed)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "row",
    [
        {"text": "Mia has 47 apples."},
        {"messages": [{"role": "user", "content": "4 + 5?"}, {"role": "assistant", "content": "9"}]},
    ],
)
def test_responses_that_come_as_text_or_messages_are_scanned(row, folder, here, capsys):
    Path("r.jsonl").write_text(json.dumps(row))
    assert main(["scan", "--model", str(folder), "--rollouts", "r.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rollouts"] == 1


def test_without_a_chat_template_the_text_is_the_prompt(asked, here):
    assert main([*asked, "--chat-template", "none", "--output", "mine"]) == 0
    prompt = store.read(here / "mine", "rollouts", ["prompt_ids"])["prompt_ids"][0]
    assert main([*asked, "--output", "chat"]) == 0
    assert len(prompt) < len(store.read(here / "chat", "rollouts", ["prompt_ids"])["prompt_ids"][0])


def test_the_demo_is_scanned_where_no_model_is_named(capsys):
    assert main(["scan", "--limit", "2", "--json", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "demo-qwen3"
