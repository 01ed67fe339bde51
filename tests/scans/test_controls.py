"""The controls of a scan agree with a slow reference, and don't depend on how the rollouts were cut up."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import all_points, random_rollout, read, slow, tiny_model
from torch.distributions import Categorical

from internal_policy.errors import InputError
from internal_policy.measure.controls import DIRECTIONS, NULLS, Controls
from internal_policy.measure.kernel import Kernel
from internal_policy.measure.metrics import CONTROLS, KNOWN, MEASURES
from internal_policy.measure.sites import INPUT_OF, ONLY_AT, WITH_FINAL
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.modules import final_norm
from internal_policy.models.policy import unembed
from internal_policy.scans import blocks, estimate
from internal_policy.scans.footprint import Batch, memory
from internal_policy.scans.reader import reader_of
from internal_policy.scans.scan import Scanner, scan
from internal_policy.scans.selection import Selection, plan

READOUTS = ("raw", "norm")
FAMILIES = ["llama", "gemma2", *slow("granite", "phi", "qwen3")]
"""Gemma 2 caps its logits, Granite divides them, and Phi adds a bias."""


@pytest.fixture
def rollouts():
    return [random_rollout(n, m, seed) for seed, (n, m) in enumerate([(3, 5), (1, 20), (25, 1)])]


def renyi(logits, order):
    return (torch.logsumexp(order * logits, -1) - order * torch.logsumexp(logits, -1)) / (1 - order)


def reference(model, one, point, readout, states, controls):
    """Every control at a hook point, from all logits of the whole text."""
    place = None if point == FINAL else point
    targets = torch.tensor(one.response_ids)

    def logits(state, at=place):
        return unembed(model, state, readout if at else "raw", at)

    def entropy(values):
        return Categorical(logits=values).entropy()

    own = logits(states[point])
    numbers = {"renyi_half": renyi(own, 0.5), "renyi_2": renyi(own, 2), "logit_scale": own.std(-1, correction=0)}
    if point == FINAL:
        return numbers
    numbers["entropy_shuffled"] = entropy(logits(states[point][:, controls._order]))
    directions = controls._directions[targets % DIRECTIONS]
    numbers["entropy_random"] = entropy(logits(directions * states[point].norm(dim=-1, keepdim=True)))
    if point.site in INPUT_OF:
        before = HookPoint(point.layer, INPUT_OF[point.site])
        scale = logits(states[before], before).std(-1, correction=0) / numbers["logit_scale"]
        norm = (lambda x: x) if readout == "raw" else final_norm(model)
        scaled = norm(states[point]) * scale.unsqueeze(-1)
        numbers["entropy_at_input_scale"] = entropy(unembed(model, scaled))
    return numbers


@pytest.mark.parametrize("name", FAMILIES)
def test_every_control_equals_the_slow_reference(name, tokenizer, rollouts):
    model = tiny_model(name)
    found: Any = scan(model, tokenizer, rollouts, readouts=READOUTS, measures=CONTROLS).policies
    controls = Controls(Kernel(reader_of(model).unembedding.weight), NULLS)
    for number, one in enumerate(rollouts[:1]):
        at = slice(len(one.prompt_ids) - 1, len(one.ids) - 1)
        with torch.no_grad():
            whole = read(model, all_points(model), torch.tensor([one.ids]))
            states = {point: hidden[0, at] for point, hidden in whole.items()}
            for point, readout in product(states, READOUTS):
                layer = model.config.num_hidden_layers if point == FINAL else point.layer
                rows = found[(found["rollout"] == number) & (found["readout"] == readout) & (found["layer"] == layer)]
                for name, expected in reference(model, one, point, readout, states, controls).items():
                    values = rows.sort_values("position")[f"{point.site}.{name}"]
                    what = f"{model.config.model_type} {point} {readout} {name}"
                    np.testing.assert_allclose(values, expected, rtol=2e-6, atol=2e-6, err_msg=what)


def test_every_control_is_a_column_of_its_sites_and_a_mean(llama, tokenizer, rollouts):
    found = scan(llama, tokenizer, rollouts, readouts=READOUTS, measures=KNOWN)
    for name in CONTROLS:
        sites = ONLY_AT.get(name, WITH_FINAL)
        assert {f"{site}.{name}" for site in sites} == {c for c in found.policies.columns if c.endswith(f".{name}")}
        rows = found.layers[found.layers["site"].isin(sites)]
        assert rows[name].notna().all()
        assert found.layers.drop(rows.index)[name].isna().all()


def test_the_other_numbers_are_those_of_a_scan_without_controls(llama, tokenizer, rollouts):
    found, without = (scan(llama, tokenizer, rollouts, measures=names) for names in (KNOWN, MEASURES))
    columns = [*without.policies.columns]
    pd.testing.assert_frame_equal(found.policies[columns], without.policies, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("measures", [("entropy_at_input_scale",), ("entropy_random",), ("renyi_2",)], ids=str)
def test_a_control_alone_has_the_same_numbers(llama, tokenizer, rollouts, measures):
    options = {"layers": [1], "sites": ["attn_out"], "readouts": READOUTS}
    whole: Any = scan(llama, tokenizer, rollouts, measures=KNOWN, readouts=READOUTS).policies
    found: Any = scan(llama, tokenizer, rollouts, measures=measures, **options).policies
    rows = whole[whole["layer"].isin([1, 3])].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, rows[[*found.columns]], rtol=1e-6, atol=1e-6)


def test_batches_and_their_order_do_not_change_the_controls(llama, tokenizer, rollouts):
    together: Any = scan(llama, tokenizer, rollouts, measures=CONTROLS).policies
    backwards: Any = scan(llama, tokenizer, rollouts[::-1], measures=CONTROLS, batch_size=2).policies
    for number in range(3):
        one = together[together["rollout"] == number].drop(columns="rollout").reset_index(drop=True)
        other = backwards[backwards["rollout"] == 2 - number].drop(columns="rollout").reset_index(drop=True)
        pd.testing.assert_frame_equal(one, other, rtol=1e-6, atol=1e-6)


def test_pieces_of_a_text_do_not_change_the_controls(llama, tokenizer, rollouts, monkeypatch):
    whole: Any = scan(llama, tokenizer, rollouts, measures=CONTROLS).policies
    weight = reader_of(llama).unembedding.weight
    monkeypatch.setattr(blocks, "STATE_BYTES", 10 * 20 * weight[0].nbytes * len(rollouts))  # 10 positions of 20 points
    monkeypatch.setattr(blocks, "TOGETHER", 3)
    pd.testing.assert_frame_equal(scan(llama, tokenizer, rollouts, measures=CONTROLS).policies, whole, rtol=1e-6)


def test_a_lens_reads_null_states_like_others(llama, tokenizer, rollouts):
    def half(hidden, point):
        return hidden * 0.5

    found: Any = scan(llama, tokenizer, rollouts, readouts=("raw", half), measures=CONTROLS).policies
    raw, lens = (found[found["readout"] == name].reset_index(drop=True) for name in ("raw", "half"))
    np.testing.assert_allclose(lens["mlp_in.logit_scale"].dropna(), raw["mlp_in.logit_scale"].dropna() / 2, rtol=1e-6)
    for name in ("entropy_shuffled", "entropy_random"):
        assert (lens[f"mlp_in.{name}"].dropna() > raw[f"mlp_in.{name}"].dropna()).all()


def test_the_controls_are_counted_as_work_and_memory():
    layers = (0, 1, 2)
    few, more = Selection(layers, measures=MEASURES), Selection(layers, measures=KNOWN)
    policies, scaled = estimate.policies_of(few, plan(few))
    # each readout: the shuffled and the random states as well, and 9 outputs with final at their inputs' scale
    assert estimate.policies_of(more, plan(more)) == (3 * policies + 2 * 10, scaled)
    assert more.disk_bytes(100) - few.disk_bytes(100) == 100 * 2 * 4 * 4 * (3 * 8 + 3 + 2 * 7)
    config, batch = tiny_model("llama").config, Batch(rollouts=4, prompt=10, response=30, sampled=False)
    fixed = {"weights": 1000, "largest": 100, "size": 4, "free": 2**30}
    for gpu in (False, True):
        need = [memory(config, one, plan(one), batch, gpu=gpu, **fixed).kernel for one in (few, more)]
        assert need[1] > need[0]


def test_only_what_a_kernel_measures_can_be_measured_on_a_server(llama):
    reader = replace(reader_of(llama), measure=lambda *_: iter(()))
    with pytest.raises(InputError, match=r"A server can't measure entropy_shuffled\. Leave it out"):
        Scanner.of(reader, Selection((0,), measures=("entropy", "renyi_2", "entropy_shuffled")))
    Scanner.of(reader, Selection((0,), measures=("entropy", "renyi_2")))
