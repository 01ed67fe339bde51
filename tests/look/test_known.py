"""From which layer on a response token is the top token."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import write_record

from internal_policy import bundle
from internal_policy.errors import InputError
from internal_policy.look import known
from internal_policy.scans import store
from internal_policy.scans.store import Tables

SCANS = bundle.DATA / "scans"


def slowly(source) -> pd.DataFrame:
    """The same, token by token and layer by layer."""
    columns = ["rollout", "position", "readout", "layer", "resid_post.rank", *known.OF_THE_MODEL]
    policies, n_layers = store.read(source, "policies", columns), store.record(source)["n_layers"]
    responses = store.read(source, "rollouts").set_index("rollout")["response_ids"]
    texts = store.read(source, "vocabulary").set_index("id")["token"]
    by_token: dict[tuple, dict[int, list]] = {}
    for *token, layer, rank, entropy, logprob, of_model in policies.itertuples(index=False, name=None):
        by_token.setdefault(tuple(token), {})[layer] = [rank, entropy, logprob, of_model]
    rows = []
    for (rollout, position, readout), layers in sorted(by_token.items()):
        first = None
        for layer in sorted({*layers} - {n_layers}, reverse=True):
            if layers[layer][0] != 1:
                break
            first = layer
        token = int(responses[rollout][position])
        rows.append((rollout, position, readout, token, texts[token], first, *layers[n_layers][1:]))
    return pd.DataFrame(rows)


def test_it_is_found_as_by_hand():
    ranks = np.array([[3, 1, 1], [1, 1, 1], [1, 1, 2], [1, 2, 1], [1, np.nan, 1]])
    found = known.first_known(ranks, np.array([0, 5, 9]))
    np.testing.assert_array_equal(found, [5, 0, np.nan, 9, 9])


def same(source) -> pd.DataFrame:
    """The table, after comparing it with the slow one."""
    found = pa.concat_tables(known.tokens(source)).to_pandas().sort_values(["rollout", "position", "readout"])
    expected = slowly(source).set_axis(found.columns, axis=1)
    pd.testing.assert_frame_equal(found.reset_index(drop=True), expected, check_dtype=False)
    return found


@pytest.mark.parametrize("name", ["demo-qwen3", "demo-llama"])
def test_the_table_of_a_scan_equals_that_of_a_slow_loop(name):
    first = same(SCANS / name)["first_known"]
    assert first.isna().any()
    assert first.nunique() > 3


@pytest.mark.parametrize("layers", [(2, 5, 7), (7,), (7, 2)])
def test_the_table_of_some_layers_in_any_order_equals_that_of_a_slow_loop(layers):
    source = SCANS / "demo-qwen3"
    arrow = {kind: pa.concat_tables(store.pieces(source, kind)) for kind in (*store.KINDS, "vocabulary")}
    of_layers = [arrow["policies"]["layer"].to_numpy() == layer for layer in (*layers, 8)]
    rows = np.stack([np.flatnonzero(here) for here in of_layers], axis=1).ravel()
    same(Tables(store.record(source), {**arrow, "policies": arrow["policies"].take(rows)}))


def test_a_scan_without_ranks_is_refused_with_how_to_get_them(tmp_path):
    table = pa.table({"rollout": [0], "resid_post.entropy": [1.0]})
    for kind in store.KINDS:
        store.write_table(store.part_path(tmp_path, kind, 0), table)
    store.write_table(tmp_path / store.VOCABULARY, pa.table({"id": [0], "token": ["a"]}))
    write_record(tmp_path)
    with pytest.raises(InputError, match=r"has no rank\. Scan again with --measures all"):
        next(known.tokens(tmp_path))
