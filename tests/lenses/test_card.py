"""What a lens card says: by hand, after a round trip through a file, and of files that lie."""

import hashlib
import json
import math
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import random_rollout, tiny_model

from internal_policy.lenses import card, card_text, file, fit, held_out
from internal_policy.lenses.lens import FittedLens, Jacobian, Translator
from internal_policy.measure.sites import SITES
from internal_policy.models.hooks import HookPoint

PRE, POST = HookPoint(0, "resid_pre"), HookPoint(0, "resid_post")
TEXTS = [replace(random_rollout(4, 8, seed), problem=f"{seed}") for seed in range(12)]


def jacobians(*matrices, **about) -> FittedLens:
    return FittedLens({HookPoint(n, "resid_post"): Jacobian(each) for n, each in enumerate(matrices)}, 3, about)


def intervals(*means, **columns) -> pd.DataFrame:
    """A table of a card with intervals of +-0.1, for the outputs of layers 0, 1, ..."""
    rows = [{"layer": n, "site": "resid_post", "mean": m, "low": m - 0.1, "high": m + 0.1} for n, m in enumerate(means)]
    return pd.DataFrame(rows).assign(**columns)


def read(path) -> FittedLens:
    return file.read(path, *file.sizes(path))


# by hand


def test_a_multiple_of_the_identity_is_0_off_and_its_scale_is_the_multiple():
    (row,) = card.maps(jacobians(2.5 * torch.eye(4))).to_dict("records")
    assert row == {"layer": 0, "site": "resid_post", "scale": 2.5, "off_identity": 0.0}


def test_the_share_off_the_identity_by_hand():
    # M = [[3, 2], [0, 1]]: c = (3 + 1) / 2 = 2, M - 2I = [[1, 2], [0, -1]]; |M - 2I|^2 = 6, |M|^2 = 14
    (row,) = card.maps(jacobians(torch.tensor([[3.0, 2.0], [0.0, 1.0]]))).to_dict("records")
    assert row["scale"] == pytest.approx(2)
    assert row["off_identity"] == pytest.approx(math.sqrt(6 / 14))


def test_a_matrix_without_a_trace_is_wholly_off_the_identity():
    (row,) = card.maps(jacobians(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))).to_dict("records")
    assert (row["scale"], row["off_identity"]) == (0, 1)


def test_no_other_multiple_of_the_identity_is_closer():
    each = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + torch.eye(8)
    (row,) = card.maps(jacobians(each)).to_dict("records")
    off = [((each - c * torch.eye(8)).norm() / each.norm()).item() for c in torch.linspace(-2, 3, 501).tolist()]
    assert row["off_identity"] <= min(off)
    assert row["off_identity"] == pytest.approx(min(off), abs=1e-4)


def test_a_translator_of_0_is_the_identity_whatever_its_bias():
    lens = FittedLens({POST: Translator(torch.zeros(4, 4), torch.ones(4))}, 2)
    (row,) = card.maps(lens).to_dict("records")
    assert (row["scale"], row["off_identity"]) == (1, 0)


def test_identical_halves_do_not_differ():
    each = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    assert card.difference(jacobians(each), jacobians(each.clone()))["difference"].tolist() == [0]


def test_the_difference_of_halves_by_hand():
    # A = 2I and B = I: |A - B| = |I|, |(A + B) / 2| = 1.5 |I|; translators: I + W, so W = I and W = 0
    a, b = jacobians(2 * torch.eye(4)), jacobians(torch.eye(4))
    assert card.difference(a, b)["difference"].tolist() == pytest.approx([1 / 1.5])
    a, b = (FittedLens({POST: Translator(each, torch.zeros(4))}, 2) for each in (torch.eye(4), torch.zeros(4, 4)))
    assert card.difference(a, b)["difference"].tolist() == pytest.approx([1 / 1.5])


def test_opposite_halves_have_no_mean():
    found = card.difference(jacobians(torch.eye(3)), jacobians(-torch.eye(3)))
    assert found["difference"].tolist() == [math.inf]


def test_the_digest_changes_with_the_tokens_and_with_where_the_response_begins():
    one = random_rollout(4, 8)
    moved = replace(one, prompt_ids=one.ids[:5], response_ids=one.ids[5:])
    found = [card.digest(texts) for texts in ([one], [one, one], [moved], [replace(one, response="other text")])]
    assert len({*found[:3]}) == 3
    assert found[3] == found[0]
    short = replace(one, prompt_ids=(1, 2), response_ids=(3,))
    assert card.digest([short]) == hashlib.sha256(b"[[[1,2],[3]]]").hexdigest()


# of a real fit


@pytest.fixture(scope="module")
def fitted() -> tuple[Any, FittedLens]:
    """A tiny model, and a lens of it with a card."""
    model: Any = tiny_model("llama")
    model.get_output_embeddings().weight.data.mul_(0.1)
    points = fit.points_of(dict.fromkeys(range(3), SITES), fit.STREAM)
    parts = [range(8), *fit.halves(TEXTS[:8], 0)]
    lens, *halves = fit.fit_parts(model, TEXTS[:8], points, parts, steps=10, batch_tokens=32)
    layers = held_out.measured(model, TEXTS[8:], {"tuned": lens})
    between = held_out.between(model, TEXTS[8:], *halves)
    tables = {
        "kl": held_out.kl(layers),
        "gain": held_out.gain(layers, "tuned"),
        "halves": card.difference(*halves).merge(between),
    }
    texts = {"file": "texts.jsonl", "source": "given", **card.corpus(TEXTS[:8])}
    about = {"model": "tiny", "identity": "x", "n_layers": 3, "fitted_on": texts, "held_out": card.corpus(TEXTS[8:])}
    return model, replace(lens, about={**about, "steps": 10, **card.about(lens, **tables)})


def test_the_card_of_a_fit_goes_through_its_file_unchanged(fitted, tmp_path):
    _, lens = fitted
    file.save(tmp_path / "lens.safetensors", lens)
    before, after = card.of(lens), card.of(read(tmp_path / "lens.safetensors"))
    assert card_text.as_dict(after) == card_text.as_dict(before)
    assert card_text.markdown(after, "x") == card_text.markdown(before, "x")
    assert (after.missing, after.unreadable) == ((), ())
    assert (after.model, after.identity, after.d_model, after.n_layers) == ("tiny", "x", 32, 3)
    assert after.fitted_on == card.Corpus("texts.jsonl", "given", card.digest(TEXTS[:8]), 8, 8, None, 64)
    assert after.options == {"steps": 10}
    assert len(after.kl) == 3 * 3
    assert len(after.gain) == len(after.halves) == len(after.maps) == 3


def test_the_maps_of_a_file_are_measured_not_believed(fitted, tmp_path):
    _, lens = fitted
    lie = [{"layer": 0, "site": "resid_pre", "scale": 7, "off_identity": 7}]
    file.save(tmp_path / "lens.safetensors", replace(lens, about={**lens.about, "maps": lie}))
    found = card.of(read(tmp_path / "lens.safetensors")).maps
    pd.testing.assert_frame_equal(found, card.maps(lens))


def test_the_table_has_a_row_for_each_hook_point(fitted):
    headings, *rows = card_text.table(card.of(fitted[1]))
    assert headings == ["", "raw", "norm", "tuned", "tuned, 95%", "halves, KL", "halves, maps", "off identity"]
    assert [row[0] for row in rows] == ["0.resid_pre", "0.resid_post", "1.resid_post"]
    assert all(all(cells) for cells in rows)


def test_json_has_the_documented_entries(fitted):
    found = card_text.as_dict(card.of(fitted[1]))
    assert {*found} == {
        *("kind", "model", "identity", "d_model", "n_layers", "fitted_on", "held_out", "options"),
        *("kl", "gain", "halves", "maps", "missing", "unreadable", "sentences"),
    }
    assert {*found["fitted_on"]} == {"file", "source", "sha256", "problems", "rollouts", "sequences", "tokens"}
    columns = {name: {*found[name][0]} - {"layer", "site"} for name in ("kl", "gain", "halves", "maps")}
    assert columns == {
        "kl": {"readout", "mean", "low", "high"},
        "gain": {"mean", "low", "high"},
        "halves": {"difference", "mean", "low", "high"},
        "maps": {"scale", "off_identity"},
    }
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found, allow_nan=False))


# in words


def described(gain=None, halves=None) -> str:
    tables = {"gain": gain, "halves": halves}
    lens = jacobians(*[torch.eye(4)] * 3)
    about = card.about(lens, **{name: table for name, table in tables.items() if table is not None})
    return " ".join(card_text.sentences(card.of(replace(lens, about=about))))


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ((1, 2, 3), "it is closer to the model's own policy at all 3 hook points (95%"),
        ((-1, -2, -3), "it is further from the model's own policy at all 3 hook points (95%"),
        (
            (1, 0.05, -1),
            "Compared with the logit lens, it is closer to the model's own policy at resid_post in layer 0; further "
            "from the model's own policy at resid_post in layer 2; not clearly closer or further at resid_post in "
            "layer 1 (95% intervals that hold for all hook points at once).",
        ),
    ],
)
def test_a_lens_is_better_or_worse_than_the_logit_lens_only_by_more_than_its_interval(gains, said):
    assert said in described(intervals(*gains))


def test_halves_that_are_further_apart_than_the_lens_and_the_logit_lens_are_named():
    said = described(intervals(1, 1, -1), intervals(0.5, 1.2, 1.05, difference=0.3))
    assert "differ by a KL of 0.500 to 1.200 nats, most at 1.resid_post" in said
    assert "At resid_post in layer 1 that is more than the difference in KL" in said  # 1.05 - 0.1 < |-1|
    agreeing = described(intervals(1, 1, -1), intervals(0.5, 0.4, 0.3, difference=0.3))
    assert "At every hook point that is less than the difference" in agreeing


def test_halves_are_not_judged_without_intervals():
    halves = intervals(0.5, 0.4, 0.3, difference=0.3).assign(low=math.nan, high=math.nan)
    said = described(intervals(1, 1, 1), halves)
    assert "differ by a KL of 0.300 to 0.500 nats" in said
    assert "difference in KL" not in said


def test_too_few_responses_are_not_compared():
    said = described(intervals(1, 1, 1).assign(low=math.nan, high=math.nan))
    assert "too few held-out responses for intervals" in said


def test_a_lens_without_a_card_gets_what_its_maps_tell():
    found = card.of(jacobians(torch.eye(4)))
    assert found.missing == (
        "the model",
        "its weights",
        "the texts it was fitted on",
        "the held-out KL",
        "how it compares with the logit lens",
        "whether two halves of the texts give the same lens",
    )
    assert card_text.table(found) == [["", "off identity"], ["0.resid_post", "0%"]]
    assert "The file doesn't tell the model, its weights, the texts" in " ".join(card_text.sentences(found))


# Markdown


@pytest.mark.parametrize(
    ("model", "line"),
    [("Qwen/Qwen3-4B", ["base_model: Qwen/Qwen3-4B"]), ("/home/me/model", []), ("a/b\nc: d", []), (None, [])],
)
def test_the_front_matter_names_a_base_model_only_if_it_is_on_the_hub(model, line):
    text = card_text.markdown(card.of(jacobians(torch.eye(4), model=model)), "lens.safetensors")
    front = text.split("---\n")[1].splitlines()
    assert front == ["library_name: internal-policy", *line, "tags:", "- jacobian-lens", "- interpretability"]


def test_a_name_can_change_neither_the_table_nor_the_command():
    evil = "x | y\n\n# Title <script> `rm` $(rm)\x1b[2J"
    text = card_text.markdown(card.of(jacobians(torch.eye(4), model=evil, fitted_on={"file": evil})), "a b.safetensors")
    assert "\n# Title" not in text
    assert "<script>" not in text.partition("```bash")[0].replace("\\<", "")
    assert "\x1b" not in text
    command = text.partition("```bash\n")[2].partition("\n```")[0]
    assert len(command.splitlines()) == 1
    assert "'x | y # Title <script> `rm` $(rm)[2J'" in command
    assert "'a b.safetensors'" in command


# files that lie

ROW = {"layer": 0, "site": "resid_post", "readout": "raw", "mean": 1.0, "low": 0.5, "high": 1.5}
LIES = [
    {"kl": 7},
    {"kl": [7]},
    {"kl": {"layer": 0}},
    {"kl": [{**ROW, "layer": "0"}]},
    {"kl": [{**ROW, "layer": 5}]},
    {"kl": [{**ROW, "layer": 10**400}]},
    {"kl": [{**ROW, "layer": True}]},
    {"kl": [{**ROW, "site": ["resid_post"]}]},
    {"kl": [{**ROW, "site": "nowhere"}]},
    {"kl": [{**ROW, "mean": "small"}]},
    {"kl": [{**ROW, "mean": 10**400}]},
    {"kl": [{**ROW, "mean": math.nan}]},
    {"kl": [{**ROW, "readout": 3}]},
    {"kl": [ROW, ROW]},
    {"gain": [{"layer": 0, "site": "resid_post"}]},
    {"halves": "none"},
    {"model": 3},
    {"model": ["a"]},
    {"identity": {"a": 1}},
    {"n_layers": "many"},
    {"n_layers": -1},
    {"fitted_on": "the web"},
    {"fitted_on": {"tokens": "many", "file": 3}},
    {"held_out": [1]},
    {"steps": [1, 2]},
    {"steps": {"a": 1}},
    {"learning_rate": math.inf},
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: json.dumps(lie)[:40])
def test_an_entry_of_the_wrong_type_is_left_out_and_named(lie, tmp_path):
    file.save(tmp_path / "lens.safetensors", jacobians(torch.eye(4), **lie))
    found = card.of(read(tmp_path / "lens.safetensors"))
    assert found.unreadable == tuple(lie)
    assert "can't be read are left out: " + next(iter(lie)) in " ".join(card_text.sentences(found))
    assert card_text.table(found) == [["", "off identity"], ["0.resid_post", "0%"]]
    assert json.dumps(card_text.as_dict(found), allow_nan=False)
    assert card_text.markdown(found, "x")


def test_a_low_or_high_that_is_no_number_is_empty():
    found = card.of(jacobians(torch.eye(4), kl=[{**ROW, "readout": "jacobian", "low": "x", "high": None}]))
    assert card_text.table(found)[1] == ["0.resid_post", "1.000", "", "0%"]
