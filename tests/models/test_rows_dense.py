"""Rows of attention-only families: scans agree with plain transformers, and outputs are read after dropout."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import all_points, random_rollout, read, tiny_model

from internal_policy.measure.metrics import entropy
from internal_policy.models.head import logit_transform
from internal_policy.models.hooks import HookPoint
from internal_policy.models.rows import dense, experts
from internal_policy.scans.scan import scan

ROWS = {**dense.ROWS, **experts.ROWS}
QUICK = ["exaone4", "glm4_moe", "starcoder2"]
EVERY = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ROWS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_a_scan_agrees_with_plain_transformers(name, dtype, tokenizer):
    model: Any = tiny_model(name).to(dtype)
    one = random_rollout(3, 20)
    found = scan(model, tokenizer, [one], readouts=["raw"]).policies.sort_values("position")
    with torch.inference_mode():
        out = model(torch.tensor([one.ids]), output_hidden_states=True)
        weight, transform = model.get_output_embeddings().weight.double(), logit_transform(model)
        for layer, hidden in enumerate(out.hidden_states):
            site = "final" if layer == 3 else "resid_pre"
            expected = entropy(transform(hidden[0, 2:-1].double() @ weight.T)).numpy()
            entropies = found.loc[found["layer"] == layer, f"{site}.entropy"]
            np.testing.assert_allclose(entropies, expected, atol=2e-4, err_msg=f"{layer}.{site}")
    if dtype == torch.float32:
        theirs = torch.log_softmax(out.logits[0, 2:-1].double(), -1).gather(-1, torch.tensor([one.response_ids]).T)
        logprobs = found.loc[found["layer"] == 3, "final.logprob"]
        np.testing.assert_allclose(logprobs, theirs[:, 0], atol=2e-4)


@pytest.mark.parametrize("name", ["seed_oss", "starcoder2"])
def test_module_outputs_are_read_after_dropout(name, input_ids):
    model = tiny_model(name).train()
    states = read(model, all_points(model), input_ids)
    for site in ("attn_out", "mlp_out"):
        assert (states[HookPoint(1, site)] == 0).float().mean() > 0.3
