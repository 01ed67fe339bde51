"""Planted patterns get the verdict that they deserve, and what a scan lacks isn't tested."""

import json

import numpy as np
import pandas as pd
import planted
import pytest
from conftest import random_rollout, slow
from hybrids import hybrid

import internal_policy as ip
from internal_policy import bundle
from internal_policy.__main__ import main
from internal_policy.look import check
from internal_policy.look.claim import CLAIMS
from internal_policy.look.scan import of
from internal_policy.measure.metrics import KNOWN
from internal_policy.scans import scan
from internal_policy.scans.store import Tables

LAYERS, WIDTH, VOCABULARY, ROLLOUTS, TOKENS = 6, 16, 60, 12, 24
TITLES = [claim.name for claim in CLAIMS]


def rollouts(n: int = ROLLOUTS) -> np.ndarray:
    return np.repeat(np.arange(n), TOKENS)


def unit(states: np.ndarray) -> np.ndarray:
    return states / np.linalg.norm(states, axis=-1, keepdims=True)


def states(kind: str, tokens: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """States of all sites (tokens, layers, width) with a pattern of one kind, and an unembedding.

    Entropy falls along the layers. Attention raises it. FFNs raise it in the first three layers, then lower it.
    """
    random = np.random.default_rng(0)
    unembedding = unit(random.normal(size=(VOCABULARY, WIDTH)))
    own = unit(random.normal(size=(tokens, WIDTH)))
    token = unembedding[random.integers(VOCABULARY, size=tokens)]

    def state(certainty: float) -> np.ndarray:
        """A state whose policy is more certain the higher this is, from 0 to 1."""
        if kind == "norm":
            return (1 + 9 * certainty) * own
        return 6 * unit((1 - certainty) * own * 2 + certainty * token * 2 - 0.3)

    stream = [state(layer / LAYERS) for layer in range(LAYERS + 1)]
    outs = [state(0.2 if layer < LAYERS / 2 else 0.9) for layer in range(LAYERS)]
    middle, low = [state(0.5)] * LAYERS, [state(0.1)] * LAYERS
    found = {"resid_pre": stream[:-1], "resid_post": stream[1:], "attn_in": middle, "attn_out": low}
    found |= {"mlp_in": middle, "mlp_out": outs}
    return {site: np.stack(each, axis=1) for site, each in found.items()}, unembedding


def flat(tokens: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """States whose entropies have no pattern."""
    random = np.random.default_rng(0)
    found, unembedding = states("norm", tokens)
    return {site: 2 * unit(random.normal(size=each.shape)) for site, each in found.items()}, unembedding


ROWS = {"measures": ("entropy", "norm"), "readouts": ("raw",)}
"""What a small scan measures."""


def verdicts(tables, **options) -> dict[str, str]:
    return dict(check.check(of(tables).view(**options)).verdicts[["claim", "verdict"]].to_numpy())


def row_of(found: check.Check, claim: str = "flow") -> dict[str, str]:
    """The verdict on a claim."""
    return next(row for row in found.verdicts.astype(str).to_dict("records") if row["claim"] == claim)  # pyright: ignore


def test_a_pattern_that_is_all_norm_holds_for_raw_only():
    found = check.check(of(planted.scan(*states("norm", ROLLOUTS * TOKENS), rollouts())))
    assert set(found.verdicts["verdict"]) == {"holds for raw only"}
    outcomes = found.results.pivot(index="control", columns="claim", values="outcome")
    assert (outcomes.loc[["direction", "logit_scale", "readout_norm"]] == "fails").to_numpy().all()
    assert (outcomes.loc[["simultaneous", "first", "massive", "renyi_half", "renyi_2"]] == "survives").to_numpy().all()
    assert (outcomes.loc["random", ["flow", "change_attn", "target"]] == "fails").to_numpy().all()
    reason = row_of(found)["reason"]
    assert "no significant fall remains by direction alone (+0.00 nats" in reason


def test_a_pattern_of_directions_holds_under_every_control():
    found = check.check(of(planted.scan(*states("direction", ROLLOUTS * TOKENS), rollouts())))
    assert found.verdicts.set_index("claim")["verdict"].to_dict() == dict.fromkeys(TITLES, "holds")
    assert (found.results["outcome"] == "survives").to_numpy().all()
    assert found.options == ()
    assert found.command == ""


def sunken(at: int, prompt: int, norm: float) -> Tables:
    """A scan without a pattern, except that position `at` of each response gets surer from layer to layer."""
    found, unembedding = flat(ROLLOUTS * TOKENS)
    grows = np.geomspace(1, norm, LAYERS + 1)
    for site, factors in (("resid_pre", grows[:-1]), ("resid_post", grows[1:]), ("mlp_out", grows[1:])):
        found[site][at::TOKENS] *= factors[:, None]
    return planted.scan(found, unembedding, rollouts(), prompt, **ROWS)


def test_a_pattern_of_massive_activations_vanishes_without_them():
    found = check.check(of(sunken(at=20, prompt=30, norm=200)))
    row = row_of(found)
    assert row["verdict"] == "does not hold"
    assert "but no significant fall remains without massive activations" in row["reason"]
    notes = found.controls.set_index("control")["note"]
    assert notes["massive"] == f"{ROLLOUTS} of {ROLLOUTS * TOKENS} positions left out"
    assert notes["first"] == f"0 of {ROLLOUTS * TOKENS} positions left out"


def test_a_pattern_of_the_first_position_vanishes_without_it():
    found = check.check(of(sunken(at=0, prompt=1, norm=9)))
    row = row_of(found)
    assert row["verdict"] == "does not hold"
    assert "without the first positions" in row["reason"]
    notes = found.controls.set_index("control")["note"]
    assert notes["first"] == f"{16 * ROLLOUTS} of {ROLLOUTS * TOKENS} positions left out"
    assert notes["massive"].startswith("0 of")


def test_no_pattern_does_not_hold():
    found = verdicts(planted.scan(*flat(ROLLOUTS * TOKENS), rollouts(), **ROWS))
    assert set(found.values()) == {"does not hold"}


def test_too_few_rollouts_test_nothing():
    tables = planted.scan(*states("direction", 3 * TOKENS), rollouts(3), **ROWS)
    found = check.check(of(tables))
    assert set(found.verdicts["verdict"]) == {"not tested"}
    assert set(found.verdicts["tested"]) == {0}
    assert found.verdicts["reason"][0] == "Not tested: it needs finite numbers of 4 or more rollouts."


def test_a_layer_without_finite_numbers_does_not_count():
    every, unembedding = states("direction", ROLLOUTS * TOKENS)
    every["mlp_out"][0, 0] = np.nan
    every["resid_post"][0, -1] = np.nan
    found = check.check(of(planted.scan(every, unembedding, rollouts(), **ROWS)))
    text = found.results.set_index(["claim", "control"])["text"]
    assert text["change_mlp", "simultaneous"].endswith(f", of {LAYERS - 1}")
    assert row_of(found)["reason"] == "Not tested: it needs finite numbers of 4 or more rollouts."


def test_a_scan_without_controls_says_which_are_missing():
    tables = planted.scan(*states("direction", ROLLOUTS * TOKENS), rollouts(), 30, planted.MEASURES, ("raw",))
    found = check.check(of(tables))
    assert set(found.verdicts["verdict"]) == {"holds"}
    assert found.verdicts["tested"].tolist() == [4] * len(CLAIMS)
    untested = found.controls.loc[~found.controls["tested"], ["control", "note"]]
    assert dict(untested.to_numpy()) == {
        **{name: f"{name} wasn't measured" for name in ("renyi_half", "renyi_2")},
        "logit_scale": "entropy_at_input_scale wasn't measured",
        "shuffled": "entropy_shuffled wasn't measured",
        "random": "entropy_random wasn't measured",
        "readout_norm": "the readout norm wasn't measured",
    }
    assert found.options == ("--controls", "--readout both")


def test_every_lens_of_a_scan_is_a_control():
    readouts = ("raw", "norm", "jacobian", "my lens")
    tables = planted.scan(*states("norm", 4 * TOKENS), rollouts(4), 30, ("entropy",), readouts)
    found = check.check(of(tables))
    assert found.controls["control"].tolist()[-3:] == ["readout_norm", "readout_jacobian", "readout_my lens"]
    assert found.controls["title"].tolist()[-1] == "Through the my lens lens"
    assert "through the Jacobian lens (" in row_of(found)["reason"]


def test_the_command_adds_the_missing_options_to_that_of_the_scan():
    record = {"command": ["internal-policy", "scan", "--limit", "20", "--readout", "raw", "--output", "x"]}
    assert check.again(record, ("--controls", "--readout both")) == (
        "internal-policy scan --limit 20 --controls --readout both"
    )
    assert check.again(record, ()) == ""
    assert check.again({}, ("--controls",)) == ""


def test_sites_are_only_asked_for_if_the_scan_left_some_out():
    selection = {"sites": ["resid_pre", "resid_post"], "measures": ["entropy"], "readouts": ["raw"]}
    assert check.missing({"selection": selection, "asked": {"sites": ["resid_pre", "resid_post"]}}, []) == (
        "--sites all",
    )
    assert check.missing({"selection": selection, "asked": {"sites": "all"}}, []) == ()


@pytest.mark.parametrize(
    ("missing", "untested"),
    [
        ("attn_in", {"change_attn"}),
        ("mlp_out", {"change_mlp", "stages", "target"}),
        ("resid_post", {"flow", "change_layer"}),
    ],
)
def test_a_claim_about_sites_that_were_not_measured_is_not_tested(missing, untested):
    every, unembedding = states("direction", ROLLOUTS * TOKENS)
    some = {site: each for site, each in every.items() if site != missing}
    tables = planted.scan(some, unembedding, rollouts(), **ROWS)
    found = verdicts(tables)
    assert {name for name, verdict in found.items() if verdict == "not tested"} == untested


def test_a_window_is_judged_by_its_positions():
    tables = sunken(at=20, prompt=30, norm=200)
    assert verdicts(tables, last=19)["flow"] == verdicts(tables, first=21)["flow"] == "does not hold"
    note = check.check(of(tables).view(first=16)).controls.set_index("control")["note"]
    assert note["massive"] == f"{ROLLOUTS} of {8 * ROLLOUTS} positions left out"


def test_a_window_of_a_real_pattern_holds():
    tables = planted.scan(*states("direction", ROLLOUTS * TOKENS), rollouts(), **ROWS)
    assert verdicts(tables, first=4, last=9) == dict.fromkeys(TITLES, "holds")


def test_only_correct_rollouts_are_judged_if_asked():
    whole = ip.open_scan("demo-qwen3")
    some = whole.view(outcome="correct").check()
    note = some.controls.set_index("control")["note"]
    assert note["massive"] == f"0 of {whole.view(outcome='correct').about.tokens} positions left out"


def test_a_hybrid_with_controls_is_judged_by_the_layers_with_the_module(tokenizer, monkeypatch):
    rollouts = [random_rollout(seed=seed) for seed in range(8)]  # read at the positions 3 to 11
    scanned = of(scan.scan(hybrid(monkeypatch), tokenizer, rollouts, measures=KNOWN, top_k=0))
    found = check.check(scanned)
    text = found.results.set_index(["claim", "control"])["text"]
    assert text["change_attn", "simultaneous"].endswith(", of 2")
    assert text["change_layer", "simultaneous"].endswith(", of 4")
    for some in (found, check.check(scanned.view(last=4))):
        assert some.controls.loc[~some.controls["tested"], "control"].tolist() == ["first"]
    assert found.controls.set_index("control").loc["first", "note"] == "all 72 positions would be left out"


def test_all_positions_among_the_first_leave_nothing_to_test():
    tables = planted.scan(*states("direction", 6 * 8), np.repeat(np.arange(6), 8), 2, **ROWS)
    found = check.check(of(tables)).controls.set_index("control")
    assert not found.loc["first", "tested"]
    assert found.loc["first", "note"] == "all 48 positions would be left out"


def test_another_readout_than_raw_is_not_split_by_its_norm():
    found = ip.open_scan("demo-qwen3").view(readout="norm").check()
    notes = found.controls.set_index("control")["note"]
    assert notes["direction"] == "entropy_at_input_norm has no values with this readout"
    assert "readout_norm" not in notes
    assert found.options == ("--controls",)


@pytest.mark.parametrize("name", ["smollm2-135m", *slow("demo-qwen3", "demo-llama")])
def test_the_command_prints_what_python_returns(name, capsys, monkeypatch):
    found = ip.open_scan(name).check()
    monkeypatch.setattr(check, "check", lambda _: found)
    assert main(["check", name, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    pd.testing.assert_frame_equal(pd.DataFrame(printed["verdicts"]), found.verdicts)
    assert printed["command"] == found.command
    assert main(["check", name]) == 0
    text = capsys.readouterr().out
    assert all(reason in text for reason in found.verdicts["reason"])
    assert "--readout both" in text


def test_the_bundled_real_model_falls_only_by_norm():
    flow = row_of(ip.open_scan("smollm2-135m").check())
    assert flow["verdict"] == "holds for raw only"
    assert "by direction alone" in flow["reason"]


def test_a_notebook_shows_verdicts_and_outcomes():
    found = ip.open_scan(bundle.DATA / "scans" / "demo-llama").check()
    html = found._repr_html_()
    assert "Entropy flow: holds." in html
    assert "Direction alone" in html
    assert "nan" not in html.lower()
