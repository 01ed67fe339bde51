"""A Jacobian lens on the command line: fitted, shared, scanned with; and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import jsonl, saved, tiny_model
from safetensors.torch import load_file

from internal_policy.__main__ import main
from internal_policy.lenses import jacobian
from internal_policy.scans import store

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    """A folder with a tiny Qwen3 model, and a tokenizer."""
    return saved(tiny_model("qwen3").float(), tokenizer, tmp_path_factory.mktemp("model"))


@pytest.fixture
def words(folder, tmp_path) -> list[str]:
    """Options that every command takes here."""
    texts = jsonl(
        tmp_path / "texts.jsonl", *({"text": f"Mia has {n} apples and buys {n + 3} more."} for n in range(10))
    )
    return ["--model", str(folder), "--rollouts", str(texts)]


@pytest.fixture
def asked(words) -> list[str]:
    return ["fit-lens", "--kind", "jacobian", *words, "--skip", "4"]


def test_a_jacobian_lens_is_fitted_on_texts_and_scanned_with(asked, words, here, capsys):
    assert main(asked) == 0
    printed = capsys.readouterr().out
    assert [line.split()[:2] for line in printed.splitlines() if "raw" in line] == [["raw", "norm"]]
    assert "Fitted on 8 sequences (" in printed
    tensors = load_file("lens.safetensors")
    assert tensors.keys() == {f"{point}.jacobian" for point in ("0.resid_pre", "0.resid_post", "1.resid_post")}
    scan = ["scan", *words, "--lens", "lens.safetensors", "--sites", "resid_pre,resid_post", "--output", "mine"]
    assert main(scan) == 0
    assert store.record(here / "mine")["selection"]["readouts"] == ["raw", "norm", "jacobian"]


def test_the_file_describes_the_fit(asked, capsys):
    assert main([*asked, "--probes", "9", "--max-length", "12", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    about |= about["options"]
    assert len(about["halves"]) == len(about["maps"]) == len(about["gain"])
    kept = {name: about[name] for name in ("kind", "probes", "max_length", "skip", "seed", "n_layers", "d_model")}
    assert kept == {
        "kind": "jacobian",
        "probes": 9,
        "max_length": 12,
        "skip": 4,
        "seed": 0,
        "n_layers": 3,
        "d_model": 32,
    }
    assert about["fitted_on"]["file"] == "texts.jsonl"
    assert about["fitted_on"]["sequences"] > 8  # texts are cut
    assert "steps" not in about
    assert {one["readout"] for one in about["kl"]} == {"raw", "norm", "jacobian"}


def test_sampled_responses_are_fitted_on_with_their_prompts(folder, tmp_path, here):
    problems = jsonl(tmp_path / "problems.jsonl", *({"problem": f"What is {n} + 5?"} for n in range(4)))
    words = ["--model", str(folder), "--problems", str(problems), "--max-new-tokens", "6"]
    assert main(["fit-lens", "--kind", "jacobian", *words, "--sites", "all"]) == 0
    assert len(load_file("lens.safetensors")) == 18
    assert not list((store.root() / "rollouts").iterdir())


def test_processes_share_a_jacobian_lens(asked, monkeypatch, capsys):
    monkeypatch.setattr(jacobian, "BATCH", 2)
    assert main([*asked, "--output", "whole.safetensors"]) == 0
    assert main([*asked, "--shard", "0/2"]) == 0
    assert "1 of 2 parts is left to others" in " ".join(capsys.readouterr().err.split())
    assert not Path("lens.safetensors").exists()
    assert main([*asked, "--shard", "1/2"]) == 0
    whole, shared = load_file("whole.safetensors"), load_file("lens.safetensors")
    for name, tensor in whole.items():
        torch.testing.assert_close(shared[name], tensor, rtol=0, atol=1e-6)
    assert not [path for path in (store.root() / "rollouts").iterdir() if path.is_dir()]


def test_an_interrupted_fit_is_continued(asked, monkeypatch, capsys):
    monkeypatch.setattr(jacobian, "BATCH", 2)
    assert main([*asked, "--output", "whole.safetensors"]) == 0
    monkeypatch.setattr("internal_policy.lenses.sums.EVERY", 0.0)
    monkeypatch.setattr("internal_policy.lenses.sums.SHARE", 0)
    gradients, calls = jacobian._gradients, []

    def stop(*given: Any) -> torch.Tensor:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return gradients(*given)

    monkeypatch.setattr(jacobian, "_gradients", stop)
    assert main(asked) == 130
    assert "Continue with: internal-policy fit-lens" in capsys.readouterr().err
    assert main(asked) == 0
    assert len(calls) == 3 + 2  # of 4 pieces, 2 were kept
    assert load_file("lens.safetensors").keys() == load_file("whole.safetensors").keys()
    for name, tensor in load_file("whole.safetensors").items():
        assert torch.equal(load_file("lens.safetensors")[name], tensor)


def test_a_single_long_text_is_enough(folder, tmp_path, capsys):
    text = tmp_path / "book.txt"
    text.write_text("What is 3 + 4? The answer is 7. " * 40)  # longer than the model reads
    words = ["--rollouts", str(text), "--max-length", "32", "--skip", "4"]
    assert main(["fit-lens", "--kind", "jacobian", "--model", str(folder), *words, "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["fitted_on"]["sequences"] > 20
    assert about["held_out"]["rollouts"] > 5


def test_the_sequences_of_a_text_are_fitted_on_or_held_out_together(words, capsys):
    assert main(["fit-lens", "--kind", "jacobian", *words, "--max-length", "9", "--skip", "4", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["held_out"]["rollouts"] == 2 * 2  # two of ten texts, in two sequences each


BAD = {
    "steps": (["--steps", "5"], "--steps has no effect with --kind jacobian. Leave it out."),
    "probes of a tuned lens": (["--kind", "tuned", "--probes", "5"], "--probes has no effect with --kind tuned."),
    "probes": (["--probes", "0"], "probes is 0; it must be 1 or more"),
    "few probes": (["--probes", "1"], "8 sequences with 1 probe each don't reach all 32 dimensions twice"),
    "max length": (["--max-length", "5"], "max-length is 5, but of each sequence the first 4 positions (--skip)"),
    "short": (["--skip", "60"], "needs 2 sequences or more of at least 62 tokens to fit on, but there are none"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_fit_is_refused_in_one_sentence(case, asked, here, capsys):
    words, sentence = BAD[case]
    asked = asked[: -2 * ("tuned" in words)] if "tuned" in words else asked
    assert main([*asked, *words]) == 2
    _, _, error = capsys.readouterr().err.partition("error: ")
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not list(here.iterdir())


# --merge


def test_lenses_of_different_texts_are_merged(asked, words, tmp_path, capsys):
    for name in "ab":
        texts = [{"text": f"Mia {name} has {n} apples and buys {n + 3} more."} for n in range(5)]
        given = str(jsonl(tmp_path / f"{name}.jsonl", *texts))
        words = [given if word.endswith(".jsonl") else word for word in asked]
        assert main([*words, "--output", f"{name}.safetensors"]) == 0
    capsys.readouterr()
    merge = ["fit-lens", "--merge", "a.safetensors", "b.safetensors", "-o", "both.safetensors"]
    assert main(merge) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Merged 2 lenses, fitted on 8 sequences (" in printed
    assert "--lens both.safetensors --sites resid_pre,resid_post" in printed
    one, other, both = (load_file(f"{name}.safetensors") for name in ("a", "b", "both"))
    for name, tensor in both.items():
        torch.testing.assert_close(tensor, (one[name] + other[name]) / 2)
    assert main([*merge, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fitted_on"]["file"] == "a.jsonl, b.jsonl"
    assert main(["fit-lens", "--merge", "a.safetensors", "both.safetensors", "-o", "c.safetensors"]) == 2
    assert "4 sequences would count twice" in capsys.readouterr().err
    assert main([*merge, "--force", "--seed", "1"]) == 2
    assert "--seed has no effect with --merge. Leave it out." in capsys.readouterr().err
    assert main(["fit-lens", "--merge", "a.safetensors", "b.safetensors", "-o", "a.safetensors", "--force"]) == 2
    assert "a.safetensors, which is also an input" in capsys.readouterr().err
