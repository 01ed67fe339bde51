"""The paper's quantities, by hand."""

import pandas as pd
import pytest

from internal_policy.analysis import by_layer


def test_entropies_are_means_over_tokens_and_changes_their_differences():
    rows = [  # two rollouts of 1 and 3 tokens, one layer
        (0, "raw", 0, "resid_pre", 1, 4.0),
        (1, "raw", 0, "resid_pre", 3, 2.0),
        (0, "raw", 0, "resid_post", 1, 8.0),
        (1, "raw", 0, "resid_post", 3, 4.0),
        (0, "raw", 1, "final", 1, 1.0),
        (1, "raw", 1, "final", 3, 2.0),
        (0, "norm", 0, "resid_post", 1, 100.0),
    ]
    layers = pd.DataFrame(rows, columns=["rollout", "readout", "layer", "site", "tokens", "entropy"])
    found = by_layer(layers, "raw")
    assert found.loc[0, "resid_pre"] == pytest.approx((4 + 3 * 2) / 4)
    assert found.loc[0, "resid_post"] == pytest.approx((8 + 3 * 4) / 4)
    assert found.loc[0, "change_layer"] == pytest.approx(2.5)
    assert found.loc[1, "final"] == pytest.approx(7 / 4)
    assert "change_attn" not in found


def test_a_rollout_that_is_not_a_number_makes_the_mean_not_a_number():
    rows = [(n, "raw", 0, "resid_post", 1, entropy) for n, entropy in enumerate([float("nan"), 2.0])]
    layers = pd.DataFrame(rows, columns=["rollout", "readout", "layer", "site", "tokens", "entropy"])
    assert by_layer(layers, "raw")["resid_post"].isna().all()
