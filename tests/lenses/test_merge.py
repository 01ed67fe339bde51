"""Jacobian lenses that were fitted on different sequences merge into the lens of all of them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import tiny_model

from internal_policy.errors import InputError
from internal_policy.lenses import merge
from internal_policy.lenses.jacobian import Settings, fit
from internal_policy.lenses.lens import FittedLens, Translator
from internal_policy.models.hooks import HookPoint

POINTS = [HookPoint(0, "attn_out"), HookPoint(0, "resid_post")]


def texts(number, seed):
    draw = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(5, 256, (6 + n,), generator=draw).tolist()) for n in range(number)]


def fitted(sequences):
    found: Any = fit(tiny_model("llama"), sequences, POINTS, Settings(skip=2))
    about = {
        "identity": "a",
        "model": "m",
        "d_model": 32,
        "n_layers": 3,
        "max_length": 128,
        "skip": 2,
        "probes": None,
        "fitted_on": {"file": "x.txt", "rollouts": 1, "sequences": len(sequences), "tokens": sum(map(len, sequences))},
        "digests": merge.digests(sequences),
        "kl": [],
    }
    return replace(found.lens, about=about)


@pytest.fixture(scope="module")
def three():
    return [fitted(texts(2, 0)), fitted(texts(3, 1)), fitted([*texts(2, 0), *texts(3, 1)])]


def test_merging_equals_fitting_at_once(three):
    a, b, both = three
    merged: Any = merge.merge({"a": a, "b": b})
    for point in POINTS:
        torch.testing.assert_close(merged.at[point].jacobian, both.at[point].jacobian, rtol=0, atol=1e-9)
    assert merged.about["digests"] == both.about["digests"]
    assert merged.about["fitted_on"] == {**both.about["fitted_on"], "rollouts": 2}
    assert merged.about["merged"] == 2
    assert "kl" not in merged.about


def without(lens, name):
    return replace(lens, about={key: value for key, value in lens.about.items() if key != name})


TUNED = FittedLens({POINTS[1]: Translator(torch.zeros(32, 32), torch.zeros(32))}, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda b: replace(b, about={**b.about, "identity": "b"}),
            r"b has another identity than a \(b and a\)\. Merge",
        ),
        (lambda b: replace(b, about={**b.about, "skip": 3}), r"b has another skip than a \(3 and 2\)"),
        (lambda b: replace(b, at={POINTS[1]: b.at[POINTS[1]]}), "Only one of a and b has a map for 0.attn_out"),
        (lambda b: without(b, "digests"), "b doesn't record what it was fitted on"),
        (lambda _: TUNED, "b is a tuned lens, but only Jacobian lenses can be merged"),
    ],
)
def test_lenses_that_differ_are_not_merged(three, change, said):
    with pytest.raises(InputError, match=said):
        merge.merge({"a": three[0], "b": change(three[1])})


def test_sequences_do_not_count_twice(three):
    with pytest.raises(InputError, match="3 sequences would count twice, because two of the lenses were fitted on the"):
        merge.merge({"b": three[1], "both": three[2]})


def test_a_single_lens_is_not_merged(three):
    with pytest.raises(InputError, match=r"nothing to merge\. Name 2 or more"):
        merge.merge({"a": three[0]})
    with pytest.raises(InputError, match=r"a\.safetensors is named twice"):
        merge.read(["a.safetensors", "a.safetensors"])
