"""The paper's quantities, worked out by hand and against slow plain code."""

import numpy as np
import pandas as pd
import pytest

from internal_policy.look.statistics import by_layer, changes, means, not_finite, settling


def table(rows: list[tuple], *measures: str) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["rollout", "layer", "site", "tokens", *(measures or ("entropy",))])


THREE_TOKENS = table(  # a rollout of one token and one of two; entropies are the means over a rollout's tokens
    [
        (0, 0, "resid_pre", 1, 4.0),
        (1, 0, "resid_pre", 2, 1.0),
        (0, 0, "resid_post", 1, 5.0),
        (1, 0, "resid_post", 2, 0.5),
        (0, 0, "attn_in", 1, 2.0),
        (1, 0, "attn_in", 2, 2.0),
        (0, 0, "attn_out", 1, 3.0),
        (1, 0, "attn_out", 2, 6.0),
        (0, 0, "mlp_in", 1, 1.0),
        (1, 0, "mlp_in", 2, 4.0),
        (0, 0, "mlp_out", 1, 7.0),
        (1, 0, "mlp_out", 2, 1.0),
        (0, 1, "final", 1, 0.3),
        (1, 1, "final", 2, 0.6),
    ]
)


def test_entropies_are_means_over_tokens_and_changes_their_differences():
    layers = THREE_TOKENS.assign(readout="raw")
    found = by_layer(pd.concat([layers, layers.assign(readout="norm", entropy=100.0)]), "raw")
    assert found.loc[0, "resid_pre"] == pytest.approx((4 + 2 * 1) / 3)
    assert found.loc[0, "resid_post"] == pytest.approx((5 + 2 * 0.5) / 3)
    assert found.loc[0, "change_layer"] == pytest.approx(0.0)
    assert found.loc[1, "final"] == pytest.approx((0.3 + 2 * 0.6) / 3)


def test_a_change_whose_input_was_not_measured_is_left_out():
    layers = THREE_TOKENS[THREE_TOKENS["site"] != "attn_in"].assign(readout="raw")
    assert "change_attn" not in by_layer(layers, "raw")
    assert set(changes(layers)["change"]) == {"layer", "mlp"}


def test_means_can_weigh_tokens_or_rollouts_equally():
    over_tokens = means(THREE_TOKENS).set_index(["layer", "site"])["mean"]
    over_rollouts = means(THREE_TOKENS, average="rollouts").set_index(["layer", "site"])["mean"]
    assert over_tokens[0, "resid_pre"] == pytest.approx((4 + 1 + 1) / 3)
    assert over_rollouts[0, "resid_pre"] == pytest.approx((4 + 1) / 2)
    assert over_tokens[1, "final"] == pytest.approx((0.3 + 0.6 + 0.6) / 3)


def test_sites_are_in_forward_order():
    assert list(means(THREE_TOKENS)["site"]) == [
        "resid_pre",
        "attn_in",
        "attn_out",
        "mlp_in",
        "mlp_out",
        "resid_post",
        "final",
    ]


def test_entropy_changes_are_equations_11_to_13():
    found = changes(THREE_TOKENS).set_index("change")["mean"]
    assert found["layer"] == pytest.approx(((5 - 4) + 2 * (0.5 - 1)) / 3)
    assert found["attn"] == pytest.approx(((3 - 2) + 2 * (6 - 2)) / 3)
    assert found["mlp"] == pytest.approx(((7 - 1) + 2 * (1 - 4)) / 3)


def test_the_norm_control_splits_a_change_into_direction_and_norm():
    nan = float("nan")
    layers = table(
        [
            (0, 0, "mlp_in", 1, 1.0, nan),
            (1, 0, "mlp_in", 2, 4.0, nan),
            (0, 0, "mlp_out", 1, 7.0, 3.0),
            (1, 0, "mlp_out", 2, 1.0, 2.0),
        ],
        "entropy",
        "entropy_at_input_norm",
    )
    found = changes(layers).set_index("part")["mean"]
    assert found["direction"] == pytest.approx(((3 - 1) + 2 * (2 - 4)) / 3)
    assert found["norm"] == pytest.approx(((7 - 3) + 2 * (1 - 2)) / 3)
    assert found["direction"] + found["norm"] == pytest.approx(found["total"])


def test_unmeasured_norm_control_is_left_out():
    layers = THREE_TOKENS.assign(entropy_at_input_norm=float("nan"))  # as with the norm readout
    assert set(changes(layers)["part"]) == {"total"}


def test_nan_in_one_rollout_propagates_to_the_mean():
    layers = table([(0, 0, "resid_post", 1, float("nan")), (1, 0, "resid_post", 1, 2.0)])
    assert by_layer(layers.assign(readout="raw"), "raw")["resid_post"].isna().all()
    assert means(layers)[["mean", "low", "high"]].isna().all(axis=None)


def test_one_rollout_has_a_mean_and_no_interval():
    found = changes(THREE_TOKENS[THREE_TOKENS["rollout"] == 0])
    assert found["mean"].notna().all()
    assert found[["low", "high"]].isna().all(axis=None)


def test_half_of_the_tokens_have_settled():
    frame = pd.DataFrame({"layer": [0, 1, 2], "mean": [0.2, 0.5, 1.0]})
    assert settling(frame) == 1
    assert settling(frame[:1]) is None


def test_a_measure_that_no_site_has_gives_no_means():
    layers = pd.DataFrame({"rollout": [0], "layer": [0], "site": ["resid_post"], "tokens": [3], "entropy": [1.0]})
    assert len(means(layers, "cosine")) == 0


def test_the_warning_counts_nonfinite_rollouts_and_names_the_first():
    layers = pd.concat([THREE_TOKENS.assign(layer=layer, readout="raw", norm=1.0) for layer in (0, 1)])
    assert not_finite(layers, "float16") is None
    layers.loc[(layers["layer"] == 1) & (layers["site"] == "mlp_out") & (layers["rollout"] == 1), "entropy"] = np.nan
    layers.loc[(layers["layer"] == 1) & (layers["site"] == "resid_post") & (layers["rollout"] == 1), "norm"] = np.inf
    assert not_finite(layers.reset_index(drop=True), "float16") == (
        "Warning: in 1 of 2 rollouts some numbers are NaN or infinite, the first norm at 1.resid_post: hidden states "
        "overflowed float16. Scan again with --dtype bfloat16 or --dtype float32."
    )


def test_measures_that_a_site_or_readout_lacks_raise_no_warning():
    lacking = THREE_TOKENS.assign(readout="norm", entropy_at_input_norm=np.nan, cosine=np.nan, kl=0.0)
    lacking.loc[lacking["site"] == "final", "kl"] = np.nan
    assert not_finite(lacking, "float16") is None
