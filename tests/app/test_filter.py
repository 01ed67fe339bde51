"""The field above the documentation's table of families, in a real browser."""

from pathlib import Path

from playwright.sync_api import expect

SCRIPT = Path(__file__).parents[2] / "docs" / "_static" / "filter.js"
TABLE = """
<section id="families"><div class="table-wrapper"><table><tbody>
<tr><td>llama</td><td>before</td></tr>
<tr><td>qwen3_moe</td><td>the FFN is the block of experts</td></tr>
<tr><td>olmo2</td><td>after</td></tr>
</tbody></table></div></section>
"""


def test_a_table_is_filtered_by_words_typed_with_the_keyboard_alone(page):
    page.set_content(TABLE)
    expect(page.locator("tr")).to_have_count(3)
    page.add_script_tag(path=str(SCRIPT))
    expect(page.locator("output")).to_have_text("3 of 3")
    page.keyboard.press("Tab")
    page.keyboard.type("EXPERTS qwen")
    expect(page.locator("tr:visible")).to_have_text("qwen3_moethe FFN is the block of experts")
    expect(page.locator("output")).to_have_text("1 of 3")
    page.keyboard.press("Escape")  # empties a search field
    expect(page.locator("tr:visible")).to_have_count(3)


def test_a_page_without_the_table_has_no_field(page):
    page.set_content("<p>another page</p>")
    page.add_script_tag(path=str(SCRIPT))
    expect(page.locator("input")).to_have_count(0)
