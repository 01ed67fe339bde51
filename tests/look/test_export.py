"""Exported figures need no network, and files are whole or missing."""

import html
import shutil

import kaleido
import pytest
from small_figures import line

from internal_policy.errors import InputError
from internal_policy.look import export, theme
from internal_policy.look.lens_grid.page import POLICY

CHROMIUM = any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")))


def test_the_page_needs_no_network_and_offers_no_upload(tmp_path):
    export.write(line("</script><script>alert(1)</script>"), tmp_path / "figure.html")
    page = (tmp_path / "figure.html").read_text()
    assert 'src="http' not in page
    assert '"showSendToCloud": false' in page
    assert "</script><script>alert" not in page


def test_a_page_forbids_connections_before_anything_else_in_it():
    page = export.html(line(), "<!--<script>")
    assert page.split("<head>")[1].startswith(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">')
    assert "default-src 'none'" in POLICY
    assert '"filename": "__--_script_"' in page


def test_writing_leaves_the_configuration_as_it_was(tmp_path):
    before = dict(export.CONFIG)
    export.write(line(), tmp_path / "figure.html")
    assert before == export.CONFIG
    assert before["plotlyServerURL"] == ""


def test_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"Use \.html, \.png, \.svg or \.pdf"):
        export.write(line(), tmp_path / "figure.gif")


def test_a_missing_folder_is_refused_before_drawing(tmp_path):
    with pytest.raises(InputError, match="its folder doesn't exist"):
        export.check(tmp_path / "nowhere" / "figure.html")


def test_without_kaleido_the_error_suggests_html(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install kaleido"):
        export.write(line(), tmp_path / "figure.png")
    export.write(line(), tmp_path / "figure.html")


def test_without_chromium_the_error_suggests_html_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"No browser found .*\.html"):
        export.write(line(), tmp_path / "figure.png")
    assert not [*tmp_path.iterdir()]


def test_images_are_drawn_on_white_without_the_network(tmp_path, monkeypatch):
    asked = {}

    def drawn(figure, opts, kopts):
        asked.update(figure=figure, **opts, **kopts)
        return b"image"

    monkeypatch.setattr(kaleido, "calc_fig_sync", drawn)
    figure = line()
    export.write(figure, tmp_path / "figure.PNG")
    assert (tmp_path / "figure.PNG").read_bytes() == b"image"
    assert asked["figure"]["layout"]["paper_bgcolor"] == "white"
    assert (asked["width"], asked["scale"]) == (960, 3)
    assert (asked["format"], asked["mathjax"], asked["proxy_server"]) == ("png", False, "127.0.0.1:9")
    assert figure.layout.width is None


@pytest.mark.skipif(not CHROMIUM, reason="draws in Chromium, and there is none")
def test_plotly_draws_glyphs_literally(tmp_path):
    tokens = ["<b>x</b>", "&amp;", "$x$", "'\""]
    figure = line(style="paper").update_xaxes(tickvals=[0, 0.3, 0.6, 0.9], ticktext=[theme.glyphs(t) for t in tokens])
    export.write(figure, tmp_path / "figure.svg")
    drawn = html.unescape((tmp_path / "figure.svg").read_text())
    for token in tokens:
        assert f">{token}</text>" in drawn
