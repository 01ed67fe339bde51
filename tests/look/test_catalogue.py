"""Figures of a scan are drawn by name, from their data alone."""

import re
from pathlib import Path

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
