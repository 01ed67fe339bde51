"""Two responses cell by cell in a real browser: linked grids, their difference, and what can't be subtracted."""

from collections.abc import Iterator
from typing import Any

import pytest
from browsing import HOSTILE, chosen, opened, settle
from grids import NOTE, WORDS, grid, payload
from playwright.sync_api import Locator, Page, expect

from internal_policy.look.lens_grid import page as pages


def side(readout: str, **given: Any) -> dict[str, Any]:
    """A response with one readout: all top tokens with `raw` are one word after those with `norm`."""
    whole = payload(**given)
    return {**whole, "planes": {readout: whole["planes"][readout]}}


def pair(a: dict[str, Any], b: dict[str, Any], why: str = "") -> dict[str, Any]:
    return {**pages.data([a, b], ["one · raw", "one · norm"]), "why": why}


@pytest.fixture(scope="module")
def linked(browser, tmp_path_factory) -> Iterator[Page]:
    drawn = pair(side("norm", columns=40), side("raw", columns=40))
    with grid(browser, tmp_path_factory.mktemp("linked"), drawn) as page:
        yield page


@pytest.fixture
def both(linked) -> Page:
    """Two readouts of one response, as they were when they were opened."""
    linked.reload()
    linked.wait_for_selector("[data-ready]")
    return linked


def cell(page: Page, table: int, layer: int, column: int) -> Locator:
    """A cell of the grid of A (0), of B (1) or of their difference (2)."""
    row = f".lg-pair-one:nth-child({table + 1}) .lg-line:has(.lg-side[aria-label='layer {layer}'])"
    return page.locator(f"{row} .lg-cell[aria-colindex='{column + 2}']")


def pointed(page: Page) -> list[str]:
    """The pointed cells of all grids, as a screen reader says them."""
    return page.locator(".lg-now").evaluate_all("all => all.map(each => each.getAttribute('aria-label').split(':')[0])")


def headline(page: Page) -> str:
    return page.locator(".lg-headline").inner_text()


def test_hovering_in_one_grid_points_at_the_same_cell_of_the_others(both):
    for table in range(3):
        cell(both, table, 2, 1 + table).hover()
        assert pointed(both) == [f"layer 2, position {1 + table}"] * 3
    assert headline(both) == "Layer 2 · position 3"


def test_a_click_locks_all_grids_and_arrows_move_them_together(both):
    cell(both, 1, 2, 3).click()
    cell(both, 0, 4, 1).hover()
    assert pointed(both) == ["layer 2, position 3"] * 3
    for key in ("ArrowUp", "ArrowRight"):
        both.keyboard.press(key)
    assert pointed(both) == ["layer 3, position 4"] * 3
    assert both.evaluate("document.activeElement.closest('section').firstChild.textContent") == "B · one · norm"
    both.keyboard.press("Enter")
    kept = {"layer": 3, "position": 4, "site": "resid_post", "readout": "norm", "measure": "probability"}
    assert both.evaluate("kept") == [kept]
    both.keyboard.press("Escape")
    cell(both, 0, 4, 2).hover()
    assert headline(both) == "Layer 4 · position 2"


def test_scrolling_one_grid_scrolls_the_others_to_the_same_positions(both):
    cell(both, 0, 2, 1).hover()
    both.mouse.wheel(660, 0)
    expect(both.locator(".lg-scroll").nth(2)).not_to_have_js_property("scrollLeft", 0)
    lefts = both.locator(".lg-scroll").evaluate_all("all => all.map(each => each.scrollLeft)")
    widths = both.locator(".lg-heads .lg-head:nth-child(3)").evaluate_all("all => all.map(each => each.offsetWidth)")
    first = [left / width for left, width in zip(lefts, widths, strict=True)]
    assert first == pytest.approx([10, 10, 10], abs=0.1)


def test_cells_whose_top_tokens_differ_name_both_and_are_marked(both):
    text = cell(both, 2, 1, 0).inner_text()
    assert text.replace("\u2068", "").replace("\u2069", "") == "␣capital→␣of"
    assert "lg-differs" in (cell(both, 2, 1, 0).get_attribute("class") or "")
    assert "the top tokens differ, in 280 cells" in both.locator(".lg-legend").last.inner_text()


def test_the_panel_has_the_numbers_of_both_and_their_difference(both):
    cell(both, 0, 3, 2).hover()
    rows = [row.split("\t") for row in both.locator(".lg-pair-numbers").inner_text().split("\n")]
    assert rows[0] == ["", "A", "B", "B − A"]
    assert rows[1] == ["Probability of the top token", "50%", "50%", "0 points"]
    assert [note for note in both.locator(".lg-top-move").all_inner_texts() if note] == ["only A", "only B"]


def test_a_cell_of_the_difference_has_the_colour_of_its_sign(browser, tmp_path):
    deeper = side("norm", layers=6)
    with grid(browser, tmp_path, pair(side("norm", layers=6), {**deeper, "planes": {"norm": flipped(deeper)}})) as page:
        page.get_by_label("Colour by", exact=True).select_option("entropy")
        colours = {layer: cell(page, 2, layer, 0).evaluate("each => each.style.backgroundColor") for layer in (0, 5)}
    red, _, blue = map(int, colours[5].removeprefix("rgb(").rstrip(")").split(","))
    assert red > blue  # B is less sure in the last layer
    red, _, blue = map(int, colours[0].removeprefix("rgb(").rstrip(")").split(","))
    assert blue > red


def flipped(one: dict[str, Any]) -> dict[str, Any]:
    """Its planes with the layers of the outputs in reverse."""
    planes = one["planes"]["norm"]
    return {**planes, "resid_post": {**planes["resid_post"], "layers": planes["resid_post"]["layers"][::-1]}}


def test_responses_with_different_tokens_only_share_their_layers(browser, tmp_path):
    drawn = pair(side("norm"), side("norm", words=WORDS[::-1], columns=5), "They differ.")
    with grid(browser, tmp_path, drawn) as page:
        assert page.locator(".lg-pair > .lg-note").inner_text() == "They differ."
        assert page.locator(".lg-pair-one:visible").count() == 2
        cell(page, 0, 4, 3).hover()
        assert pointed(page) == ["layer 4, position 3", "layer 4, position 0"]
        cell(page, 1, 1, 2).click()
        assert pointed(page) == ["layer 1, position 3", "layer 1, position 2"]
        assert "B − A" not in page.locator(".lg-pair-numbers").inner_text()


def test_layers_of_models_of_different_depth_are_linked_by_their_depth(browser, tmp_path):
    drawn = pair(side("norm", layers=6), side("norm", layers=3), "Other layers.")
    with grid(browser, tmp_path, drawn) as page:
        for mine, other in ((5, 2), (0, 0)):
            cell(page, 0, mine, 1).hover()
            assert pointed(page) == [f"layer {mine}, position 1", f"layer {other}, position 0"]
        page.locator(".lg-model .lg-cell").first.hover()
        assert [said.split(",")[0] for said in pointed(page)] == ["the model's own policy"] * 2


def test_a_saturated_readout_is_pointed_out_above_its_grid(both):
    assert both.locator(".lg-note:visible").all_inner_texts() == [NOTE]
    assert both.locator(".lg-pair-one:nth-child(2) .lg-note").is_visible()


def test_a_found_token_is_marked_in_both_grids(both):
    both.get_by_label("Find a token", exact=True).fill("paris")
    assert both.locator(".lg-pair-one:nth-child(1) .lg-hit").count()
    assert both.locator(".lg-pair-one:nth-child(2) .lg-hit").count()


def test_hostile_tokens_and_labels_are_text(browser, tmp_path):
    words = [*HOSTILE, "a"]
    drawn = pair(side("norm", words=words), side("raw", words=words))
    drawn["labels"] = list(HOSTILE[:2])
    with grid(browser, tmp_path, drawn) as page:
        cell(page, 2, 2, 2).hover()
        assert page.evaluate("window.hacked") is None
        assert not page.locator(".lens-grid :is(script, img, a)").count()
        assert page.locator(".lg-pair-name").first.inner_text() == f"A · {HOSTILE[0]}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_two_grids_fit_a_phone(browser, tmp_path, scheme):
    context = {"viewport": {"width": 390, "height": 800}, "color_scheme": scheme, "has_touch": True}
    with grid(browser, tmp_path, pair(side("norm"), side("raw")), **context) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        cell(page, 0, 5, 1).tap()
        assert headline(page) == "Layer 5 · position 1"
        assert pointed(page) == ["layer 5, position 1"] * 3


def test_the_page_compares_readouts_and_keeps_the_choice_in_its_address(server, page):
    grid = ".st-key-pair [data-ready]"
    opened(page, f"{server}/compare?scan=demo-qwen3&rollout=2", grid)
    cell(page, 1, 6, 3).click()
    expect(page.locator(".lg-headline")).to_have_text("Layer 6 · position 3")
    page.keyboard.press("Enter")
    page.wait_for_url("**layer=6*")
    settle(page)
    kept = {"scan": "demo-qwen3", "rollout": "2", "layer": "6", "position": "3"}
    assert kept.items() <= chosen(page).items()
    page.get_by_label("Site", exact=True).select_option("attn_in")
    expect(page.locator(".lg-legend").first).to_contain_text("attention input")
    page.reload()
    page.wait_for_selector(grid)
    expect(page.locator(".lg-headline")).to_have_text("Layer 6 · position 3")
    expect(page.locator(".st-key-differences-below")).to_contain_text("Copy Python")
    page.locator(".st-key-against_rollout_list input").click()
    page.get_by_role("option", name="1 · 34 tokens").click()
    expect(page.locator(".lg-pair > .lg-note")).to_contain_text("only their layers are linked")
    page.wait_for_url("**against_rollout=1*")
    expect(page.locator(".st-key-differences-below")).to_have_text("Copy link")  # there is nothing to subtract
