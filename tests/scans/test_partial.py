"""A scan that is still being measured."""

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from internal_policy import bundle
from internal_policy.look.lens_grid.payload import payload
from internal_policy.look.view import View
from internal_policy.scans import partial, records, store
from internal_policy.scans.store import Tables


@pytest.fixture
def whole() -> Tables:
    """One response of a bundled scan."""
    folder = next(folder for folder in bundle.scans() if folder.name == "demo-qwen3")
    tables = {kind: pa.concat_tables(store.pieces(folder, kind)) for kind in ("policies", "layers", "vocabulary")}
    rollouts = pa.concat_tables(store.pieces(folder, "rollouts")).slice(0, 1)
    only = ds.field("rollout") == 0
    record = records.read(folder / store.RECORD)
    return Tables(record, {**tables, "rollouts": rollouts, "policies": tables["policies"].filter(only)})


def test_what_is_not_measured_yet_is_missing(whole):
    half = whole.arrow["policies"].filter(ds.field("position") < 5)
    tables = partial.tables(whole.record, whole.arrow["rollouts"], [half], whole.vocabulary)
    policies = tables.policies.sort_values(["readout", "position", "layer"])
    assert len(policies) == len(whole.policies)
    assert np.array_equal(policies["mlp_out.entropy"].isna(), (policies["position"] >= 5) | (policies["layer"] == 8))


def test_all_pieces_make_the_payload_of_the_finished_scan(whole):
    policies = whole.arrow["policies"]
    pieces = [
        policies.filter(ds.field("position") == position) for position in policies["position"].unique().to_pylist()
    ]
    tables = partial.tables(whole.record, whole.arrow["rollouts"], pieces, whole.vocabulary)
    readout = whole.record["selection"]["readouts"][0]
    assert payload(View(tables, readout), 0)["planes"] == payload(View(whole, readout), 0)["planes"]
