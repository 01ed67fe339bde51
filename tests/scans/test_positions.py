"""Measuring some positions of a response gives the numbers of a scan of all of them."""

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import random_rollout, tiny_model
from hypothesis import given
from hypothesis import strategies as st

import internal_policy as ip
from internal_policy.errors import InputError
from internal_policy.look import tokens, view
from internal_policy.look.lens_grid import payload
from internal_policy.look.pairs import ELSEWHERE, Side, differences, obstacle
from internal_policy.look.view import View
from internal_policy.scans import partial
from internal_policy.scans.positions import EVERY, Positions, parse, within
from internal_policy.scans.scan import Scanner, scan
from internal_policy.scans.selection import Selection
from internal_policy.scans.store import Tables

AT = [3, 7, 11]


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen3")


@pytest.fixture(scope="module")
def rollouts():
    """Responses of 9, 30 and 2 tokens; the last ends before the first measured position."""
    return [random_rollout(n, m, seed) for seed, (n, m) in enumerate([(3, 9), (5, 30), (4, 2)])]


@pytest.fixture(scope="module")
def whole(model, tokenizer, rollouts):
    return scan(model, tokenizer, rollouts)


@pytest.fixture(scope="module")
def sparse(model, tokenizer, rollouts):
    return scan(model, tokenizer, rollouts, positions=(3, 12), every=4)


@given(st.integers(0, 9), st.none() | st.integers(0, 20), st.integers(1, 5), st.integers(0, 30), st.integers(0, 30))
def test_measured_positions_in_a_window_are_those_counted_one_by_one(first, more, every, length, start):
    last = None if more is None else first + more
    chosen = [n for n in range(length) if n >= first and (last is None or n <= last) and (n - first) % every == 0]
    measured = Positions(first, last, every).of(length)
    assert list(measured) == chosen
    assert list(within(measured, start, start + 7)) == [n for n in chosen if start <= n <= start + 7]
    assert list(within(measured, start, None)) == [n for n in chosen if n >= start]


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (EVERY, ""),
        (Positions(100, 200), "positions 100 to 200"),
        (Positions(7, 7), "position 7"),
        (Positions(100), "positions from 100"),
        (Positions(every=2), "every 2nd token"),
        (Positions(5, None, 12), "every 12th token of positions from 5"),
    ],
)
def test_positions_are_said_in_words(chosen, said):
    assert str(chosen) == said
    assert bool(chosen) is bool(said)
    verb = "were" if said.startswith("positions") else "was"
    assert chosen.note == (said and f"Only {said} {verb} measured.")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"positions": (3, 1)}, "The positions are 3 to 1. Give a range from 0"),
        ({"positions": (-1, 3)}, "The positions are -1 to 3. Give a range from 0"),
        ({"every": 0}, "every is 0; it must be 1 or more"),
        (
            {"positions": (30, None)},
            "at positions from 30, because responses have at most 30 tokens",
        ),
    ],
)
def test_positions_that_cant_be_measured_are_refused(given, said, model, tokenizer, rollouts):
    with pytest.raises(InputError, match=said):
        ip.scan(model, tokenizer, rollouts, **given)


@pytest.mark.parametrize("text", ["", "-", "a", "3-1", "9" * 5000, "0-" + "9" * 5000])
def test_a_text_that_isnt_a_range_of_positions_is_refused(text):
    with pytest.raises(InputError, match="--positions is"):
        parse(text)


def test_the_numbers_at_the_positions_are_those_of_a_whole_scan(whole, sparse):
    expected = whole.policies[whole.policies["position"].isin(AT) & (whole.policies["rollout"] < 2)]
    assert sparse.policies["position"].unique().tolist() == AT
    assert sparse.policies[["rollout", "position"]].drop_duplicates().to_numpy().tolist() == [
        *([0, at] for at in AT[:2]),
        *([1, at] for at in AT),
    ]
    for name in expected.columns:
        one, other = sparse.policies[name].dropna(), expected[name].dropna()
        if pd.api.types.is_numeric_dtype(one):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6, err_msg=name)
        else:
            assert list(map(str, one.head(200))) == list(map(str, other.head(200))) or name.endswith("topk_probs")


def test_means_are_over_the_measured_tokens(sparse):
    measured = sparse.layers[(sparse.layers["site"] == "mlp_out") & (sparse.layers["readout"] == "norm")]
    rows = sparse.policies[(sparse.policies["readout"] == "norm") & (sparse.policies["layer"] < 3)]
    plain = rows.groupby(["rollout", "layer"])["mlp_out.entropy"].mean()
    np.testing.assert_allclose(measured.set_index(["rollout", "layer"])["entropy"], plain, rtol=1e-6)
    assert dict(measured.groupby("rollout")["tokens"].first()) == {0: 2, 1: 3}
    assert sparse.record["tokens"] == 5


def test_a_batch_without_a_measured_position_has_empty_tables(model, tokenizer, rollouts, sparse):
    selection = Selection((0, 1, 2), positions=Positions(3, 12, 4))
    empty = Scanner.of(model, selection).measure(rollouts[2:], 2)
    assert [len(table) for table in empty] == [0, 0]
    assert [table.schema for table in empty] == [sparse.arrow[kind].schema for kind in ("policies", "layers")]


def test_positions_are_recorded_only_where_some_are_left_out(whole, sparse):
    assert "positions" not in whole.record["selection"]
    assert sparse.record["selection"]["positions"] == {"first": 3, "last": 12, "every": 4}


def test_a_view_counts_and_shows_the_measured_tokens(sparse, rollouts):
    shown = View(sparse, "norm")
    assert view.rollouts(shown)["tokens"].tolist() == [2, 3]
    assert view.about(shown).which == "every 4th token of positions 3 to 12"
    assert view.rollouts(View(sparse, "norm", first=4, last=8))["tokens"].tolist() == [1, 1]
    response = tokens.response(shown, 1)
    assert response["position"].tolist() == AT
    assert response["id"].tolist() == [rollouts[1].response_ids[at] for at in AT]
    assert tokens.cells(shown, 1, "mlp_out")["position"].unique().tolist() == AT
    with pytest.raises(InputError, match=r"There is no position 4 in this response. Choose one from 3 to 11 that was"):
        tokens.window(response, 4)


def test_a_grid_has_the_measured_tokens_at_their_positions(sparse, rollouts):
    found = payload.payload(View(sparse, "norm"), 1)
    places = [found["first"] + column * found["every"] for column in range(len(found["tokens"]))]
    assert (places, found["ends"]) == (AT, [3, 11])
    assert "Only every 4th token of positions 3 to 12 was measured" in found["readouts"][0]["note"]


def test_other_measured_positions_are_not_subtracted(whole, sparse, model, tokenizer, rollouts):
    a, b = (Side(View(each, "norm"), 1) for each in (whole, sparse))
    assert obstacle(a, b) == ELSEWHERE
    assert ELSEWHERE.startswith("A and B were measured at different positions")
    with pytest.raises(InputError, match="measured at different positions"):
        differences(b, a)
    same = scan(model, tokenizer, rollouts, positions=(3, 14), every=4)
    found = differences(b, Side(View(same, "norm"), 1))
    assert found["position"].unique().tolist() == AT
    assert not found["difference"].any()


def test_a_scan_that_is_still_measured_lacks_only_positions_to_measure(sparse, rollouts):
    begun = sparse.arrow["policies"].slice(0, 8)
    tables = partial.tables(sparse.record, sparse.arrow["rollouts"], [begun], sparse.vocabulary)
    found = tables.policies[["rollout", "position"]].drop_duplicates().sort_values(["rollout", "position"])
    assert found.to_numpy().tolist() == [[0, 3], [0, 7], *([1, at] for at in AT)]
    assert len(tables.policies) == len(sparse.policies)


def test_shards_put_together_equal_a_single_scan(sparse, model, tokenizer, rollouts):
    options = {"positions": (3, 12), "every": 4, "batch_size": 1}
    whole = ip.scan(model, tokenizer, rollouts, **options).source
    merged = ip.merge([ip.scan(model, tokenizer, rollouts, **options, shard=(i, 3)) for i in range(3)]).source
    assert isinstance(whole, Tables)
    assert isinstance(merged, Tables)
    assert merged.arrow["policies"].equals(whole.arrow["policies"])
    assert merged.record["tokens"] == sparse.record["tokens"]


def test_parts_of_a_long_sparse_response_have_every_token_once():
    response = pd.DataFrame({"position": range(3, 90, 4)})
    parts = [tokens.window(response, at, 5)["position"].tolist() for at in (3, 23, 43, 63, 83)]
    assert [at for part in parts for at in part] == list(range(3, 90, 4))
    assert all(before[-1] < after[0] for before, after in pairwise(parts))


def test_a_range_is_parsed():
    found: Any = [parse(text) for text in (None, "0-99", "100-", "7")]
    assert found == [(0, None), (0, 99), (100, None), (7, 7)]
