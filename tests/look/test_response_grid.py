import json
import re
from dataclasses import replace
from html import unescape

import pytest

import internal_policy as ip
from internal_policy import bundle
from internal_policy.errors import InputError
from internal_policy.look import view
from internal_policy.look.lens_grid import response

SCAN = bundle.DATA / "scans" / "demo-qwen3"


def held(text):
    """The data in a page."""
    found = re.search(r'class="lens-grid-data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_a_page_opens_on_the_view_and_the_choice():
    text = response.html(view.for_tokens(SCAN), 2, position=3, measure="kl", site="attn_in")
    data = held(text)
    assert data["chosen"] == {"readout": "norm", "position": 3, "measure": "kl", "site": "attn_in"}
    assert set(data["grids"][0]["planes"]["raw"]) > {"attn_in", "attn_out", "mlp_out", "resid_post", "final"}
    assert "demo-qwen3 · response of rollout 2" in text


def test_a_page_requests_nothing():
    text = response.html(view.default(SCAN))
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)\s*=\s*["']?https?:""", text)


def test_a_notebook_draws_the_tokens_as_a_grid():
    table = ip.open_scan(SCAN).tokens(3, "mlp_out", "rank")
    frame = table._repr_html_()
    assert frame.count("<iframe sandbox") == 1
    assert held(unescape(frame))["chosen"] == {"readout": "raw", "site": "mlp_out", "measure": "rank"}
    assert {"layer", "position", "id", "token", "value"} == {*table}


def test_a_grid_has_its_own_background_and_ink_on_a_page_of_another_theme():
    body = re.search(r"body \{ (.*) \}", response.html(view.default(SCAN)))
    assert body
    assert "background: Canvas; color: CanvasText" in body[1]


def test_a_part_of_the_table_is_a_plain_frame():
    table = ip.open_scan(SCAN).tokens(3)
    assert "<iframe" not in (table.head()._repr_html_() or "")


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        ({"measure": "beauty"}, "Can't colour cells by 'beauty'. Choose one of probability, entropy"),
        ({"measure": "cosine"}, "no cosine at resid_post"),
        ({"site": "nowhere"}, "no site 'nowhere'"),
        ({"rollout": 999}, "999"),
        ({"position": 10_000}, "no position 10000"),
    ],
)
def test_what_can_not_be_drawn_is_refused(chosen, why):
    with pytest.raises(InputError, match=re.escape(why)):
        response.html(view.default(SCAN), **chosen)


def test_a_rollout_outside_the_view_is_refused():
    one = view.default(SCAN)
    incorrect = view.rollouts(replace(one, outcome="incorrect"))["rollout"].iloc[0]
    with pytest.raises(InputError, match="correct rollouts"):
        response.html(replace(one, outcome="correct"), int(incorrect))
