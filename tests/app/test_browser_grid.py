"""The lens grid in a real browser: hovering, keys, search, scales, long responses, narrow pages and hostile tokens."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from browsing import HOSTILE
from grids import N_LAYERS, NOTE, grid, payload
from playwright.sync_api import Page, expect

from internal_policy.look.lens_grid import page as pages


@pytest.fixture(scope="module")
def small(browser, tmp_path_factory) -> Iterator[Page]:
    with grid(browser, tmp_path_factory.mktemp("small"), pages.data([payload()])) as page:
        yield page


@pytest.fixture
def one(small) -> Page:
    """The grid of a small response, as it was when it was opened."""
    small.reload()
    small.wait_for_selector("[data-ready]")
    return small


def cell(page: Page, layer: int, column: int) -> Any:
    """The cell of a layer (the model's own policy is one past the last) and a column."""
    row = ".lg-model" if layer == N_LAYERS else f".lg-line:has(.lg-side[aria-label='layer {layer}'])"
    return page.locator(f"{row} .lg-cell[aria-colindex='{column + 2}']")


def headline(page: Page) -> str:
    return page.locator(".lg-headline").inner_text()


def state(page: Page) -> dict[str, Any]:
    return page.evaluate("grid.state()")


def choose(page: Page, label: str, option: str) -> None:
    """Choose in a list of the bar, and wait until it is drawn."""
    turn = page.locator(".lens-grid").get_attribute("data-ready")
    page.get_by_label(label, exact=True).select_option(option)
    page.wait_for_selector(f".lens-grid:not([data-ready='{turn}'])")


def contrast(page: Page, selector: str) -> float:
    """The lowest contrast of text with its own background colour, over all elements that have one."""
    pairs = page.locator(selector).evaluate_all(
        "all => all.map(each => getComputedStyle(each)).filter(style => style.backgroundColor !== 'rgba(0, 0, 0, 0)')"
        ".map(style => [style.color, style.backgroundColor].map(colour =>"
        " colour.match(/[0-9.]+/g).slice(0, 3).map(part => part / (colour.startsWith('color') ? 1 : 255))))"
    )
    assert pairs
    return min(_ratio(*(np.array(colour) for colour in pair)) for pair in pairs)


def _ratio(one: np.ndarray, other: np.ndarray) -> float:
    low, high = sorted(
        float(np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])
        for c in (one, other)
    )
    return (high + 0.05) / (low + 0.05)


def test_each_cell_shows_its_top_token_and_the_model_has_a_row_of_its_own(one):
    assert cell(one, 0, 0).inner_text() == "␣The"
    assert cell(one, 2, 3).inner_text() == "␣Paris"
    assert cell(one, 1, 6).inner_text() == "⏎"
    assert one.locator(".lg-side").all_inner_texts() == ["layer", "model", "5", "4", "3", "2", "1", "0"]


def test_hovering_previews_a_cell_and_a_click_locks_it(one):
    cell(one, 2, 3).hover()
    assert headline(one) == "Layer 2 · position 3"
    assert one.locator(".lg-mode").inner_text() == "preview"
    cell(one, 4, 1).click()
    assert headline(one) == "Layer 4 · position 1"
    assert one.locator(".lg-mode").inner_text() == "locked"
    cell(one, 2, 3).hover()
    assert headline(one) == "Layer 4 · position 1"
    one.keyboard.press("Escape")
    cell(one, 2, 4).hover()
    assert headline(one) == "Layer 2 · position 4"


def test_arrows_move_and_enter_keeps_the_cell(one):
    cell(one, 2, 3).click()
    for key in ("ArrowUp", "ArrowUp", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowDown"):
        one.keyboard.press(key)
    assert headline(one) == "Layer 3 · position 2"
    for key in ("End", "PageUp"):
        one.keyboard.press(key)
    assert headline(one) == "Model’s own policy · position 7"
    one.keyboard.press("Enter")
    kept = {"layer": 6, "position": 7, "site": "resid_post", "readout": "norm", "measure": "probability"}
    assert one.evaluate("kept") == [kept]


def test_the_grid_works_by_keyboard_alone(one):
    for _ in range(12):
        one.keyboard.press("Tab")
        if one.evaluate("document.activeElement.className").startswith("lg-cell"):
            break
    one.keyboard.press("ArrowRight")
    assert headline(one) == "Layer 3 · position 1"
    focused = one.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused.startswith("layer 3, position 1: top token ␣is, probability 50%")
    assert "actual token ␣capital, rank 200" in focused


def test_a_screen_reader_gets_a_grid_with_numbered_rows_and_columns(one):
    table = one.get_by_role("grid")
    assert (table.get_attribute("aria-rowcount"), table.get_attribute("aria-colcount")) == ("8", "9")
    assert one.get_by_role("columnheader").count() == 9
    assert one.get_by_role("rowheader").count() == 7
    assert one.locator("[role=row]").evaluate_all("rows => rows.map(row => row.ariaRowIndex)") == list("12345678")
    assert one.locator("[role=gridcell][tabindex='0']").count() == 1
    cell(one, 1, 1).click()
    assert one.locator(".lg-live").inner_text().startswith("layer 1, position 1: top token ␣of")
    assert one.get_by_role("gridcell", selected=True).count() == 1
    assert one.get_by_role("list", name="attention").get_by_role("button").count() == 3


def test_the_panel_lists_the_top_tokens_of_four_sites_with_their_moves(one):
    cell(one, 1, 0).click()
    assert one.locator(".lg-step-title").all_inner_texts() == ["○layer input", "■attention", "◆FFN", "●layer output"]
    assert one.locator(".lg-step").first.locator(".lg-top-token").all_inner_texts() == ["␣The", "␣capital", "␣of"]
    moves = one.locator(".lg-step").last.locator(".lg-top-move").all_inner_texts()
    assert moves == ["▲1", "▲1", "new"]
    stats = one.locator(".lg-stats").inner_text().split("\n")
    assert stats[:4] == ["rank", "307", "probability", "23.3%"]


def test_a_cell_of_a_layer_without_the_site_is_empty_and_the_panel_says_why(browser, tmp_path):
    drawn = pages.data([payload(lacking={"mlp_out": [0, 2, 4]})], site="mlp_out")
    with grid(browser, tmp_path, drawn) as page:
        cell(page, 2, 1).click()
        assert cell(page, 2, 1).inner_text() == ""
        assert page.locator(".lg-token-line").inner_text().endswith(": this layer has no FFN")
        assert page.locator(".lg-live").inner_text() == "layer 2, position 1: this layer has no FFN"
        assert page.locator(".lg-step-sub").nth(2).inner_text() == "this layer has no FFN"
        assert page.locator(".lg-stats").inner_text() == ""
        line = page.locator(".lg-curve:not(.lg-pin)").get_attribute("d") or ""
        assert [line.count(step) for step in "ML"] == [2, 2]  # through layers 1, 3 and 5, and the model's own dot
        cell(page, 3, 1).click()
        assert page.locator(".lg-token-line").inner_text().endswith(" at FFN")


def test_a_pair_of_responses_says_which_layer_has_no_ffn(browser, tmp_path):
    drawn = pages.data([payload(lacking={"mlp_out": [0, 2, 4]}), payload()], site="mlp_out", layer=2, position=1)
    with grid(browser, tmp_path, drawn) as page:
        assert page.locator(".lg-pair-list").all_inner_texts()[0].split("\n")[-1] == "this layer has no FFN"
        assert "no FFN" not in page.locator(".lg-pair-list").all_inner_texts()[1]


def test_a_pinned_token_has_a_line_that_breaks_where_its_rank_is_unknown(one):
    cell(one, 1, 0).click()
    one.locator(".lg-step").last.locator(".lg-top").nth(1).click()
    assert state(one)["pins"] == [" of"]
    assert one.locator(".lg-chip.lg-pinned").inner_text().startswith("␣of")
    drawn = one.locator("path.lg-pin").get_attribute("d")
    assert drawn.count("L") == 2  # known in layers 0, 1 and 2
    assert "only known within the top 3" in one.locator(".lg-ranks").inner_text()
    one.get_by_label("Unpin ␣of").click()
    assert not one.locator("path.lg-pin").count()


def test_finding_a_token_marks_its_cells_and_steps_through_them(one):
    one.get_by_label("Find a token").fill("par")
    assert one.locator(".lg-found").inner_text() == "15 cells, 1 token"
    assert one.locator(".lg-hit").count() == 15
    assert "lg-hit" in (cell(one, 2, 3).get_attribute("class") or "")
    one.get_by_label("Find a token").press("Enter")
    assert (state(one)["layer"], state(one)["position"]) == (4, 0)
    one.get_by_label("Previous cell with this token").click()
    assert (state(one)["layer"], state(one)["position"]) == (3, 0)
    assert contrast(one, ".lg-cell") >= 4.5
    one.get_by_label("Find a token").fill("zebra")
    assert one.locator(".lg-found").inner_text() == "no cell has it"


def test_ranks_and_log_probabilities_are_bright_where_the_model_is_right(one):
    brightness = {}
    for measure in ("probability", "rank", "logprob", "entropy"):
        choose(one, "Colour by", measure) if measure != "probability" else None
        light = [
            cell(one, layer, 0).evaluate("each => getComputedStyle(each).backgroundColor.match(/[0-9]+/g).map(Number)")
            for layer in (0, 5)
        ]
        brightness[measure] = [sum(colour) for colour in light]
    assert all(low < high for low, high in brightness.values()), brightness


def test_the_fixed_scale_can_be_chosen_where_there_is_one(one):
    choose(one, "Colour by", "entropy")
    assert one.locator(".lg-end").all_inner_texts() == ["0 nats", "2.7 nats"]
    choose(one, "Scale", "fixed")
    assert one.locator(".lg-end").all_inner_texts() == ["0 nats", "6.91 nats"]
    choose(one, "Colour by", "kl")
    assert one.get_by_label("Scale").input_value() == "automatic"


def test_site_and_readout_change_without_a_reload_and_raw_says_that_it_is_saturated(one):
    assert one.locator(".lg-note").is_hidden()
    choose(one, "Readout", "raw")
    assert cell(one, 0, 0).inner_text() == "␣capital"
    assert NOTE in one.locator(".lg-note").inner_text()
    one.get_by_role("button", name="Read through the final norm").click()
    expect(cell(one, 0, 0)).to_have_text("␣The")
    choose(one, "Site", "resid_pre")
    assert cell(one, 1, 0).inner_text() == "␣The"  # the output of layer 0


def test_a_plane_that_was_not_sent_is_wanted_from_the_host(one):
    part = payload()
    del part["planes"]["raw"]
    one.evaluate("data => grid.update(data)", pages.data([part]))
    one.get_by_label("Readout", exact=True).select_option("raw")
    assert one.evaluate("wanted") == [{"readout": "raw", "site": "resid_post"}]
    one.evaluate("data => grid.update(data)", pages.data([payload()]))
    expect(cell(one, 0, 0)).to_have_text("␣capital")


def test_cells_fill_while_they_are_measured_and_the_selection_stays(one):
    one.evaluate("data => grid.update(data)", pages.data([payload(measured=False)]))
    expect(cell(one, 2, 3)).to_have_text("")
    cell(one, 2, 3).click()
    assert "–" in one.locator(".lg-stats").inner_text()
    one.evaluate("data => grid.update(data)", pages.data([payload()]))
    expect(cell(one, 2, 3)).to_have_text("␣Paris")
    assert headline(one) == "Layer 2 · position 3"
    assert state(one)["locked"]


def test_a_scan_without_top_tokens_shows_numbers_in_its_cells(one):
    drawn = payload(k=0)
    drawn["measures"] = drawn["measures"][1:]
    one.evaluate("data => grid.update(data)", pages.data([drawn]))
    expect(cell(one, 0, 0)).to_have_text("2.7")
    assert one.get_by_label("Find a token").is_hidden()


def test_only_measured_layers_have_rows_and_curves_break_at_the_others(one):
    one.evaluate("data => grid.update(data)", pages.data([payload(kept=[0, 1, 2, 5])], layer=4, position=2))
    expect(one.locator(".lg-side")).to_have_text(["layer", "model", "5", "2", "1", "0"])
    assert headline(one) == "Layer 5 · position 2"
    assert str(one.locator("path.lg-curve").first.get_attribute("d")).count("L") == 2


def test_text_above_the_grid_greys_the_prompt_and_points_at_columns(one):
    assert one.locator(".lg-prompt").inner_text().startswith("Question:⏎")
    assert "The capital of France is Paris.⏎" in one.locator(".lg-response").inner_text()
    one.locator(".lg-token").nth(5).click()
    assert headline(one) == "Layer 3 · position 5"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(browser, tmp_path, scheme):
    drawn = pages.data([payload()], layer=2, position=3, measure="rank")
    with grid(browser, tmp_path, drawn, color_scheme=scheme) as page:
        assert headline(page) == "Layer 2 · position 3"
        assert state(page)["measure"] == "rank"
        assert contrast(page, ".lg-cell, .lg-side, .lg-head, .lg-word, .lg-is-locked") >= 4.5
        background = page.locator(".lg").evaluate("each => getComputedStyle(each).backgroundColor")
        assert (sum(map(int, background[4:-1].split(","))) > 700) == (scheme == "light")


def test_a_long_response_is_drawn_in_part_and_scrolls_to_its_last_cell(browser, tmp_path):
    with grid(browser, tmp_path, pages.data([payload(700, 80)])) as page:
        assert page.locator(".lg-cell").count() < 2000
        page.locator(".lg-now").click()
        for key in ["ArrowRight"] * 30 + ["ArrowDown"] * 30:
            page.keyboard.press(key)
        assert headline(page) == "Layer 10 · position 30"
        for key in ("End", *["PageUp"] * 8):
            page.keyboard.press(key)
        assert headline(page) == "Model’s own policy · position 699"
        assert page.evaluate("document.activeElement.getAttribute('aria-colindex')") == "701"
        page.keyboard.press("ArrowDown")
        page.locator(".lg-scroll").evaluate("each => { each.scrollLeft = 9000 }")
        page.wait_for_function("document.querySelector('.lg-at').textContent > 100")
        heads = page.locator(".lg-at").all_inner_texts()
        assert heads == [str(int(heads[0]) + at) for at in range(len(heads))]
        page.keyboard.press("ArrowLeft")  # the focus outlives its cell
        assert headline(page) == "Layer 79 · position 698"


def test_a_phone_shows_the_answer_beside_the_grid(browser, tmp_path):
    drawn = pages.data([payload(40)], layer=4, position=3)
    with grid(browser, tmp_path, drawn, viewport={"width": 390, "height": 844}, has_touch=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        expect(page.locator(".lg-headline")).to_be_in_viewport()
        page.locator(".lg-scroll").evaluate("each => each.scrollIntoView()")
        for part in (".lg-now", ".lg-headline", ".lg-stats", ".lg-step .lg-top >> nth=2"):
            expect(page.locator(part)).to_be_in_viewport(ratio=1)
        cell(page, 5, 3).tap()
        assert headline(page) == "Layer 5 · position 3"


def test_hostile_tokens_stay_text(browser, tmp_path):
    drawn = payload(12, words=[*HOSTILE, "</script><script>window.hacked=1</script>", "\u0301", ""])
    drawn["prompt"] = list(HOSTILE)
    with grid(browser, tmp_path, pages.data([drawn])) as page:
        cell(page, 1, 0).click()
        for button in page.locator(".lg-step").last.locator(".lg-top").all()[:3]:
            button.click()
        page.get_by_label("Find a token").fill("<img")
        assert cell(page, 0, 1).inner_text() == "<img␣src=x␣onerror=window.hacked=1>"
        assert "⟨U+202E⟩" in cell(page, 0, 2).inner_text()
        assert not page.evaluate("window.hacked")
        assert not page.locator(".lg img, .lg script, .lg a").count()


def test_the_file_keeps_its_cell_in_the_address(browser, tmp_path):
    path = tmp_path / "grid.html"
    path.write_text(pages.page(pages.data([payload()]), "Grid"), encoding="utf-8")
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{path.as_uri()}#layer=1&position=2&measure=kl")
        page.wait_for_selector("[data-ready]")
        assert headline(page) == "Layer 1 · position 2"
        cell(page, 4, 5).click()
        page.keyboard.press("Enter")
        assert (
            json.loads(
                page.evaluate("JSON.stringify(Object.fromEntries(new URLSearchParams(location.hash.slice(1))))")
            )["layer"]
            == "4"
        )


def test_numbers_of_another_format_are_refused_in_a_sentence(one):
    one.evaluate("data => grid.update(data).catch(() => {})", pages.data([payload() | {"format": 2}]))
    expect(one.locator(".lens-grid")).to_have_text(
        "The lens grid can't be drawn. Can't read format 2 of a lens grid, only 1."
    )


def test_the_frame_in_a_notebook_has_no_address_to_keep_a_cell_in(browser, tmp_path):
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html>{pages.frame(pages.data([payload()]), 'Grid')}", encoding="utf-8")
    with browser.new_context() as context:
        page = context.new_page()
        errors: list[Any] = []
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(path.as_uri())
        frame = page.frame_locator("iframe")
        frame.locator(".lg-line .lg-cell").first.click()
        page.keyboard.press("Enter")
        assert frame.locator(".lg-headline").inner_text() == "Layer 5 · position 0"
        assert not frame.get_by_role("button", name="Link to this cell").count()
        assert not errors
