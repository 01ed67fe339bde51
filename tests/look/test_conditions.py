"""Responses are chosen by conditions on their reward and on the marks that came with them."""

import json

import pandas as pd
import pytest

import internal_policy as ip
from internal_policy.__main__ import main
from internal_policy.errors import InputError
from internal_policy.look import conditions
from internal_policy.look.conditions import Condition, met, parse

ROWS = pd.DataFrame({"reward": [1.0, 0.0, None, 1.0], "mark.acc": [0.2, 0.5, 0.9, None]})


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("acc>=0.5", Condition("mark.acc", ">=", 0.5)),
        (" mark.acc < -1e-3 ", Condition("mark.acc", "<", -1e-3)),
        ("exact_match,strict-match = 1", Condition("mark.exact_match,strict-match", "=", 1.0)),
        ("reward!=.5", Condition("reward", "!=", 0.5)),
    ],
)
def test_a_condition_is_a_mark_a_comparison_and_a_number(text, condition):
    assert parse(text) == condition


@pytest.mark.parametrize("text", ["", "acc", "acc>=", ">=1", "acc>=high", "acc>=nan", "acc=>1x", "acc>=1 and b<2"])
def test_other_texts_are_refused_with_an_example(text):
    with pytest.raises(
        InputError, match=r"isn't a condition\. Write a mark, a comparison and a number, such as acc>=0\.5"
    ):
        parse(text)


@pytest.mark.parametrize(
    ("outcome", "where", "kept"),
    [
        ("all", (), [0, 1, 2, 3]),
        ("all", ("acc>=0.5",), [1, 2]),
        ("all", ("acc>0.2", "acc<0.9"), [1]),
        ("all", ("acc!=0.5",), [0, 2]),
        ("correct", ("acc<1",), [0]),
        ("all", ("reward=0",), [1]),
    ],
)
def test_a_response_without_the_number_meets_no_condition(outcome, where, kept):
    assert list(ROWS.index[met(ROWS, outcome, where)]) == kept


def test_a_mark_that_no_response_has_is_named_with_those_there_are():
    with pytest.raises(InputError, match=r"The responses have no mark 'accuracy'. Choose one of reward, acc\."):
        conditions.columns(("accuracy>0",), ["reward", "mark.acc"])


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """A scan of four responses with a mark."""
    folder = tmp_path_factory.mktemp("marks")
    rows = [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}", "acc": n / 4} for n in range(4)]
    (folder / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    few = ["--layers", "0,3", "--sites", "resid_post", "--top-k", "0", "--chat-template", "none", "--batch-size", "2"]
    assert main(["scan", "--rollouts", str(folder / "r.jsonl"), *few, "--output", str(folder / "out")]) == 0
    return folder / "out"


def test_a_view_with_conditions_has_the_means_of_the_responses_that_meet_them(scanned):
    scan = ip.open_scan(scanned)
    some = scan.view(where="acc>=0.5")
    assert list(some.rollouts["rollout"]) == [2, 3]
    assert some.about.which == "rollouts with acc>=0.5"
    layers = scan.layers()
    pd.testing.assert_frame_equal(some.layers(), layers[layers["rollout"] >= 2].reset_index(drop=True))
    with pytest.raises(InputError, match="has no response tokens among rollouts with acc>2"):
        scan.view(where="acc>2")


def test_commands_take_conditions(scanned, tmp_path, capsys):
    assert main(["check", str(scanned), "--where", "acc>=0.5", "--where", "acc<0.75", "--json"]) in (0, 2)
    assert main(["plot", str(scanned), "flow", "--where", "acc>=0.5", "-o", str(tmp_path / "f.html")]) == 0
    assert "rollouts with acc>=0.5" in (tmp_path / "f.html").read_text().replace("\\u003e", ">").replace("&gt;", ">")
    capsys.readouterr()
    assert main(["plot", str(scanned), "flow", "--where", "speed>1", "-o", str(tmp_path / "g.html")]) == 2
    assert "no mark 'speed'. Choose one of reward, acc." in capsys.readouterr().err
