"""Two scans of the same tokens are subtracted layer by layer, with intervals over pairs of rollouts."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_model

from internal_policy import bundle
from internal_policy.__main__ import main
from internal_policy.errors import InputError
from internal_policy.look import differences, scan
from internal_policy.scans.scan import scan as measured
from internal_policy.tasks.rollouts import of_ids

IDS = [[5, 9, 13, 40, 41, 42], [7, 8, 9, 10], [5, 6, 40, 44, 60], [30, 31, 32, 33, 34, 35, 36], [50, 51, 52]]


def scanned(model, tokenizer, ids=IDS):
    return scan.of(measured(model, tokenizer, of_ids(tokenizer, ids), readouts=["raw"]))


@pytest.fixture(scope="module")
def pair(tokenizer):
    """A scan, and one of the same tokens by a slightly different model, in another order."""
    model = tiny_model("llama")
    whole = scanned(model, tokenizer)
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            weight.mul_(1.02)
    return whole, scanned(model, tokenizer, IDS[::-1])


def test_differences_are_paired_by_tokens(pair):
    a, b = pair
    found = a.difference(b)
    mine, other = a.policies(["mlp_out.entropy"]), b.policies(["mlp_out.entropy"])
    other["rollout"] = len(IDS) - 1 - other["rollout"]
    both = mine.merge(other, on=["rollout", "position", "layer"])
    expected = (both["mlp_out.entropy_y"] - both["mlp_out.entropy_x"]).groupby(both["layer"]).mean().dropna()
    row = found[found["site"] == "mlp_out"].set_index("layer")
    np.testing.assert_allclose(row["difference"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["difference"], found["b"] - found["a"], atol=1e-6)
    assert (found["low"] <= found["difference"]).all()
    assert (found["difference"] <= found["high"]).all()


def test_a_scan_differs_from_itself_by_nothing_surely(pair):
    found = pair[0].difference(pair[0])
    assert (found[["difference", "low", "high"]] == 0).all(axis=None)


def test_pairing_makes_intervals_narrower_than_those_of_the_means(pair):
    a, b = pair
    found = a.difference(b).set_index(["layer", "site"])
    means = a.means().set_index(["layer", "site"])
    assert ((found["high"] - found["low"]) < (means["high"] - means["low"])).mean() > 0.9


def test_only_rollouts_with_the_same_tokens_are_used(pair, tokenizer):
    a, _ = pair
    b = scanned(tiny_model("llama"), tokenizer, [IDS[3], [60, 61, 62]])
    assert differences.partners(a, b) == {3: 0}
    assert a.difference(b)["low"].isna().all()
    with pytest.raises(InputError, match=r"no rollout with the same tokens.*--rollouts or --text"):
        a.difference(scanned(tiny_model("llama"), tokenizer, [[60, 61, 62]]))


def test_models_of_another_depth_are_not_subtracted(pair, tokenizer):
    other = scanned(tiny_model("llama", num_hidden_layers=2), tokenizer)
    with pytest.raises(InputError, match=r"have 3 and 2 layers, so they can't be subtracted"):
        pair[0].difference(other)


@pytest.mark.parametrize("measure", ["kl", "norm", "rank", "top1", "cosine", "logprob"])
def test_other_measures_are_subtracted(measure, pair):
    a, b = pair
    found = a.difference(b, measure)
    assert len(found)
    pd.testing.assert_frame_equal(found[["layer", "site"]], a.means(measure)[["layer", "site"]])


def test_the_command_prints_and_draws_differences(here, copied, capsys):
    bundled = str(bundle.DATA / "scans" / "demo-qwen3")
    assert main(["compare", bundled, str(copied), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["rollouts"] > 10
    assert {row["difference"] for row in printed["differences"]} == {0.0}
    assert main(["compare", bundled, str(copied), "--output", "error.html"]) == 0
    text = capsys.readouterr().out
    assert "with the same tokens" in text
    assert "+0.000 [+0.000, +0.000]" in text
    assert "B minus A by layer" in (here / "error.html").read_text()
