"""The least certain response and token, found by hand in a small scan."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from internal_policy import bundle
from internal_policy.errors import InputError
from internal_policy.look.highlights import Token, least_certain_response, least_certain_token
from internal_policy.look.view import View
from internal_policy.scans import store
from internal_policy.scans.store import Tables

DEMO = View(bundle.DATA / "scans" / "demo-qwen3")


@pytest.fixture(scope="module")
def planted() -> View:
    """The demo scan with 0 nats of entropy everywhere, except where a test plants more below."""
    kinds = {kind: pa.concat_tables(store.pieces(DEMO.source, kind)) for kind in (*store.KINDS, "vocabulary")}
    layers, policies = kinds["layers"].to_pandas(), store.read(DEMO.source, "policies")
    final = (layers["site"] == "final") & (layers["readout"] == "raw")
    layers["entropy"] = 0.0
    layers.loc[final & layers["rollout"].isin([4, 7]), "entropy"] = 2.0
    here = (policies["readout"] == "raw") & (policies["layer"] == 3)
    policies["attn_out.entropy"] = np.where(here, 0.0, 9.0)
    for rollout, position, entropy in ((0, 1, np.nan), (2, 5, 3.5), (2, 6, 3.5), (8, 0, 3.5)):
        at = here & (policies["rollout"] == rollout) & (policies["position"] == position)
        policies.loc[at, "attn_out.entropy"] = entropy
    tables = {"layers": layers, "policies": policies[["rollout", "position", "layer", "readout", "attn_out.entropy"]]}
    arrow = {kind: pa.Table.from_pandas(frame, preserve_index=False) for kind, frame in tables.items()}
    return View(Tables(dict(store.record(DEMO.source)), {**kinds, **arrow}))


def test_the_least_certain_response_has_the_highest_mean_entropy_of_the_models_own_policy(planted):
    lengths = store.read(DEMO.source, "rollouts", ["response_ids"])["response_ids"].map(len)
    overall = 2 * (lengths[4] + lengths[7]) / lengths.sum()
    found = least_certain_response(planted)
    assert (found.rollout, found.entropy, found.overall) == (4, 2.0, pytest.approx(overall))


def test_the_least_certain_token_is_found_in_one_layer_and_readout(planted):
    assert least_certain_token(planted, 3) == Token(2, 5, 3, "attn_out", 3.5)


def test_only_tokens_in_view_are_compared(planted):
    assert least_certain_token(replace(planted, first=6), 3) == Token(2, 6, 3, "attn_out", 3.5)
    assert least_certain_token(replace(planted, last=4), 3) == Token(8, 0, 3, "attn_out", 3.5)


def test_the_bundled_scan_on_disk_agrees_with_its_table():
    policies = store.read(DEMO.source, "policies").query("readout == 'raw' and layer == 6")
    most = policies.nlargest(1, "attn_out.entropy").iloc[0]
    found = least_certain_token(DEMO, 6)
    assert (found.rollout, found.position, found.entropy) == (
        most["rollout"],
        most["position"],
        most["attn_out.entropy"],
    )


def test_what_was_not_measured_is_refused(planted):
    with pytest.raises(InputError, match=r"There is no site 'mlp'"):
        least_certain_token(planted, 3, "mlp")
    with pytest.raises(InputError, match="has only NaN as entropy at attn_out"):
        least_certain_token(planted, 99)
