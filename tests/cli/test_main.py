"""The command line, from arguments to exit code: scans, cache, interruptions and bad input."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import pandas as pd
import pytest
import torch
from accelerate import cpu_offload
from conftest import jsonl, saved, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from internal_policy.__main__ import main
from internal_policy.bundle import DATA
from internal_policy.cli import prepared
from internal_policy.cli.evaluate import Evaluate
from internal_policy.cli.fit_lens import FitLens
from internal_policy.cli.generate import Generate
from internal_policy.cli.plot import Figure
from internal_policy.cli.scan import Scan
from internal_policy.cli.train import Train
from internal_policy.look import report
from internal_policy.measure.sites import SITES
from internal_policy.models.families import FAMILIES
from internal_policy.models.proofs import PROOFS
from internal_policy.scans import scan, store
from internal_policy.tasks.problems import read_problems

PROBLEMS = [{"problem": f"What is {n} + 5?", "answer": str(n + 5)} for n in range(10)]


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    """A folder with a tiny Qwen3 model and a tokenizer."""
    return saved(tiny_model("qwen3").float(), tokenizer, tmp_path_factory.mktemp("model"))


@pytest.fixture
def problems(tmp_path) -> Path:
    path = tmp_path / "problems.jsonl"
    jsonl(path, *PROBLEMS)
    return path


@pytest.fixture
def asked(folder, problems) -> list[str]:
    return ["scan", "--model", str(folder), "--problems", str(problems), "--max-new-tokens", "6", "--batch-size", "4"]


def numbers(path: Path) -> dict[str, bytes]:
    """The content of every table of a scan."""
    return {part.name: part.read_bytes() for part in path.glob("*.parquet")}


def undisturbed(asked: list[str], path: Path) -> dict[str, bytes]:
    assert main([*asked, "--output", str(path)]) == 0
    return numbers(path)


def test_a_scan_shows_the_entropies_by_layer_and_where_it_is(asked, here, capsys):
    assert main([*asked, "--output", "mine"]) == 0
    printed = capsys.readouterr()
    assert "Δ attention" in printed.out
    assert "final" in printed.out
    assert "Scan: mine" in printed.out
    assert len(numbers(here / "mine")) == 3 * 3 + 1
    layers = store.read(here / "mine", "layers")
    assert set(layers["site"]) == {*SITES, "final"}
    assert layers["rollout"].nunique() == len(PROBLEMS)


def test_the_same_question_is_answered_from_the_cache(asked, capsys, monkeypatch):
    assert main([*asked, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(scan.Scanner, "measure", None)
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
    jsonl(problems, *PROBLEMS[:5])
    assert main([*asked, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scan"] != before


def published(monkeypatch, revision: str) -> None:
    """Put a data set where the hub would be, at a commit."""
    import datasets

    rows = [{"problem": f"{n} + 1", "answer": f"{n + 1}"} for n in range(3)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_: SimpleNamespace(hash=revision))


def test_a_data_set_of_the_hub_that_changed_is_another_scan(folder, here, capsys, monkeypatch):
    found = []
    for revision in ("1a2b", "1a2b", "3c4d"):
        published(monkeypatch, revision)
        words = ["--problems", "org/sums:main@train", "--limit", "2", "--dry-run", "--json"]
        assert main(["scan", "--model", str(folder), "--max-new-tokens", "6", *words]) == 0
        found.append(json.loads(capsys.readouterr().out)["scan"])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("options", [Scan, Generate, Evaluate, FitLens])
def test_the_commit_of_a_data_set_of_the_hub_is_in_every_question(options, monkeypatch):
    published(monkeypatch, "1a2b")
    question = prepared.question(options(), set(), ["org/sums@train"])
    assert question["content"] == {"org/sums@train": {"revision": "1a2b"}}


def test_a_data_set_of_the_hub_that_changed_is_another_training_run(monkeypatch):
    from internal_policy.cli import train

    published(monkeypatch, "1a2b")
    assert train._question(Train(problems="org/sums@train"), {})["content"] == {"org/sums@train": {"revision": "1a2b"}}


def test_all_bundled_problems_are_another_evaluation_than_the_default_ones(monkeypatch):
    from internal_policy.cli import evaluate
    from internal_policy.scans import claims

    claimed = []
    monkeypatch.setattr(claims, "claim", lambda *given: claimed.append(store.digest(given[-1])))
    monkeypatch.setattr(evaluate, "_sample", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    bundled = str(DATA / "problems" / "heldout.jsonl")
    for words in ([], ["--problems", bundled, "--limit", "64"], ["--problems", bundled]):
        assert main(["evaluate", *words]) == 130
    assert claimed[0] == claimed[1] != claimed[2]


def test_a_model_that_a_device_map_offloads_is_refused_in_a_sentence(asked, monkeypatch, capsys):
    whole = AutoModelForCausalLM.from_pretrained

    def offloading(*names, **options):
        model, found = cast(Any, whole(*names, **options))
        cpu_offload(model.lm_head, execution_device=torch.device("cpu"))  # as accelerate does where a GPU is too small
        return model, found

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", offloading)
    assert main([*asked, "--device-map", "auto"]) == 2
    said = "doesn't fit in the memory of the devices here (lm_head.weight was left out). Try dtype bfloat16."
    assert said in capsys.readouterr().err


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


def test_a_dry_run_removes_no_damaged_part(asked, here):
    undisturbed(asked, here / "mine")
    part = here / "mine" / "policies-00001.parquet"
    part.write_bytes(part.read_bytes()[:1000])
    before = {path.name: path.read_bytes() for path in (here / "mine").iterdir()}
    assert main([*asked, "--output", "mine", "--remeasure", "--dry-run"]) == 0
    assert {path.name: path.read_bytes() for path in (here / "mine").iterdir()} == before


def test_options_are_accepted_with_underscores_too(asked):
    assert main([*asked, "--dry_run", "--top_k", "2"]) == 0


def test_an_interrupted_scan_says_how_to_go_on_and_equals_an_undisturbed_one(asked, here, capsys, monkeypatch):
    whole = undisturbed(asked, here / "whole")
    measure, measured = scan.Scanner.measure, []

    def interrupted(scanner, rollouts, first, smaller):
        if first == 4 and len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(first)
        return measure(scanner, rollouts, first, smaller)

    monkeypatch.setattr(scan.Scanner, "measure", interrupted)
    words = [*asked, "--output", "mine"]
    assert main(words) == 130
    assert "Continue with: internal-policy scan --model" in capsys.readouterr().err
    assert not (here / "mine" / store.RECORD).exists()

    def counted(scanner, rollouts, first, smaller):
        measured.append(first)
        return measure(scanner, rollouts, first, smaller)

    monkeypatch.setattr(scan.Scanner, "measure", counted)
    assert main(words) == 0
    assert measured == [0, 4, 8]  # nothing that was whole is measured again
    assert numbers(here / "mine") == whole


def test_a_killed_scan_goes_on_and_equals_an_undisturbed_one(asked, here):
    whole = undisturbed(asked, here / "whole")
    slowly = (  # stop for long after the first part, so that the kill comes in the middle
        "import sys, time; from internal_policy.scans import store; from internal_policy.__main__ import main\n"
        "write = store.write_table\n"
        "def wait(path, *rest, **options):\n"
        "    if path.name == 'policies-00001.parquet': path.with_name('here').touch(); time.sleep(600)\n"
        "    write(path, *rest, **options)\n"
        "store.write_table = wait; main(sys.argv[1:])"
    )
    child = subprocess.Popen([sys.executable, "-c", slowly, *asked, "--output", "mine"])
    while not (here / "mine" / "here").exists():
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (here / "mine" / "here").unlink()
    assert store.is_whole(here / "mine", 0)
    assert not store.is_whole(here / "mine", 1)
    assert main([*asked, "--output", "mine"]) == 0
    assert numbers(here / "mine") == whole


def test_two_processes_that_ask_the_same_write_one_whole_scan(asked, here):
    whole = undisturbed(asked, here / "whole")
    words = [sys.executable, "-m", "internal_policy", *asked, "--output", "mine"]
    children = [subprocess.Popen(words, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert numbers(here / "mine") == whole
    assert not store.damaged(here / "mine")


def test_what_a_killed_run_was_about_to_write_is_no_obstacle(asked, here):
    (here / "mine").mkdir()
    (here / "mine" / ".asked.json.x1.json").write_text("{")
    assert main([*asked, "--output", "mine"]) == 0


@pytest.mark.parametrize("kind", store.KINDS)
def test_a_part_of_an_unfinished_scan_that_was_cut_short_is_measured_again(kind, asked, here):
    whole = undisturbed(asked, here / "mine")
    (here / "mine" / store.RECORD).unlink()
    part = store.part_path(here / "mine", kind, 1)
    part.write_bytes(part.read_bytes()[:500])
    assert main([*asked, "--output", "mine"]) == 0
    assert numbers(here / "mine") == whole


def test_whoever_comes_second_measures_the_rollouts_of_the_first(asked, here, monkeypatch):
    from internal_policy.scans import sampling

    sampled = sampling.batch
    monkeypatch.setattr(sampling, "batch", lambda *given: sampled(*given)[::-1])  # another machine, other samples
    first = undisturbed(asked, here / "first")

    def late(*given):
        monkeypatch.setattr(sampling, "batch", lambda *given: sampled(*given)[::-1])
        assert main([*asked, "--output", "mine"]) == 0  # somebody else begins and ends meanwhile
        return sampled(*given)

    monkeypatch.setattr(sampling, "batch", late)
    assert main([*asked, "--output", "mine"]) == 0
    assert numbers(here / "mine") == first
    assert not store.damaged(here / "mine")


def test_a_damaged_part_is_named_and_measured_again_on_request(asked, here, capsys):
    whole = undisturbed(asked, here / "mine")
    part = here / "mine" / "policies-00001.parquet"
    part.write_bytes(part.read_bytes()[:1000])
    assert main([*asked, "--output", "mine"]) == 2
    assert "policies-00001.parquet is missing or cut short. Measure it again with --rem" in capsys.readouterr().err
    assert main([*asked, "--output", "mine", "--remeasure"]) == 0
    assert numbers(here / "mine") == whole


def test_a_scan_whose_record_is_damaged_is_measured_again_on_request(asked, here, capsys):
    whole = undisturbed(asked, here / "mine")
    (here / "mine" / store.RECORD).write_text("{")
    assert main([*asked, "--output", "mine"]) == 2
    assert "scan.json is damaged" in capsys.readouterr().err
    assert main([*asked, "--output", "mine", "--remeasure"]) == 0
    assert numbers(here / "mine") == whole


def test_an_altered_rollout_is_generated_again_with_what_was_measured_of_it(asked, here):
    whole = undisturbed(asked, here / "mine")
    part = here / "mine" / "rollouts-00001.parquet"
    content = bytearray(part.read_bytes())
    content[100] ^= 1
    part.write_bytes(content)
    assert main([*asked, "--output", "mine", "--remeasure"]) == 0
    assert numbers(here / "mine") == whole


def test_out_of_memory_halves_the_batch_and_is_said_once(asked, here, capsys, monkeypatch):
    undisturbed(asked, here / "whole")
    blocks = scan.blocks

    def small(model, rollouts, points):
        if len(rollouts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return blocks(model, rollouts, points)

    monkeypatch.setattr(scan, "blocks", small)
    capsys.readouterr()
    assert main([*asked, "--output", "mine"]) == 0
    assert capsys.readouterr().err.count("Out of memory: measuring 2 rollouts at a time.") == 1
    one, two = (store.read(here / name, "layers") for name in ("whole", "mine"))
    pd.testing.assert_frame_equal(one, two, rtol=1e-4)


def test_nothing_is_drawn_on_stderr_where_it_is_no_terminal(asked, capsys):
    assert main([*asked, "--output", "mine"]) == 0
    begun, ended = capsys.readouterr().err.splitlines()
    assert begun == "Writing the scan to mine."
    assert ended.startswith("Measured in ")


def test_both_readouts_share_the_final_policy(asked, here):
    assert main([*asked, "--output", "mine", "--readout", "both"]) == 0
    policies = store.read(here / "mine", "policies", ["rollout", "position", "layer", "readout", "final.entropy"])
    final = policies.dropna().pivot_table(index=["rollout", "position"], columns="readout", values="final.entropy")
    assert final["raw"].tolist() == final["norm"].tolist()


# generate


def test_generated_rollouts_are_scanned_as_the_token_ids_that_they_are(asked, folder, problems, here):
    options = ["--model", str(folder), "--problems", str(problems), "--max-new-tokens", "6", "--batch-size", "4"]
    assert main(["generate", *options, "--output", "r.jsonl"]) == 0
    assert (
        main(["scan", "--model", str(folder), "--rollouts", "r.jsonl", "--batch-size", "4", "--output", "given"]) == 0
    )
    whole = undisturbed(asked, here / "whole")
    given = numbers(here / "given")
    assert {n: c for n, c in given.items() if "policies" in n} == {n: c for n, c in whole.items() if "policies" in n}


def test_an_internal_policy_writes_something_else_than_the_model(folder, problems, here):
    options = ["--model", str(folder), "--problems", str(problems), "--max-new-tokens", "6", "--limit", "3"]
    for at in ("final", "1.attn_out", "0.resid_post"):
        assert main(["generate", *options, "--at", at, "--output", f"{at}.jsonl"]) == 0
    assert len({(here / f"{at}.jsonl").read_text() for at in ("final", "1.attn_out", "0.resid_post")}) == 3


def interrupt_the_second_batch(monkeypatch) -> list[int]:
    """Ctrl-C in the second batch of 4; the list gets the first prompt of each batch that is begun."""
    from internal_policy.scans import sampling

    sampled, first_prompts = sampling.batch, []

    def interrupted(*given):
        first_prompts.append(given[4])
        if first_prompts == [0, 4]:
            raise KeyboardInterrupt
        return sampled(*given)

    monkeypatch.setattr(sampling, "batch", interrupted)
    return first_prompts


def test_an_interrupted_generate_goes_on_and_equals_an_undisturbed_one(folder, problems, here, monkeypatch):
    options = ["--model", str(folder), "--problems", str(problems), "--max-new-tokens", "6", "--batch-size", "4"]
    assert main(["generate", *options, "--output", "whole.jsonl"]) == 0
    first_prompts = interrupt_the_second_batch(monkeypatch)
    assert main(["generate", *options, "--output", "mine.jsonl"]) == 130
    assert not (here / "mine.jsonl").exists()
    assert main(["generate", *options, "--output", "mine.jsonl"]) == 0
    assert first_prompts == [0, 4, 4, 8]
    assert (here / "mine.jsonl").read_bytes() == (here / "whole.jsonl").read_bytes()


# evaluate


@pytest.fixture
def evaluated(folder, problems) -> list[str]:
    options = ["--model", str(folder), "--max-new-tokens", "6", "--batch-size", "4", "--samples", "2"]
    return ["evaluate", "--problems", str(problems), *options]


def right(monkeypatch) -> None:
    """Mark by the length of the response: a tiny random model solves nothing."""
    monkeypatch.setattr("internal_policy.tasks.marking.reward", lambda response, _: float(len(response) % 2))


def test_an_evaluation_writes_its_curves_and_responses(evaluated, here, capsys, monkeypatch):
    right(monkeypatch)
    assert main([*evaluated, "--output", "mine", "--label", "tiny"]) == 0
    printed = capsys.readouterr().out
    assert "tiny" in printed
    assert "Pass@2" in printed
    rollouts = pd.read_parquet(here / "mine" / "rollouts.parquet")
    assert (rollouts["problems"] == "problems").all()
    assert rollouts["sample"].tolist() == [0, 1] * len(PROBLEMS)
    curves = pd.read_parquet(here / "mine" / "pass_at_k.parquet")
    assert curves.columns.tolist() == ["label", "problems", "k", "mean", "low", "high"]
    assert curves["label"].tolist() == ["tiny", "tiny"]
    by_problem = rollouts.groupby("problem")["reward"]
    assert curves["mean"].tolist() == pytest.approx([by_problem.mean().mean(), by_problem.max().mean()])


def test_the_same_evaluation_is_answered_from_its_folder_under_another_label_too(evaluated, capsys, monkeypatch):
    assert main([*evaluated, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(torch.nn.Module, "__call__", None)
    assert main([*evaluated, "--json", "--label", "other"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["label"] == "other"
    assert pd.read_parquet(Path(again["output"]) / "pass_at_k.parquet")["label"].unique().tolist() == ["other"]
    assert {**first, "label": ""} == {**again, "label": ""}
    assert main(["ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []  # it is no scan


def test_an_interrupted_evaluation_goes_on_and_equals_an_undisturbed_one(evaluated, here, monkeypatch):
    assert main([*evaluated, "--output", "whole"]) == 0
    first_prompts = interrupt_the_second_batch(monkeypatch)
    assert main([*evaluated, "--output", "mine"]) == 130
    assert not (here / "mine").exists()
    assert main([*evaluated, "--output", "mine"]) == 0
    assert first_prompts == [0, 4, 4, 8, 12, 16]
    assert numbers(here / "mine") == numbers(here / "whole")
    assert not list((store.root() / "rollouts").iterdir())


def test_sets_of_problems_have_a_curve_each_and_one_together(evaluated, problems, here, capsys, monkeypatch):
    right(monkeypatch)
    other = problems.with_name("other.jsonl")
    other.write_text(problems.read_text())
    words = [evaluated[0], "--problems", str(problems), str(other), *evaluated[3:], "--limit", "3"]
    assert main([*words, "--at", "0.resid_post", "--readout", "norm", "--label", "a", "--output", "mine"]) == 0
    assert "other" in capsys.readouterr().out
    curves = pd.read_parquet(here / "mine" / "pass_at_k.parquet")
    assert curves["label"].unique().tolist() == ["a, problems", "a, other", "a, all"]
    means = curves[curves["k"] == 1].set_index("problems")["mean"]
    assert means["all"] == pytest.approx((means["problems"] + means["other"]) / 2)


def test_an_internal_policy_names_its_curve(evaluated, folder, capsys):
    assert main([*evaluated, "--limit", "1", "--at", "0.resid_post", "--readout", "norm", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["label"] == f"{folder.name}@0.resid_post, norm"
    assert found["evaluated"][0]["avg"]["low"] is None  # one problem has no interval


BAD_EVALUATIONS = {
    "no samples": (["--samples", "0"], "samples is 0; it must be 1 or more"),
    "no answers": (["--answer-column", "without"], "10 of the 10 problems of problems have no answer, the first is"),
    "hook point": (["--at", "5.nowhere"], "nowhere"),
    "twice": (["--problems", "a.jsonl", "a.jsonl"], "--problems names a.jsonl more than once"),
    "output": (["--output", "/"], "/ isn't empty and holds no evaluation. Choose another --output."),
}


@pytest.mark.parametrize("case", BAD_EVALUATIONS)
def test_a_bad_evaluation_is_refused_in_a_sentence(case, evaluated, problems, here, capsys):
    jsonl(problems, *({**problem, "without": None} for problem in PROBLEMS))
    words, sentence = BAD_EVALUATIONS[case]
    assert main([*evaluated, *words]) == 2
    _one_sentence(capsys, sentence, here)


def test_the_folder_of_another_evaluation_is_refused(evaluated, here, capsys):
    assert main([*evaluated, "--output", "mine"]) == 0
    assert main([*evaluated, "--output", "mine", "--seed", "5"]) == 2
    assert "already contains another evaluation with different settings (--seed)" in capsys.readouterr().err
    (here / "mine" / "rollouts.parquet").write_bytes(b"PAR1")
    assert main([*evaluated, "--output", "mine"]) == 2
    assert "rollouts.parquet is damaged; remove the folder" in capsys.readouterr().err


# ls, show, export, families


def test_scans_are_listed_shown_and_exported(asked, here, capsys):
    assert main([*asked, "--readout", "both"]) == 0
    capsys.readouterr()
    assert main(["ls", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(row["state"], row["rollouts"]) for row in listed] == [("whole", 10)]
    name = listed[0]["scan"]
    assert main(["show", name[:5], "--readout", "norm", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["entropy"]) == 3 + 1
    assert main(["ls"]) == 0
    assert name in capsys.readouterr().out
    assert main(["export", name[:5], "--table", "policies"]) == 0
    exported = pd.read_csv(here / "policies.csv")
    assert len(exported) == listed[0]["tokens"] * 2 * 4
    assert len(json.loads(str(exported["resid_post.topk_ids"].dropna().iloc[0]))) == 5


@pytest.mark.parametrize(("rewards", "said"), [([-1, 0.5], ", mean reward -0.25"), ([1, 0], ", 50.0% of them correct")])
def test_show_gives_the_mean_reward_where_rewards_are_not_0_or_1(rewards, said, here, capsys):
    rows = [{"prompt": "1 + 1?", "response": "2", "reward": reward} for reward in rewards]
    jsonl(here / "r.jsonl", *rows)
    assert main(["scan", "--rollouts", "r.jsonl", "--layers", "0", "--sites", "resid_post"]) == 0
    assert said in capsys.readouterr().out


def test_generating_gives_the_mean_reward_where_rewards_are_not_0_or_1(folder, problems, here, capsys, monkeypatch):
    monkeypatch.setattr("internal_policy.tasks.marking.reward", lambda *_: -0.5)
    assert main(["generate", "--model", str(folder), "--problems", str(problems), "--max-new-tokens", "2"]) == 0
    assert ", mean reward -0.5, " in capsys.readouterr().out


def test_show_names_the_target_layer_its_interval_and_the_runner_up(here, capsys):
    assert main(["show", "demo-qwen3"]) == 0
    said = "Target layer: 6, the last whose FFN raises entropy significantly (+2.34 nats, 2.04 to 2.55, with 95 %"
    assert said in capsys.readouterr().out
    assert main(["show", "demo-qwen3", "--json"]) == 0
    suggested = json.loads(capsys.readouterr().out)["suggested"]
    assert (suggested["target"], suggested["runner_up"]) == (6, 5)


def test_export_overwrites_nothing(asked, here, capsys):
    assert main([*asked, "--output", "mine"]) == 0
    (here / "layers.csv").write_text("mine")
    assert main(["export", "mine"]) == 2
    assert (here / "layers.csv").read_text() == "mine"


def keep_families(monkeypatch, *kept: str) -> None:
    """Remove the other rows of the table of families, because each takes time to prove."""
    for name in FAMILIES.keys() - {*kept}:
        monkeypatch.delitem(FAMILIES, name)


def test_families_lists_each_family_its_proofs_and_how_to_add_one(monkeypatch, capsys):
    keep_families(monkeypatch, "llama", "gemma2", "gpt_neox")
    assert main(["families"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*FAMILIES, *PROOFS, "internal_policy/models/families.py"))
    assert "no resid_mid: attention and FFN read" in " ".join(printed.split())
    assert printed.count("✓" * len(PROOFS)) == len(FAMILIES)
    assert "✗" not in printed


@pytest.mark.slow
def test_families_as_json_says_the_same(capsys):
    assert main(["families", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == list(FAMILIES)
    assert all(row["proved"] and row["contradictions"] == dict.fromkeys(PROOFS, "") for row in found.values())
    assert found["gpt_neox"]["absent"] == FAMILIES["gpt_neox"].absent


def test_a_family_whose_row_is_wrong_is_shown_as_wrong_and_fails(monkeypatch, capsys):
    keep_families(monkeypatch, "llama", "gemma2")
    monkeypatch.setitem(FAMILIES, "gemma2", replace(FAMILIES["gemma2"], sites=FAMILIES["llama"].sites))
    assert main(["families"]) == 1
    printed = capsys.readouterr().out
    assert "✗✓✓✓✓✓✓" in printed
    assert "gemma2, 1: 0.resid_mid is not resid_pre + attn_out" in printed
    assert main(["families", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {name: row["proved"] for name, row in found.items()} == {"llama": True, "gemma2": False}


# other families


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer) -> dict[str, Path]:
    """Folders with a tiny model and a tokenizer, by family: with other names in its configuration, or sites missing."""
    paths = {}
    for name in ("gpt2", "gemma3", "gpt_neox", "granite", "mixtral"):
        paths[name] = saved(tiny_model(name), tokenizer, tmp_path_factory.mktemp(name))
    return paths


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


def test_a_scan_without_resid_mid_is_drawn_whole(folders, problems, here, capsys):
    words = ["--model", str(folders["gpt_neox"]), "--problems", str(problems), "--max-new-tokens", "6"]
    assert main(["scan", *words, "--output", "mine"]) == 0
    assert main(["report", "mine", "demo-qwen3", "-o", "report.html"]) == 0
    written = (here / "report.html").read_text()
    assert "Not drawn" not in written
    assert written.count("plotly-graph-div") == 2 * len(report.SECTIONS) + len(report.COMPARISONS)
    for figure in get_args(Figure):
        against = ["--against", "demo-qwen3"] if figure == "compare" else []
        assert main(["plot", "mine", figure, *against, "-o", "figure.html"]) == 0
    capsys.readouterr()
    assert main(["plot", "mine", "tokens", "--site", "resid_mid", "-o", "mid.html"]) == 2
    assert "mine has no entropy at resid_mid" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["scan", "--sites", "resid_mid,resid_post"],
        ["scan", "--sites", "resid_mid", "--dry-run"],
        ["generate", "--at", "1.resid_mid"],
        ["evaluate", "--at", "1.resid_mid"],
    ],
    ids=" ".join,
)
def test_a_site_that_the_family_does_not_have_is_refused_before_work(
    command, folders, problems, here, capsys, monkeypatch
):
    monkeypatch.setattr("internal_policy.models.loading.load_model", None)
    assert main([*command, "--model", str(folders["gpt_neox"]), "--problems", str(problems)]) == 2
    _one_sentence(capsys, "gpt_neox has no resid_mid: attention and FFN read the same stream, and are added to", here)


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_a_layer_that_the_model_does_not_have_is_refused_before_work(
    command, folder, problems, here, capsys, monkeypatch
):
    monkeypatch.setattr("internal_policy.models.loading.load_model", None)
    assert main([command, "--at", "3.attn_out", "--model", str(folder), "--problems", str(problems)]) == 2
    _one_sentence(capsys, "There is no hook point 3.attn_out: the model's layers are 0 to 2.", here)


# bad input: one sentence with the remedy, exit 2, nothing written


def _model(here: Path, folder: Path, **changes) -> Path:
    """A copy of the model with another config.json."""
    copy = here.parent / "broken"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    return copy


def _pickled(here: Path, folder: Path) -> Path:
    copy = _model(here, folder)
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    return copy


def _with_nan(here: Path, folder: Path) -> Path:
    copy = _model(here, folder)
    model = tiny_model("qwen3").float()
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = torch.nan
    model.save_pretrained(copy)
    return copy


def _without_template(here: Path, folder: Path) -> Path:
    copy = _model(here, folder)
    (copy / "chat_template.jinja").unlink()
    return copy


def _cut_short(here: Path, folder: Path) -> Path:
    copy = _model(here, folder)
    (copy / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:50_000])
    return copy


def _without_a_weight(here: Path, folder: Path) -> Path:
    copy = _model(here, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


def _without_tokenizer(here: Path, folder: Path) -> Path:
    copy = _model(here, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (copy / name).unlink()
    return copy


BAD_MODELS = {
    "cut short": (_cut_short, "can't be loaded"),
    "a weight missing": (_without_a_weight, "has no weights for model.layers.1.mlp.up_proj.weight"),
    "no tokenizer": (_without_tokenizer, "tokenizer"),
    "a file": (lambda _, folder: folder / "config.json", "Use a folder that holds one"),
    "nothing": (lambda *_: "", "Can't load a model from ''. Use a folder"),
    "no model": (lambda here, _: here, "holds no model: it has no config.json"),
    "unknown family": (lambda *a: _model(*a, model_type="opt"), "Unknown model family 'opt'; known are deepseek_v2, "),
    "pickled": (_pickled, "holds only pickled weights"),
    "NaN": (_with_nan, "NaN or infinite weights in model.layers.1.mlp.up_proj.weight"),
    "no chat template": (_without_template, "no chat template; give one with --chat-template FILE"),
    "hub id offline": (lambda *_: "Qwen/Qwen3-0.6B", "the hub can't be reached"),
    "no name": (lambda *_: "what is this?", "neither a folder nor a hub id"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_bad_model_is_refused_in_a_sentence(case, folder, problems, here, capsys):
    make, sentence = BAD_MODELS[case]
    name = make(here, folder)
    assert main(["scan", "--model", str(name), "--problems", str(problems), "--max-new-tokens", "6"]) == 2
    _one_sentence(capsys, sentence, here)


BAD_PROBLEMS = {
    "no file": (None, "There is no file"),
    "empty": ("", "is empty"),
    "malformed": ('{"problem": "1 + 1"}\n{"problem": ', "line 2 is not JSON"),
    "no column": ('{"quest": "1 + 1", "answer": "2"}\n', "quest, answer; name the one"),
}


@pytest.mark.parametrize("case", BAD_PROBLEMS)
def test_a_bad_problems_file_is_refused_in_a_sentence(case, asked, problems, here, capsys):
    content, sentence = BAD_PROBLEMS[case]
    problems.unlink() if content is None else problems.write_text(content)
    assert main(asked) == 2
    _one_sentence(capsys, sentence, here)


BAD_OPTIONS = {
    "layers": (["--layers", "0-9"], "--layers has 0-9, but the model's layers are 0 to 2"),
    "sites": (["--sites", "attn"], "There is no site 'attn'"),
    "measures": (["--measures", "entropy,surprise"], "There is no measure 'surprise'"),
    "top-k": (["--top-k", "100000"], "--top-k is 100000, but the model has only 320 tokens"),
    "device": (["--device", "cuda:7"], "There is no device 'cuda:7' here"),
    "template": (["--chat-template", "nowhere.jinja"], "Can't read the chat template nowhere.jinja"),
    "template arguments": (["--chat-template-kwargs", "{"], "--chat-template-kwargs is no JSON"),
    "temperature": (["--temperature", "-1"], "temperature is -1.0; it must be 0"),
    "too long": (["--max-new-tokens", "9999"], "the 512 positions of the model"),
    "output": (["--output", "/"], "isn't empty and holds no scan"),
    "batch size": (["--batch-size", "0"], "batch-size is 0; it must be 1 or more"),
    "limit": (["--limit", "0"], "The limit is 0; it must be 1 or more"),
    "huge limit": (["--limit", "99999999999999999999", "--layers", "9"], "--layers has 9"),
    "cold": (["--temperature", "1e-40"], "temperature is 1e-40; it must be 0"),
    "both": (["--rollouts", "nowhere.jsonl"], "Both --problems and --rollouts are given"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_bad_option_is_refused_in_a_sentence(case, asked, here, capsys):
    words, sentence = BAD_OPTIONS[case]
    assert main([*asked, *words]) == 2
    _one_sentence(capsys, sentence, here)


def test_a_full_disk_is_refused_before_work_starts(asked, here, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    assert main(asked) == 2
    _one_sentence(capsys, "0.0 GB free", here)


def test_a_disk_that_fills_up_ends_with_1_and_keeps_what_is_whole(asked, here, capsys, monkeypatch):
    write = store.write_table

    def full(path, *rest, **options):
        if path.name == "layers-00001.parquet":
            raise OSError(28, "No space left on device", str(path))
        write(path, *rest, **options)

    monkeypatch.setattr(store, "write_table", full)
    assert main([*asked, "--output", "mine"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert store.is_whole(here / "mine", 0)


def test_a_gated_model_says_where_to_accept_its_terms(asked, folder, capsys, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def gated(*_, **__):
        raise GatedRepoError("gated", response=cast(Any, SimpleNamespace(headers={}, request=None)))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", gated)
    assert main([*asked, "--model", "meta-llama/Llama-3.1-8B"]) == 2
    assert "accept its terms at https://huggingface.co/meta-llama/Llama-3.1-8B" in capsys.readouterr().err


def test_the_folder_of_another_scan_is_refused(asked, here, capsys):
    assert main([*asked, "--output", "mine"]) == 0
    assert main([*asked, "--output", "mine", "--seed", "5"]) == 2
    assert "already contains another scan with different settings (--seed)" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["show", "nowhere"], ["export", "nowhere"], ["generate", "--at", "5.nowhere"]])
def test_other_commands_refuse_in_a_sentence_too(words, here, capsys):
    assert main(words) == 2
    _one_sentence(capsys, "", here)


def test_wrong_usage_exits_2():
    with pytest.raises(SystemExit) as error:
        main(["scan", "--nonsense"])
    assert error.value.code == 2


def _one_sentence(capsys, sentence: str, here: Path) -> None:
    """What stderr must hold after bad input, and that nothing was written."""
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.startswith("error: ")
    assert len(printed.strip().splitlines()) == 1
    assert not list(here.iterdir())
    assert not store.root().exists()


@pytest.mark.parametrize("name", ["demo-qwen3", "demo-llama"])
def test_the_bundled_models_solve_some_of_their_problems(name, here, capsys):
    words = ["--model", name, "--limit", "8", "--dtype", "float32", "--max-new-tokens", "80", "--json"]
    assert main(["generate", *words, "--output", "r.jsonl"]) == 0
    generated = json.loads(capsys.readouterr().out)
    assert generated["reward"] > 0
    assert main(["scan", "--model", name, "--rollouts", "r.jsonl", "--dtype", "float32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == generated["tokens"]


def test_no_held_out_problem_is_in_the_training_problems():
    train, heldout = (
        {problem.text for problem in read_problems(str(DATA / "problems" / f"{name}.jsonl"))}
        for name in ("train", "heldout")
    )
    assert (len(train), len(heldout)) == (2000, 500)
    assert not train & heldout


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


@pytest.mark.parametrize("seed", ["-1", str(2**32), str(10**30)])
@pytest.mark.parametrize("command", ["scan", "generate", "evaluate", "fit-lens"])
def test_a_seed_out_of_range_is_refused_in_a_sentence(command, seed, here, capsys):
    assert main([command, "--seed", seed]) == 2
    _one_sentence(capsys, f"seed is {seed}; it must be from 0 to 4294967295.", here)
