"""Weights are trained precisely, and saved in the type they had."""

import json
from typing import Any

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file
from trainer import trainer
from transformers import AutoModelForCausalLM

from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.train import precision

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.mark.parametrize(("rate", "warned"), [(1e-6, True), (0.1, False)])
def test_updates_that_bfloat16_rounds_away_are_pointed_out(rate, warned):
    model: Any = tiny_model("qwen3").bfloat16()
    said = precision.rounding(model, rate)
    assert (said is not None) == warned
    if said:
        assert "The weights are bfloat16: an update of 1e-06 changes 0.1% of them" in said


def test_float32_weights_and_frozen_bfloat16_weights_are_precise_enough():
    model: Any = tiny_model("qwen3").float()
    assert precision.rounding(model, 1e-6) is None
    model.bfloat16().requires_grad_(False)
    assert precision.rounding(model, 1e-6) is None


@pytest.mark.parametrize("shard", ["5GB", "20KB"], ids=["one file", "shards"])
def test_a_model_is_saved_in_another_type(tmp_path, shard):
    model: Any = tiny_model("qwen3").float()
    model.save_pretrained(tmp_path, max_shard_size=shard)
    precision.save_as(tmp_path, torch.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.bfloat16())


def test_an_adapter_keeps_its_type(tmp_path):
    from safetensors.torch import save_file

    save_file({"lora_A": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    precision.save_as(tmp_path, torch.bfloat16)
    assert load_file(tmp_path / "adapter_model.safetensors")["lora_A"].dtype == torch.float32


@pytest.mark.parametrize("tied", [True, False])
def test_unembedding_in_float32_makes_internal_log_probabilities_more_precise(tmp_path, tokenizer, tied):
    ids = torch.randint(5, 256, (4, 24), generator=torch.Generator().manual_seed(2))

    def logps(**options: Any) -> torch.Tensor:
        model: Any = tiny_model("qwen3", tie_word_embeddings=tied).float()
        run = trainer(tmp_path, tokenizer, model, schedule=["1.resid_post:1"], **options)
        run.model.train()
        found = []
        for point in (HookPoint(1, "resid_post"), FINAL):
            run.point = point
            with torch.no_grad():
                found.append(run._get_per_token_logps_and_entropies(run.model, ids, torch.ones_like(ids), 20)[0])
        return torch.stack(found).float()

    exact = logps()
    torch.testing.assert_close(logps(cast_lm_head_to_fp32=True), exact)
    coarse, cast = ((logps(bf16=True, cast_lm_head_to_fp32=on) - exact).abs().mean((1, 2)) for on in (False, True))
    assert (cast < coarse).all()
