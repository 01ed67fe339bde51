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
from internal_policy.look import difference_figure, differences, scan, theme, view
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
    ends = found[["low_all", "low", "difference", "high", "high_all"]]
    assert (ends.diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)


def test_a_scan_differs_from_itself_by_nothing_surely(pair):
    found = pair[0].difference(pair[0])
    assert (found[["difference", "low", "high", "low_all", "high_all"]] == 0).all(axis=None)
    assert not differences.is_significant(found).any()
    assert differences.in_words(found) == "Entropy is the same in A and B at every layer."


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


def test_entropy_changes_are_subtracted(pair):
    a, b = pair
    found = a.difference(b, "change").set_index(["layer", "site"])
    assert {site for _, site in found.index} == {"attn_out", "mlp_out", "resid_post"}
    for change, site in (("attn", "attn_out"), ("mlp", "mlp_out"), ("layer", "resid_post")):
        for name, one in (("a", a), ("b", b)):
            changes = one.changes().query(f"change == '{change}' and part == 'total'").set_index("layer")["mean"]
            np.testing.assert_allclose(found.xs(site, level="site")[name], changes, atol=1e-6)
    np.testing.assert_allclose(found["difference"], found["b"] - found["a"], atol=1e-9)


def test_two_readouts_of_a_scan_are_subtracted():
    raw = scan.open_scan("demo-qwen3")
    found = raw.difference(raw.view(readout="norm"))
    output = found[found["site"] == "resid_post"].set_index("layer")
    means = [
        one.means().query("site == 'resid_post'").set_index("layer")["mean"] for one in (raw, raw.view(readout="norm"))
    ]
    np.testing.assert_allclose(output["difference"], means[1] - means[0], atol=1e-9)
    assert (found.loc[found["site"] == "final", "difference"] == 0).all()
    said = differences.in_words(found)
    assert said.startswith(
        "Entropy in B, with 95% confidence for all layers at once: attention is lower in layers 0 to 6;"
    )
    assert said.endswith("layer output is higher in layers 0 to 7; the model's own policy is the same.")


def frame(**columns) -> pd.DataFrame:
    usual = {"layer": [0, 1, 2, 3], "site": "mlp_out", "a": 1.0, "low": -1.0, "high": 1.0}
    return pd.DataFrame({**usual, "b": 2.0, "low_all": -1.0, "high_all": 1.0, "difference": 0.5, **columns})


def test_the_layers_that_differ_significantly_are_named():
    found = frame(low_all=[0.1, 0.1, -1, -2], high_all=[1, 1, 1, -1])
    assert differences.is_significant(found).tolist() == [True, True, False, True]
    sure = "with 95% confidence for all layers at once"
    said = "FFN is higher in layers 0 and 1 and lower in layer 3"
    assert differences.in_words(found, "kl") == f"KL from the model in B, {sure}: {said}."
    assert (
        differences.in_words(frame())
        == "Entropy: no layer differs significantly (95% confidence for all layers at once)."
    )


def test_a_nan_difference_is_counted_and_never_significant():
    found = frame(difference=[0.5, np.nan, 0.5, 0.5], low_all=[0.1, np.nan, 0, 0], high_all=[1, np.nan, 1, 1])
    assert differences.is_significant(found).tolist() == [True, False, False, False]
    assert differences.in_words(found).endswith("FFN is higher in layer 0. 1 difference is NaN.")
    single = frame(low=np.nan, high=np.nan, low_all=np.nan, high_all=np.nan)
    said = "The scans have a single rollout in common, so no difference can be tested."
    assert differences.in_words(single) == said
    assert differences.in_words(frame(difference=np.nan)) == "4 differences are NaN."


def test_scans_of_other_positions_are_not_subtracted(tokenizer, pair):
    model = tiny_model("llama")
    other = scan.of(measured(model, tokenizer, of_ids(tokenizer, IDS), readouts=["raw"], every=2))
    with pytest.raises(InputError, match=r"measured different positions. Scan again with the same --positions"):
        pair[0].difference(other)


@pytest.mark.parametrize(
    ("measure", "match"),
    [("wrong", "There is no measure 'wrong' here"), ("entropy_at_input_norm", "only measured with the raw readout")],
)
def test_a_measure_that_a_side_lacks_is_refused(measure, match):
    raw = scan.open_scan("demo-qwen3")
    with pytest.raises(InputError, match=match):
        raw.difference(raw.view(readout="norm"), measure)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "compare needs two scans, or one scan and --against-readout."),
        (["demo-llama", "--against-readout", "norm"], "compare needs two scans, or one scan and --against-readout."),
        (["--against-readout", "raw"], "--against-readout is raw, which is compared with itself."),
        (["--against-readout", "wrong"], "There is no readout 'wrong'. Choose from raw, norm."),
    ],
)
def test_a_comparison_with_nothing_is_refused(words, said, capsys):
    assert main(["compare", "demo-qwen3", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_command_compares_two_readouts_of_a_scan(capsys):
    assert main(["compare", "demo-qwen3", "--against-readout", "norm", "--measure", "change"]) == 0
    text = capsys.readouterr().out
    assert "change of demo-qwen3 · through the final norm minus demo-qwen3 · raw hidden states" in text
    assert "Entropy change in B, with 95% confidence for all layers at once: attention is lower" in text
    assert main(["compare", "demo-qwen3", "--against-readout", "norm", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["readout"], printed["readout_b"]) == ("raw", "norm")
    assert printed["differences"][-1]["significant"] is False


def test_the_figure_fills_markers_of_significant_layers():
    about = view.About("a", "raw", 5, 50, 4, 100, label="one")
    found = frame(low_all=[0.1, 0.1, -1, -2], high_all=[1, 1, 1, -1])
    (line,) = [
        one for one in theme.traces(difference_figure.difference(found, (about, about))) if one.mode == "lines+markers"
    ]
    assert [*line.marker.symbol] == ["diamond", "diamond", "diamond-open", "diamond"]


def test_the_command_prints_and_draws_differences(here, copied, capsys):
    bundled = str(bundle.DATA / "scans" / "demo-qwen3")
    assert main(["compare", bundled, str(copied), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["rollouts"] > 10
    assert {row["difference"] for row in printed["differences"]} == {0.0}
    assert main(["compare", bundled, str(copied), "--output", "error.html"]) == 0
    text = capsys.readouterr().out
    assert "with the same tokens" in text
    assert "+0.000  [+0.000, +0.000]" in text
    assert "Entropy is the same in A and B at every layer." in text
    assert "B minus A by layer" in (here / "error.html").read_text()
