"""Figures of a scan are drawn by name, from their data alone."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from internal_policy import bundle
from internal_policy.errors import InputError
from internal_policy.look import catalogue, view
from internal_policy.look.catalogue import Choice
from internal_policy.look.view import View

ROOT = Path(__file__).parents[2]
DEMO = View(bundle.DATA / "scans" / "demo-qwen3")
OTHER = View(bundle.DATA / "scans" / "demo-llama")
ONE = [name for name in catalogue.FIGURES if name != "compare"]


def test_only_the_catalogue_draws_figures_of_scans_and_runs():
    drawing = re.compile(r"(layer|token|training)_figures")
    users = [
        *(ROOT / "app").rglob("*.py"),
        *(ROOT / "internal_policy" / "cli").glob("*.py"),
        *(ROOT / "internal_policy" / "look" / name for name in ("report.py", "scan.py", "runs.py", "plots.py")),
    ]
    assert len(users) > 10
    assert [path.name for path in users if drawing.search(path.read_text())] == []


@pytest.mark.parametrize("name", ONE)
def test_a_figure_is_drawn_from_its_data_alone(name):
    choice = Choice(style="paper")
    found = catalogue.data(name, [DEMO], choice)
    assert all(len(frame) for frame in found.frames.values())
    drawn = catalogue.FIGURES[name].draw(found)
    assert drawn.to_json() == catalogue.draw(name, [DEMO], choice).to_json()


def test_compared_scans_keep_their_order():
    found = catalogue.data("compare", [OTHER, DEMO], Choice())
    alone = catalogue.data("flow", [OTHER], Choice()).frames["entropy"]
    assert [about.model for about in found.abouts] == ["demo-llama", "demo-qwen3"]
    assert found.frames["0"]["mean"].tolist() == alone["mean"].tolist()


@pytest.mark.parametrize("n", [1, 5])
def test_fewer_than_two_or_more_than_four_scans_are_not_compared(n):
    with pytest.raises(InputError, match=f"two to four scans, not {n}"):
        catalogue.draw("compare", [DEMO] * n, Choice())


def test_a_heatmap_has_every_layer_and_token_of_the_response():
    frames = catalogue.data("tokens", [DEMO], Choice(rollout=3, site="mlp_out")).frames
    tokens = view.rollouts(DEMO).set_index("rollout")["tokens"].to_dict()[3]
    assert (len(frames["entropy"]), len(frames["response"])) == (8 * tokens, tokens)


def test_a_cell_defaults_to_the_first_position():
    assert catalogue.data("cell", [DEMO], Choice(rollout=3)).choice.position == 0
    assert catalogue.data("cell", [DEMO], Choice(rollout=3, position=5)).choice.position == 5


def test_a_heatmap_at_a_position_beyond_the_response_is_refused():
    with pytest.raises(InputError, match="There is no position 9999 in this response"):
        catalogue.draw("tokens", [DEMO], Choice(position=9999))


OTHERWISE = {
    "average": "rollouts", "site": "mlp_out", "measure": "logprob", "rollout": 3, "position": 5, "layer": 3,
    "readout": "norm", "outcome": "correct", "where": ("reward>=1",), "positions": 4,
}  # fmt: skip
"""What can be chosen of figures -> a choice that isn't the default."""


def drawn(name: str, **chosen: Any) -> str:
    """A figure as text, or why it can't be drawn, without the check of what it uses."""
    of_view = {{"positions": "first"}.get(key, key): chosen.pop(key) for key in catalogue.FILTER if key in chosen}
    if name == "compare" and "measure" in chosen:
        chosen["measure"] = "change"
    views = [replace(one, **of_view) for one in ([DEMO, OTHER] if name == "compare" else [DEMO])]
    entry = catalogue.FIGURES[name]
    try:
        figure = json.loads(str(entry.draw(entry.read(views, Choice(**chosen))).to_json()))
    except InputError as error:
        return str(error)
    figure["layout"].pop("annotations", None)  # the caption names the filter in any case
    return json.dumps(figure)


@pytest.mark.parametrize("name", catalogue.FIGURES)
def test_exactly_what_a_figure_uses_changes_it(name):
    plain = drawn(name)
    changing = {key for key, value in OTHERWISE.items() if drawn(name, **{key: value}) != plain}
    if name == "tokens":
        changing |= {"position"} if "no position" in drawn(name, position=9999) else set()
    assert changing == {*catalogue.USES[name]} - {"against"}


@pytest.mark.parametrize("name", catalogue.FIGURES)
def test_a_choice_that_a_figure_doesnt_use_is_refused(name):
    for field in {*OTHERWISE} - {*catalogue.FILTER, *catalogue.USES[name]}:
        with pytest.raises(
            InputError, match=f"^{field} (only applies to .*, not to|has no effect on) {name}. Leave it"
        ):
            catalogue.data(name, [DEMO], Choice(**{field: OTHERWISE[field]}))


@pytest.mark.parametrize("name", ["tokens", "cell"])
@pytest.mark.parametrize(
    ("view", "rollout", "said"),
    [
        (DEMO, 99, "has no rollout 99. Choose one from 0 to 19."),
        (DEMO, -1, "has no rollout -1. Choose one from 0 to 19."),
        (replace(DEMO, outcome="incorrect"), 0, "Rollout 0 isn't among the incorrect rollouts"),
    ],
)
def test_a_rollout_that_isnt_in_view_is_refused_with_those_that_are(name, view, rollout, said):
    with pytest.raises(InputError, match=said):
        catalogue.data(name, [view], Choice(rollout=rollout))


def test_a_cell_outside_the_window_of_positions_is_refused():
    with pytest.raises(InputError, match=r"There is no position 5 in this response. Choose one from 2 to 3"):
        catalogue.data("cell", [replace(DEMO, first=2, last=3)], Choice(position=5))
