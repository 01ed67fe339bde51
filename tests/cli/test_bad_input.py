"""Models, problems and options that can't be used are refused in one sentence."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from conftest import one_sentence, tiny_model
from safetensors.torch import load_file, save_file

from internal_policy.__main__ import main

pytestmark = pytest.mark.usefixtures("here")


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
    one_sentence(
        capsys, "gpt_neox has no resid_mid because attention and FFN read the same stream and are added to", here
    )


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_a_layer_that_the_model_does_not_have_is_refused_before_work(
    command, folder, problems, here, capsys, monkeypatch
):
    monkeypatch.setattr("internal_policy.models.loading.load_model", None)
    assert main([command, "--at", "3.attn_out", "--model", str(folder), "--problems", str(problems)]) == 2
    one_sentence(capsys, "There is no hook point 3.attn_out: the model's layers are 0 to 2.", here)


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
    "cut short": (_cut_short, "Can't load"),
    "a weight missing": (_without_a_weight, "has no weights for model.layers.1.mlp.up_proj.weight"),
    "no tokenizer": (_without_tokenizer, "tokenizer"),
    "a file": (lambda _, folder: folder / "config.json", "Use a model folder"),
    "nothing": (lambda *_: "", "Can't load a model from ''. Use a model folder"),
    "no model": (lambda here, _: here, "config.json is missing"),
    "unknown family": (
        lambda *a: _model(*a, model_type="roberta"),
        "roberta isn't supported: its tokens see later tokens",
    ),
    "pickled": (_pickled, "has only pickled weights"),
    "NaN": (_with_nan, "NaN or infinite weights in model.layers.1.mlp.up_proj.weight"),
    "no chat template": (_without_template, "no chat template. Use --chat-template FILE to give one"),
    "hub id offline": (lambda *_: "Qwen/Qwen3-0.6B", "the hub can't be reached"),
    "no name": (lambda *_: "what is this?", "isn't a folder or a hub id"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_bad_model_is_refused_in_a_sentence(case, folder, problems, here, capsys):
    make, sentence = BAD_MODELS[case]
    name = make(here, folder)
    assert main(["scan", "--model", str(name), "--problems", str(problems), "--max-new-tokens", "6"]) == 2
    one_sentence(capsys, sentence, here)


BAD_PROBLEMS = {
    "no file": (None, "There is no file"),
    "empty": ("", "is empty"),
    "malformed": ('{"problem": "1 + 1"}\n{"problem": ', "line 2 isn't JSON"),
    "no column": ('{"quest": "1 + 1", "answer": "2"}\n', "Its columns are quest, answer. Choose the one"),
}


@pytest.mark.parametrize("case", BAD_PROBLEMS)
def test_a_bad_problems_file_is_refused_in_a_sentence(case, asked, problems, here, capsys):
    content, sentence = BAD_PROBLEMS[case]
    problems.unlink() if content is None else problems.write_text(content)
    assert main(asked) == 2
    one_sentence(capsys, sentence, here)


BAD_OPTIONS = {
    "layers": (["--layers", "0-9"], "--layers has 0-9, but the model's layers are 0 to 2"),
    "sites": (["--sites", "attn"], "There is no site 'attn'"),
    "measures": (["--measures", "entropy,surprise"], "There is no measure 'surprise'"),
    "top-k": (["--top-k", "100000"], "--top-k is 100000, but the model has only 320 tokens"),
    "device": (["--device", "cuda:7"], "Device 'cuda:7' isn't available"),
    "template": (["--chat-template", "nowhere.jinja"], "Can't read the chat template nowhere.jinja"),
    "template arguments": (["--chat-template-kwargs", "{"], "--chat-template-kwargs isn't JSON"),
    "temperature": (["--temperature", "-1"], "temperature is -1.0; it must be 0"),
    "too long": (["--max-new-tokens", "9999"], "the model has only 512 positions"),
    "output": (["--output", "/"], "isn't empty and contains no scan"),
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
    one_sentence(capsys, sentence, here)


def test_a_gated_model_says_where_to_accept_its_terms(asked, folder, capsys, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def gated(*_, **__):
        raise GatedRepoError("gated", response=cast(Any, SimpleNamespace(headers={}, request=None)))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", gated)
    assert main([*asked, "--model", "meta-llama/Llama-3.1-8B"]) == 2
    assert "Accept its terms at https://huggingface.co/meta-llama/Llama-3.1-8B" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["show", "nowhere"], ["export", "nowhere"], ["generate", "--at", "5.nowhere"]])
def test_other_commands_refuse_in_a_sentence_too(words, here, capsys):
    assert main(words) == 2
    one_sentence(capsys, "", here)


@pytest.mark.parametrize("seed", ["-1", str(2**32), str(10**30)])
@pytest.mark.parametrize("command", ["scan", "generate", "evaluate", "fit-lens"])
def test_a_seed_out_of_range_is_refused_in_a_sentence(command, seed, here, capsys):
    assert main([command, "--seed", seed]) == 2
    one_sentence(capsys, f"seed is {seed}; it must be between 0 and 4294967295.", here)


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_a_readout_of_the_models_own_policy_is_refused_because_it_has_no_effect(command, asked, here, capsys):
    assert main([command, *asked[1:], "--readout", "norm"]) == 2
    one_sentence(capsys, "--readout norm only applies to a hook point. Add --at, such as 5.resid_post.", here)


def test_a_lens_without_a_text_is_refused_before_the_model_is_loaded(here, capsys, monkeypatch):
    monkeypatch.setattr("internal_policy.models.loading.load_model", None)
    assert main(["lens"]) == 2
    one_sentence(capsys, "lens needs a text, such as", here)


@pytest.mark.parametrize("kernel", ["foo", "flash_attention_2"])
def test_an_attention_kernel_that_cannot_be_used_is_refused_with_others(kernel, asked, here, capsys):
    assert main([*asked, "--attn-implementation", kernel]) == 2
    one_sentence(capsys, f"The attention kernel '{kernel}' can't be used (", here)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Qwen/Qwen3-0.6B", "Can't download Qwen/Qwen3-0.6B because the hub can't be reached"),
        ("what is this?", "'what is this?' isn't a folder or a hub id."),
    ],
)
def test_the_lens_says_as_plainly_as_a_scan_why_there_is_no_model(name, sentence, here, capsys):
    assert main(["lens", "Hi", "--model", name]) == 2
    one_sentence(capsys, sentence, here)


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["scan", "--output", "s3://bucket/scan"], "s3:/bucket/scan"),
        (["scan", "--rollouts", "gs://bucket/r.jsonl"], "gs:/bucket/r.jsonl"),
        (["evaluate", "--problems", "s3://bucket/p.jsonl"], "s3:/bucket/p.jsonl"),
        (["generate", "--output", "s3://bucket/r.jsonl"], "s3:/bucket/r.jsonl"),
    ],
)
def test_an_address_in_place_of_a_path_is_refused_in_a_sentence(command, named, here, capsys):
    assert main(command) == 2
    one_sentence(capsys, f"{named} is an address, but a path is needed. Copy the files, or mount the bucket", here)


def test_an_address_as_the_cache_is_refused(here, monkeypatch, capsys):
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", "s3://bucket/cache")
    assert main(["ls"]) == 2
    assert "s3://bucket/cache is an address" in capsys.readouterr().err
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        ["scan", "--problems", "{}"],
        ["scan", "--rollouts", "{}"],
        ["scan", "--chat-template", "{}"],
        ["train", "--problems", "{}"],
        ["train", "--config", "{}"],
        ["rm", "{}"],
        ["verify", "{}"],
        ["show", "{}"],
        ["plot", "demo-qwen3", "flow", "--output", "{}.html"],
        ["export", "demo-qwen3", "--output", "{}.csv"],
    ],
    ids=" ".join,
)
def test_a_name_too_long_for_a_file_is_refused_in_a_sentence(command, here, capsys):
    assert main([word.replace("{}", "x" * 5000) for word in command]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "Errno" not in said
    assert len(said) < 1000
