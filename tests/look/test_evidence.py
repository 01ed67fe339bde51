"""Each control worked by hand on one response of three tokens, read at two layers."""

import numpy as np
import pandas as pd
import planted
import pytest

import internal_policy as ip
from internal_policy.errors import InputError
from internal_policy.look import evidence, statistics, view
from internal_policy.look.control import CONTROLS, Control, of_readout
from internal_policy.look.scan import of

BY_NAME = {control.name: control for control in CONTROLS}
AS_MEASURED = BY_NAME["simultaneous"]
THREE = {
    "resid_pre.entropy": [[4, 3], [5, 3], [6, 6]],
    "resid_post.entropy": [[3, 1], [3, 2], [6, 3]],
    "resid_post.entropy_at_input_norm": [[4, 2], [4, 3], [7, 4]],
    "resid_post.entropy_at_input_scale": [[4, 3], [4, 3], [7, 3]],
    "resid_post.entropy_random": [[3, 3], [3, 3], [6, 6]],
    "resid_pre.entropy_random": [[4, 3], [4, 3], [4, 3]],
    "resid_post.entropy_shuffled": [[2, 2], [2, 2], [2, 2]],
    "resid_pre.entropy_shuffled": [[3, 2], [3, 2], [3, 2]],
    "resid_post.renyi_half": [[5, 4], [5, 4], [8, 4]],
    "resid_pre.renyi_half": [[6, 5], [6, 5], [9, 8]],
    "resid_post.renyi_2": [[2, 1], [2, 1], [5, 1]],
    "resid_pre.renyi_2": [[3, 2], [3, 2], [6, 5]],
    "resid_post.norm": [[10, 20], [11, 20], [111, 21]],
}
"""Column -> its numbers at three tokens and two layers. The third token is 111/11 > 10 times as long as the median."""


def layers() -> pd.DataFrame:
    """The means over the three tokens, as the table `layers` has them."""
    found = {}
    for name, values in THREE.items():
        site, _, measure = name.partition(".")
        for layer, mean in enumerate(np.mean(values, axis=0)):
            found.setdefault((layer, site), {"rollout": 0, "layer": layer, "site": site, "tokens": 3})[measure] = mean
    return pd.DataFrame(found.values())


@pytest.mark.parametrize(
    ("name", "falls", "changes"),
    [
        ("simultaneous", -2, (-1, -2)),  # outputs 4 and 2, inputs 5 and 4
        ("direction", -1, (0, -1)),  # outputs at the norms of their inputs 5 and 3
        ("logit_scale", -1, (0, -1)),  # 5 and 3
        ("random", -2, (-1, -3)),  # outputs 4-4 and 2-4, inputs 5-4 and 4-3
        ("shuffled", -2, (0, -2)),  # outputs 4-2 and 2-2, inputs 5-3 and 4-2
        ("renyi_half", -2, (-1, -2)),  # outputs 6 and 4, inputs 7 and 6
        ("renyi_2", -2, (-1, -2)),  # outputs 3 and 1, inputs 4 and 3
    ],
)
def test_a_control_by_hand(name, falls, changes):
    seen = evidence.adapted(layers(), BY_NAME[name])
    path = evidence.path(seen)
    assert path["layer"].tolist() == [1]
    assert path["mean"].tolist() == pytest.approx([falls])
    assert evidence.changes(seen)["mean"].tolist() == pytest.approx(changes)


def three_positions() -> pd.DataFrame:
    """The third token is read at the last of the first 16 positions, the others before."""
    norms = pd.DataFrame(THREE["resid_post.norm"])
    return norms.assign(rollout=0, position=[0, 1, 2], read_at=[14, 15, 16])


def test_the_rules_for_positions_by_hand():
    assert evidence.among_first(three_positions()).tolist() == [True, True, False]
    assert evidence.massive(three_positions()).tolist() == [False, False, True]
    at_the_limit = three_positions().replace(111, 110)  # exactly ten times the median of 11
    assert not evidence.massive(at_the_limit).any()


def one_response(prompt: int = 14) -> "ip.Scan":
    """A response of three tokens to a prompt; the third hidden state is massive."""
    states = np.random.default_rng(0).normal(size=(3, 2, 8))
    states /= np.linalg.norm(states, axis=-1, keepdims=True)
    states[2] *= 50
    unembedding = np.random.default_rng(1).normal(size=(20, 8))
    return of(planted.scan({"resid_pre": states, "resid_post": states}, unembedding, np.zeros(3, int), prompt))


def test_a_position_was_read_one_token_before_the_one_it_predicts():
    assert evidence.positions(one_response())["read_at"].tolist() == [13, 14, 15]


@pytest.mark.parametrize(
    ("without", "prompt", "kept"), [("massive", 14, [0, 1]), ("first", 15, [2]), ("first", 16, [1, 2])]
)
def test_means_are_over_the_positions_that_remain(without, prompt, kept):
    scan = one_response(prompt)
    found, note = evidence.remaining(scan, without)
    entropy = scan.policies(["resid_post.entropy"]).set_index("position").query("layer == 1").loc[kept]
    (row,) = found.query("site == 'resid_post' and layer == 1").to_dict("records")
    assert row["entropy"] == pytest.approx(entropy["resid_post.entropy"].mean())
    assert row["tokens"] == len(kept)
    assert note == f"{3 - len(kept)} of 3 positions left out"


def test_if_all_positions_are_left_out_nothing_is_shown():
    with pytest.raises(InputError, match="all 3 positions would be left out"):
        evidence.remaining(one_response(prompt=2), "first")


def test_positions_without_norms_are_not_searched_for_massive_ones():
    states = np.ones((3, 2, 4))
    scan = of(planted.scan({"resid_post": states}, np.eye(4), np.zeros(3, int), measures=("entropy",)))
    with pytest.raises(InputError, match="norms of layer outputs weren't measured"):
        evidence.of(scan, BY_NAME["massive"])


@pytest.mark.parametrize(("control", "part"), [("simultaneous", "total"), ("direction", "direction")])
def test_changes_are_those_of_the_scan(control, part):
    scan = ip.open_scan("demo-llama")
    found = evidence.changes(evidence.adapted(view.layers(scan), BY_NAME[control]))
    expected = statistics.changes(view.layers(scan)).query("part == @part")
    keys = ["change", "layer"]
    pd.testing.assert_frame_equal(
        found.sort_values(keys, ignore_index=True)[[*keys, "mean", "low_all", "high_all"]],
        expected.sort_values(keys, ignore_index=True)[[*keys, "mean", "low_all", "high_all"]],
    )


def test_the_path_of_directions_and_that_of_norms_add_up():
    scan = ip.open_scan("demo-qwen3")
    rows = view.layers(scan)
    whole, direction = (evidence.path(evidence.adapted(rows, BY_NAME[n])) for n in ("simultaneous", "direction"))
    norm = statistics.changes(rows).query("part == 'norm' and change == 'layer'").set_index("layer")["mean"]
    np.testing.assert_allclose(whole["mean"] - direction["mean"], norm[1:].cumsum(), atol=1e-6)


def test_the_path_of_directions_needs_all_layers_between():
    rows = view.layers(ip.open_scan("demo-qwen3")).query("layer in [0, 2, 5]")
    assert len(evidence.path(evidence.adapted(rows, AS_MEASURED))) == 2
    assert len(evidence.path(evidence.adapted(rows, BY_NAME["direction"]))) == 0


def test_a_null_is_compared_at_every_layer():
    states = np.random.default_rng(0).normal(size=(192, 3, 8))
    unembedding = np.random.default_rng(1).normal(size=(20, 8))
    states[:, 1:] += 9 * unembedding[0]  # two layers know the next token
    states *= 4 / np.linalg.norm(states, axis=-1, keepdims=True)
    scan = of(planted.scan({"resid_pre": states, "resid_post": states}, unembedding, np.repeat(np.arange(8), 24)))
    assert evidence.of(scan, BY_NAME["random"]).note == ("the entropy is lower at 2 and higher at 0 of 3 layer outputs")


def test_a_readout_is_another_one_of_the_same_scan():
    scan = ip.open_scan("demo-qwen3")
    found = evidence.of(scan, of_readout("norm"))
    pd.testing.assert_frame_equal(found.changes, evidence.of(scan.view(readout="norm"), AS_MEASURED).changes)
    with pytest.raises(InputError, match="the readout tuned wasn't measured"):
        evidence.of(scan, of_readout("tuned"))


def test_every_control_says_what_it_does():
    assert len({control.name for control in CONTROLS}) == len(CONTROLS)
    assert all(control.rule.endswith(".") for control in CONTROLS)
    assert isinstance(of_readout("my lens"), Control)
