"""The numbers of tokens, checked by hand and against the rows of the demo scan."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import write_record

from internal_policy import bundle
from internal_policy.errors import InputError
from internal_policy.look import statistics
from internal_policy.look.tokens import cells, predictions, quantiles, response, settled, window
from internal_policy.look.view import View
from internal_policy.scans import store

DEMO = View(bundle.DATA / "scans" / "demo-qwen3")
HOSTILE = ["<b>", "$x$", "\n", "<0xF0>", "<script>alert(1)</script>"]


@pytest.fixture(scope="module")
def policies() -> pd.DataFrame:
    return store.read(DEMO.source, "policies").query("readout == 'raw'")


@pytest.fixture
def planted(tmp_path) -> View:
    """Two layers, with rollouts of one and two tokens, whose top tokens are listed below."""
    choices = [  # of the output of layer 0, of layer 1, of the model
        (0, 0, (7, 9, 9)),  # settles at layer 1
        (1, 0, (9, 9, 9)),  # settles at layer 0
        (1, 1, (9, 7, 9)),  # agrees once, but not at the last layer: never settles
    ]
    rows = []
    for rollout, position, (first, second, final) in choices:
        for layer, choice in enumerate((first, second)):
            rows.append((rollout, position, layer, "raw", [choice, 1], None, 0.5 + layer, None))
        rows.append((rollout, position, 2, "raw", None, [final, 2], None, 0.25))
    names = ["rollout", "position", "layer", "readout", "resid_post.topk_ids", "final.topk_ids"]
    frame = pd.DataFrame(rows, columns=[*names, "resid_post.entropy", "final.entropy"])
    table = {name: pa.array(frame[name]) for name in frame}
    for name in names[-2:]:
        table[name] = pa.array(frame[name].tolist(), pa.list_(pa.int32(), 2))
    ids = [[0], [1, 4]]
    told = pa.table({"rollout": [0, 1], "reward": [1.0, None], "response_ids": pa.array(ids, pa.list_(pa.int32()))})
    for kind, part in {"policies": pa.table(table), "rollouts": told, "layers": told}.items():
        store.write_table(store.part_path(tmp_path, kind, 0), part, group="rollout")
    vocabulary = pa.table({"id": pa.array(range(5), pa.int32()), "token": HOSTILE})
    store.write_table(tmp_path / store.VOCABULARY, vocabulary)
    selection = {"readouts": ["raw"], "sites": ["resid_post"], "measures": ["entropy", "topk"]}
    write_record(tmp_path, n_layers=2, d_vocab=5, model="planted", selection=selection)
    return View(tmp_path)


def test_a_token_has_settled_once_the_top_token_stays_the_models_own(planted):
    found = settled(planted)
    assert list(found["settled"]) == [0.0, 1.0, 0.5, 0.5]
    assert list(found["tokens"]) == [1, 1, 2, 2]
    assert list(statistics.means(found, "settled")["mean"]) == pytest.approx([1 / 3, 2 / 3])


def test_the_cells_of_a_response_with_the_models_own_policy_after_the_last_layer(planted):
    found = cells(planted, 1, "resid_post")
    assert list(found["position"]) == [0, 0, 0, 1, 1, 1]
    assert list(found["value"]) == [0.5, 1.5, 0.25, 0.5, 1.5, 0.25]


def test_the_tokens_of_a_response_are_its_own_text_even_if_hostile(planted):
    assert list(response(planted, 1)["token"]) == ["$x$", "<script>alert(1)</script>"]
    assert list(response(planted, 0)["token"]) == ["<b>"]


def test_quantiles_are_those_of_all_tokens(policies):
    found = quantiles(DEMO, "mlp_out").set_index("layer")
    for layer in (0, 7):
        values = policies.loc[policies["layer"] == layer, "mlp_out.entropy"]
        assert list(found.loc[layer]) == pytest.approx(np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]))
    assert list(found.index) == list(range(8))


def test_quantiles_of_some_rollouts_and_positions(policies):
    right = store.read(DEMO.source, "rollouts", ["rollout", "reward"]).query("reward == 1")["rollout"]
    chosen = policies[policies["rollout"].isin(right) & policies["position"].between(2, 6)]
    found = quantiles(View(DEMO.source, outcome="correct", first=2, last=6), "resid_post").set_index("layer")
    values = chosen.loc[chosen["layer"] == 3, "resid_post.entropy"]
    assert found.loc[3, "q50"] == pytest.approx(np.quantile(values, 0.5))


def test_the_quantiles_of_the_final_policy_come_after_the_last_layer(policies):
    found = quantiles(DEMO, "final")
    assert list(found["layer"]) == [8]
    assert found["q50"].iloc[0] == pytest.approx(np.quantile(policies["final.entropy"].dropna(), 0.5))


def test_a_change_is_the_entropy_of_a_site_minus_that_of_its_input(policies):
    found = cells(DEMO, 4, "attn_out", "change").set_index(["layer", "position"])["value"]
    row = policies[(policies["rollout"] == 4) & (policies["layer"] == 2) & (policies["position"] == 5)].iloc[0]
    assert found[2, 5] == pytest.approx(row["attn_out.entropy"] - row["attn_in.entropy"])
    assert found.index.get_level_values("layer").max() == 7


def test_predictions_are_the_top_tokens_of_a_layers_policies(policies):
    found = predictions(DEMO, 4, 5, 3)
    row = policies[(policies["rollout"] == 4) & (policies["layer"] == 3) & (policies["position"] == 5)].iloc[0]
    assert list(found["site"].unique()) == ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    after = found[found["site"] == "resid_post"]
    assert list(after["id"]) == list(row["resid_post.topk_ids"])
    assert list(after["probability"]) == pytest.approx(list(row["resid_post.topk_probs"]))
    before = list(row["resid_pre.topk_ids"])
    ranks = [before.index(token) + 1 if token in before else None for token in row["resid_post.topk_ids"]]
    assert [None if pd.isna(rank) else rank for rank in after["before"]] == ranks
    assert any(rank is not None for rank in ranks)


def test_predictions_after_the_last_layer_are_the_models_own():
    assert set(predictions(DEMO, 4, 5, 8)["site"]) == {"final"}


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: cells(DEMO, 999, "attn_out"), "no rollout 999"),
        (lambda: response(DEMO, 999), "no rollout 999"),
        (lambda: cells(DEMO, 0, "attn_in", "cosine"), r"no cosine at attn_in. Choose one of attn_out, mlp_out"),
        (lambda: cells(DEMO, 0, "attn_in", "change"), "no entropy change at attn_in. Choose one of attn_out"),
        (lambda: predictions(DEMO, 0, 9999, 0), "no position 9999"),
        (lambda: predictions(DEMO, 0, 0, 99), "There is no layer 99. Choose one from 0 to 7"),
        (lambda: predictions(DEMO, 0, 0, -1), "There is no layer -1"),
        (lambda: response(View(DEMO.source, first=9999), 0), "no response tokens there"),
    ],
)
def test_a_missing_rollout_or_layer_is_refused_in_one_sentence(ask, said):
    with pytest.raises(InputError, match=said):
        ask()


@pytest.mark.parametrize("read", [lambda view, site, measure: cells(view, 0, site, measure), quantiles])
def test_a_measure_of_another_readout_is_refused_instead_of_drawn_blank(read):
    with pytest.raises(InputError, match="only measured with the raw readout"):
        read(View(DEMO.source, "norm"), "mlp_out", "entropy_at_input_norm")


def test_a_window_has_at_most_512_tokens_and_includes_the_chosen_one():
    response = pd.DataFrame({"position": range(10, 1210)})
    first, around = window(response), window(response, 700)
    assert (first["position"].min(), first["position"].max()) == (10, 521)
    assert (around["position"].min(), around["position"].max()) == (522, 1033)
    assert window(response, 1209)["position"].tolist() == list(range(1034, 1210))


@pytest.mark.parametrize("position", [9, 1210])
def test_a_position_outside_the_response_is_refused(position):
    with pytest.raises(InputError, match=f"no position {position} in this response. Choose one from 10 to 1209"):
        window(pd.DataFrame({"position": range(10, 1210)}), position)
