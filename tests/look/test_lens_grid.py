import base64
import gzip
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from internal_policy import bundle
from internal_policy.errors import InputError
from internal_policy.look import tokens, view
from internal_policy.look.lens_grid import page
from internal_policy.look.lens_grid.payload import NO_TOKEN, payload, rounded
from internal_policy.scans import store

SCAN = bundle.DATA / "scans" / "demo-qwen3"
WIDE = {"topk_ids": 5, "topk_probs": 5}


def decoded(plane, positions):
    """The arrays of a plane, as a browser reads them."""
    data, fields, start = gzip.decompress(base64.b64decode(plane["data"])), {}, 0
    for name in plane["fields"]:
        kind = {"rank": "<i4", "topk_ids": "<u4"}.get(name, "<f4")
        shape = (len(plane["layers"]), positions, *([WIDE[name]] if name in WIDE else []))
        stop = start + 4 * int(np.prod(shape))
        fields[name] = np.frombuffer(data[start:stop], kind).reshape(shape)
        start = stop
    assert start == len(data)
    return fields


@pytest.fixture(scope="module")
def sent():
    return payload(view.default(SCAN), 3)


@pytest.mark.parametrize(
    ("readout", "site", "measure"),
    [
        ("raw", "resid_post", "entropy"),
        ("norm", "attn_out", "kl"),
        ("norm", "mlp_out", "rank"),
        ("raw", "mlp_out", "entropy_at_input_norm"),
        ("raw", "attn_out", "change"),
        ("norm", "resid_post", "change"),
    ],
)
def test_a_plane_holds_the_measured_numbers(sent, readout, site, measure):
    found = decoded(sent["planes"][readout][site], len(sent["tokens"]))[measure]
    cells = tokens.cells(replace(view.default(SCAN), readout=readout), 3, site, measure)
    cells = cells[cells["layer"] < sent["n_layers"]].pivot(index="layer", columns="position", values="value")
    assert np.allclose(found, cells.to_numpy(), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("site", ["attn_out", "resid_post"])
def test_the_top_tokens_are_those_of_the_cell(sent, site):
    fields = decoded(sent["planes"]["norm"][site], len(sent["tokens"]))
    there = tokens.predictions(replace(view.default(SCAN), readout="norm"), 3, 4, 5)
    there = there[there["site"] == site]
    assert [sent["vocabulary"][n] for n in fields["topk_ids"][5, 4]] == there["token"].tolist()
    assert np.allclose(fields["topk_probs"][5, 4], there["probability"], rtol=2e-4)


def test_only_the_first_layers_input_is_sent(sent):
    assert sent["planes"]["raw"]["resid_pre"]["layers"] == [0]
    alone = payload(view.default(SCAN), 3, ["raw"], ["resid_pre"])["planes"]
    assert list(alone) == ["raw"]
    assert alone["raw"]["resid_pre"]["layers"] == list(range(8))


def test_the_models_own_policy_is_one_row_without_a_norm(sent):
    plane = sent["planes"]["norm"]["final"]
    assert plane["layers"] == [sent["n_layers"]]
    assert "entropy" in plane["fields"]
    assert "norm" not in plane["fields"]


def test_the_actual_tokens_and_the_prompt_have_their_texts(sent):
    response = tokens.response(view.default(SCAN), 3)
    assert sent["tokens"] == response["token"].tolist()
    assert [sent["vocabulary"][n] for n in sent["actual"]] == sent["tokens"]
    problem = store.read(SCAN, "rollouts", ["rollout", "problem"]).set_index("rollout").loc[3, "problem"]
    assert str(problem) in "".join(sent["prompt"])


def test_a_window_of_positions_starts_at_its_first(sent):
    part = payload(replace(view.default(SCAN), first=2, last=5), 3)
    assert (part["first"], part["tokens"]) == (2, sent["tokens"][2:6])


def test_a_long_response_is_sent_in_windows(monkeypatch, sent):
    monkeypatch.setattr("internal_policy.look.lens_grid.payload.MOST", 4)
    part = payload(view.default(SCAN), 3, position=6)
    assert (part["first"], part["tokens"]) == (4, sent["tokens"][4:8])
    assert part["ends"] == sent["ends"] == [0, len(sent["tokens"]) - 1]
    whole, found = (decoded(p["planes"]["raw"]["mlp_out"], len(p["tokens"]))["kl"] for p in (sent, part))
    assert np.array_equal(found, whole[:, 4:8])


def test_what_was_not_measured_is_refused_by_name():
    with pytest.raises(InputError, match="no site 'nowhere'"):
        payload(view.default(SCAN), 0, sites=["nowhere"])
    with pytest.raises(InputError, match="readout 'tuned'"):
        payload(view.default(SCAN), 0, readouts=["tuned"])
    with pytest.raises(InputError, match="999"):
        payload(view.default(SCAN), 999)


def test_rounded_numbers_keep_three_digits_and_what_is_not_finite():
    values = np.array([0.0, -1.5, 3.14159274, 1e-30, 428.123, np.nan, np.inf, -np.inf], dtype=np.float32)
    assert np.allclose(rounded(values), values, rtol=1.3e-4, equal_nan=True)
    assert rounded(np.array([0.25, 1, 2], dtype=np.float32)).tolist() == [0.25, 1, 2]


def test_no_token_is_never_a_place_in_the_vocabulary(sent):
    ids = decoded(sent["planes"]["raw"]["resid_post"], len(sent["tokens"]))["topk_ids"]
    assert ids.max() < len(sent["vocabulary"]) < NO_TOKEN


def test_a_page_holds_its_data_as_text_that_ends_no_script(sent):
    hostile = {**sent, "tokens": ["</script><script>window.hacked=1</script>", "<!--"]}
    text = page.page(page.data([hostile], layer=3), "<b>title</b> & more")
    assert "</script><script>window" not in text
    assert "<b>title" not in text
    held = re.search(r'<script type="application/json" class="lens-grid-data">(.*?)</script>', text, re.DOTALL)
    assert held
    found = json.loads(held[1])
    assert found["grids"][0]["tokens"] == hostile["tokens"]
    assert found["chosen"] == {"layer": 3}


def test_a_frame_can_not_reach_the_notebook(sent):
    text = page.frame(page.data([sent]), 'a "title"')
    assert text.startswith('<iframe sandbox="allow-scripts" title="a &quot;title&quot;"')
    assert "<script" not in text
