"""Models are loaded by name from Python."""

import pytest
import torch
from conftest import saved, tiny_model

from internal_policy import bundle, errors
from internal_policy.errors import InputError
from internal_policy.models.adapters import inside
from internal_policy.models.checkpoint import Checkpoint
from internal_policy.models.loading import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    return saved(tiny_model("llama").float(), tokenizer, tmp_path_factory.mktemp("model"))


def test_a_bundled_model_is_loaded_by_its_name():
    model, tokenizer = load("demo-qwen3", device="cpu")
    assert inside(model).config.name_or_path == str(bundle.model("demo-qwen3"))
    ids = tokenizer("1 + 1", return_tensors="pt").input_ids
    assert model(input_ids=ids).logits.shape == (*ids.shape, inside(model).config.vocab_size)


def test_a_model_is_loaded_in_evaluation_mode_with_the_given_options(folder):
    loaded, _ = load(str(folder), device="cpu", dtype="bfloat16", attn_implementation="eager")
    model = inside(loaded)
    assert (model.training, model.dtype, model.config._attn_implementation) == (False, torch.bfloat16, "eager")


def test_loading_without_torch_names_the_extra_to_install(monkeypatch):
    monkeypatch.setattr(errors, "find_spec", {}.get)
    with pytest.raises(InputError, match=r"needs torch, .* pip install 'internal-policy\[models\]'"):
        load("demo-qwen3")


@pytest.mark.parametrize("name", ["demo-qwen2", "demo-", "", ".", "../models/demo-qwen3"])
def test_other_names_are_not_bundled_models(name):
    assert bundle.model(name) is None
    assert Checkpoint(name).place == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "no/such/folder"}, "'no/such/folder' isn't a folder or a hub id. Use one such as Qwen/Qwen3-0.6B."),
        ({"device": "cuda:7"}, "Try device auto."),
    ],
)
def test_loading_errors_make_sense_in_python(arguments, message, folder):
    with pytest.raises(InputError) as refusal:
        load(**{"name": str(folder), **arguments})
    assert message in str(refusal.value)
    assert "--" not in str(refusal.value)
