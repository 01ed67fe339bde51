"""How long a scan takes, from what this machine needs for its pieces."""

from dataclasses import astuple, replace

import pytest
import torch
from conftest import tiny_model

from internal_policy.measure.metrics import MEASURES
from internal_policy.models.families import sites_of
from internal_policy.models.modules import decoder_layers
from internal_policy.scans import estimate
from internal_policy.scans.estimate import Size, Speed, active_weights, measured, policies_of, seconds
from internal_policy.scans.selection import Selection, plan

GIVEN = Size(
    tokens=100,
    measured=100,
    prompts=20,
    batches=2,
    steps=0,
    layers=3,
    weights=1000,
    unembedding=500,
    policies=7,
    scaled=2,
)
SPEED = Speed(policy=0.5, scaled=0.75, wide=1e-3, narrow=1e-2, layer=0.25, step=2.0)


def test_given_responses_are_read_once_and_every_policy_is_measured():
    # 120 tokens x 1000 weights, 2 batches x 3 layers, and 100 tokens x (5 plain + 2 scaled policies)
    assert seconds(GIVEN, SPEED) == pytest.approx(120 * 1000 * 1e-3 + 2 * 3 * 0.25 + 100 * (5 * 0.5 + 2 * 0.75))


def test_sampling_adds_the_prompts_and_every_step():
    sampled = replace(GIVEN, steps=40)
    # the prompts once more, and 40 steps that read 1500 weights, call 3 layers and choose a token
    more = 20 * 1000 * 1e-3 + 40 * (1500 * 1e-2 + 3 * 0.25 + 2.0)
    assert seconds(sampled, SPEED) - seconds(GIVEN, SPEED) == pytest.approx(more)


@pytest.mark.parametrize(
    ("readouts", "measures", "expected"),
    [
        (("raw",), MEASURES, (20, 9)),  # final, and 3 layers x 7 sites, of which 2 are the site of another layer
        (("raw", "norm"), MEASURES, (40, 9)),  # 3 layers x 3 outputs are scaled to the norms of their inputs
        (("norm",), MEASURES, (20, 0)),
        (("raw",), ("entropy",), (20, 0)),
        (("raw",), ("norm",), (0, 0)),
    ],
    ids=str,
)
def test_policies_are_counted_for_each_readout(readouts, measures, expected):
    selection = Selection((0, 1, 2), readouts=readouts, measures=measures)
    assert policies_of(selection, plan(selection)) == expected


def test_the_active_weights_are_those_of_the_layers_matrices():
    model = tiny_model("llama")
    matrices = [w for layer in decoder_layers(model) for w in layer.parameters() if w.dim() == 2]
    assert active_weights(model) == sum(weight.numel() for weight in matrices)


def test_the_weights_that_read_images_are_not_active():
    llava, llama = tiny_model("llava"), tiny_model("llama")
    assert active_weights(llava) == active_weights(llama)


def test_of_experts_only_those_that_a_token_is_sent_to_are_active():
    one, all_of_them = (
        active_weights(tiny_model("mixtral", num_local_experts=4, num_experts_per_tok=n)) for n in (1, 4)
    )
    expert = tiny_model("mixtral", num_local_experts=4).config
    size = 3 * expert.hidden_size * expert.intermediate_size * expert.num_hidden_layers
    assert all_of_them - one == 3 * size


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
def test_every_speed_is_measured(name):
    config = tiny_model(name).config
    selection = Selection((0, 1, 2), sites_of(config), ("raw", "norm"), top_k=5)
    speed = measured(config, selection, torch.float32, torch.device("cpu"), 4, 40)
    assert all(value > 0 for value in astuple(replace(speed, step=1.0)))
    assert speed.step >= 0


def test_a_measurement_is_repeated_until_its_time_is_over(monkeypatch):
    now, calls = [0.0], []

    def run() -> None:
        calls.append(1)
        now[0] += 0.25

    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(estimate, "BUDGET", 1.0)
    assert estimate._mean(run, torch.device("cpu")) == 0.25
    assert len(calls) == 1 + 4
