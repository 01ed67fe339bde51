"""Effects by layer have intervals, and correlations find planted relations and nothing else."""

import numpy as np
import pandas as pd
import pytest

from internal_policy import bundle
from internal_policy.look import ablation, catalogue, view
from internal_policy.look.catalogue import Choice
from internal_policy.look.view import View
from internal_policy.scans import effects

DEMO = View(bundle.DATA / "scans" / "demo-qwen3")
LAYERS = 8


def planted(kl_of_layer: np.ndarray, noise: float = 0.01) -> pd.DataFrame:
    """A table `effects` of the demo's rollouts, in which skipping the FFN of each layer has this KL."""
    tokens, generator = view.rollouts(DEMO).set_index("rollout")["tokens"], np.random.default_rng(0)
    rows = [
        {"rollout": rollout, "layer": layer, "module": "mlp", "replacement": "zero", "tokens": tokens[rollout]}
        | {"kl": kl + noise * generator.random(), "logprob_change": -kl, "entropy_change": kl, "top_changed": 0.5}
        for layer, kl in enumerate(kl_of_layer)
        for rollout in tokens.index
    ]
    return pd.DataFrame(rows)


def ffn_changes() -> np.ndarray:
    changes = view.changes(DEMO)
    mine = changes[(changes["change"] == "mlp") & (changes["part"] == "total")].sort_values("layer")
    return mine["mean"].to_numpy()


def test_means_weigh_rollouts_by_their_tokens():
    found = planted(np.arange(LAYERS) + 1.0, noise=1.0)
    row = ablation.means(found).query("measure == 'kl' and layer == 3").iloc[0]
    mine = found[found["layer"] == 3]
    assert row["mean"] == pytest.approx(np.average(mine["kl"], weights=mine["tokens"]))
    assert row["low_all"] < row["low"] < row["mean"] < row["high"] < row["high_all"]
    other = ablation.means(found, "rollouts").query("measure == 'kl' and layer == 3").iloc[0]
    assert other["mean"] == pytest.approx(mine["kl"].mean())


@pytest.mark.parametrize(
    ("sign", "said"), [(1, "FFNs with a higher entropy change"), (-1, "FFNs with a lower entropy")]
)
def test_a_planted_relation_is_found(sign, said):
    row = ablation.correlations(DEMO, planted(5 + sign * ffn_changes())).iloc[0].to_dict()
    assert row["correlation"] == pytest.approx(sign, abs=0.05)
    assert row["p"] < 0.01
    assert said in ablation._related(row, "raw hidden states")


def test_no_relation_is_claimed_of_an_order_that_chance_explains():
    order = np.argsort(np.argsort(ffn_changes()))
    kl = np.array([4.0, 1.0, 6.0, 3.0, 7.0, 2.0, 5.0, 8.0])[order]
    row = ablation.correlations(DEMO, planted(kl)).iloc[0].to_dict()
    assert row["p"] > 0.05
    assert row["low"] > 0  # the rollouts agree, but there are only eight layers
    assert "no relation was found" in ablation._related(row, "raw hidden states")


def test_three_layers_are_too_few_for_a_correlation():
    assert not len(ablation.correlations(DEMO, planted(np.arange(3.0))))


def test_the_bundled_ablation_belongs_to_the_bundled_scan():
    assert isinstance(DEMO.source, type(bundle.DATA))
    assert effects.of_scan(DEMO.source) == [bundle.DATA.resolve() / "scans" / "demo-qwen3-ablation"]
    assert effects.of_scan(bundle.DATA / "scans" / "smollm2-135m") == []


def test_the_figure_has_a_panel_for_each_replacement_and_one_for_the_entropy():
    drawn = catalogue.draw("ablation", [DEMO], Choice())
    titles = [drawn.to_dict()["layout"][name]["title"]["text"] for name in ("yaxis", "yaxis2", "yaxis3")]
    assert titles == ["Skipped:<br>KL (nats)", "By its mean:<br>KL (nats)", "Entropy<br>change (nats)"]


def test_the_figure_of_correct_rollouts_counts_only_those():
    found = catalogue.data("ablation", [View(DEMO.source, outcome="correct")], Choice())
    assert found.abouts[0].rollouts == len(view.rollouts(View(DEMO.source, outcome="correct")))
    assert found.abouts[0].rollouts < 20
