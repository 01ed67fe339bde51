"""What is special about models that also read images: only their language model is measured, and it reads no images."""

from typing import Any

import pytest
import torch
from conftest import all_points, random_rollout, read, same, saved, tiny_model
from safetensors.torch import load_file, save_file

import internal_policy as ip
from internal_policy.errors import InputError
from internal_policy.models import weights
from internal_policy.models.checkpoint import Checkpoint
from internal_policy.models.classes import auto_class
from internal_policy.models.families import check_sites, family_of, layer_sites
from internal_policy.models.head import unembedding
from internal_policy.models.hooks import FINAL, HookPoint, hooked
from internal_policy.models.modules import backbone
from internal_policy.models.policy import policy_logits
from internal_policy.models.rows.vision import ROWS
from internal_policy.scans import blocks as blocks_module
from internal_policy.scans.scan import scan

TEXT = {"qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text", "llama4": "llama4_text", "llava": "llama"}
"""Model that also reads images -> the family of its language model alone."""


@pytest.mark.parametrize("family", TEXT)
def test_the_policies_are_those_of_the_language_model_alone(family, input_ids):
    whole, alone = tiny_model(family), tiny_model(TEXT[family])
    backbone(alone).load_state_dict(backbone(whole).state_dict())
    unembedding(alone).load_state_dict(unembedding(whole).state_dict())
    one, other = (read(model, all_points(model), input_ids) for model in (whole, alone))
    assert list(one) == list(other)
    assert all(torch.equal(one[point], other[point]) for point in one)
    assert torch.equal(whole(input_ids).logits, alone(input_ids).logits)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llama4", "llava", "mllama"])
def test_a_folder_is_loaded_whole(family, tokenizer, tmp_path, input_ids):
    model = tiny_model(family)
    checkpoint = Checkpoint(str(saved(model, tokenizer, tmp_path)))
    loaded, _ = ip.load(checkpoint.name)
    assert type(loaded) is type(model)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(loaded(input_ids).logits, model(input_ids).logits, rtol=0, atol=1e-12)
    shapes = weights.empty(checkpoint, loaded.config)
    counted = weights.count(checkpoint, loaded.config, shapes, torch.device("cpu"))
    assert counted.bytes(8) == sum(8 * weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    ("family", "old"), [("qwen2_vl", "model.layers.0."), ("llava", "language_model.model.layers.0.")]
)
def test_weights_are_loaded_under_their_old_and_new_names(family, old, tokenizer, tmp_path, input_ids):
    model = tiny_model(family)
    file = saved(model, tokenizer, tmp_path) / "model.safetensors"
    assert any(name.startswith(old) for name in load_file(file))  # transformers still saves them so
    expected = ip.load(str(tmp_path))[0](input_ids).logits
    save_file({name: weight.contiguous() for name, weight in model.state_dict().items()}, file, {"format": "pt"})
    assert torch.equal(ip.load(str(tmp_path))[0](input_ids).logits, expected)


@pytest.mark.parametrize(
    "family",
    ["qwen2_5_vl", "qwen3_5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2_vl", "qwen3_vl"))],
)
def test_a_scan_does_not_depend_on_earlier_generation(monkeypatch, family, tokenizer, input_ids):
    model: Any = tiny_model(family)
    rollouts = [random_rollout(4, 9, seed) for seed in range(3)]
    monkeypatch.setattr(blocks_module, "STATE_BYTES", 1)  # one token at a time, with a cache
    before, logits = scan(model, tokenizer, rollouts), model(input_ids).logits
    model.generate(input_ids, max_new_tokens=2)
    assert model.model.rope_deltas is not None  # for a batch of two
    same(scan(model, tokenizer, rollouts), before)
    assert torch.equal(model(input_ids).logits, logits)


def test_every_row_is_built_with_the_class_for_more_than_text():
    assert {auto_class(row).__name__ for row in ROWS.values()} == {"AutoModelForMultimodalLM"}


def test_the_language_model_may_be_of_several_families():
    model = tiny_model("llava", model_type="qwen3")
    assert family_of(model.config) is ROWS["llava"]
    with pytest.raises(InputError, match="llava with model_type gemma2 isn't supported"):
        family_of(tiny_model("llava", model_type="gemma2").config)


# Llama 3.2 Vision, whose cross-attention layers are skipped in a text


def test_a_layer_that_reads_images_is_skipped_and_has_no_sites(input_ids):
    model = tiny_model("mllama")
    assert {layer: len(sites) for layer, sites in layer_sites(model.config).items()} == {0: 7, 1: 0, 2: 7}
    states = read(model, all_points(model), input_ids)
    assert torch.equal(states[HookPoint(2, "resid_pre")], states[HookPoint(0, "resid_post")])
    assert torch.equal(policy_logits(model, FINAL, input_ids=input_ids), model(input_ids).logits)


def test_a_scan_leaves_out_the_skipped_layers(tokenizer):
    found: Any = scan(tiny_model("mllama"), tokenizer, [random_rollout()]).policies
    found = found.drop(columns=[name for name in found if name.startswith("final.")])
    values = found.set_index("layer").drop(columns=["rollout", "position", "readout"])
    assert values.loc[1].isna().all(axis=None)
    for name in ("resid_pre.entropy", "attn_out.entropy", "resid_post.kl"):
        assert values.loc[[0, 2], name].notna().all()
    assert (values.loc[2, "resid_pre.entropy"].values == values.loc[0, "resid_post.entropy"].values).all()


def test_a_site_of_a_skipped_layer_is_refused_with_the_reason():
    model = tiny_model("mllama")
    reason = "because the layers that read images are skipped in a text without any"
    sentence = rf"Layer 1 of mllama has no resid_post {reason}\. Its sites are none\."
    with pytest.raises(InputError, match=sentence), hooked(model, ["1.resid_post"], print):
        pass
    with pytest.raises(
        InputError, match=r"There is no mlp_out in layer 1 of mllama, because .* Choose the layers 0,2, or all sites"
    ):
        check_sites(model.config, range(3), ["mlp_out"])
