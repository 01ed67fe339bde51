"""The one look: tokens and names are hostile text, figures need no network, files are whole or not there."""

import html
import shutil
import unicodedata

import kaleido
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal_policy.errors import InputError
from internal_policy.look import theme
from internal_policy.look.view import About

ABOUT = About("demo", "raw", 20, 1856, 8, 448)
CHROMIUM = any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")))


def line(title: str = "Entropy", about: About | str = ABOUT, style: theme.Style = "screen") -> go.Figure:
    return theme.layout(
        go.Figure([go.Scatter(y=[1, 2], name="a"), go.Scatter(y=[2, 1], name="b")]), title, about, style
    )


@pytest.mark.parametrize(
    ("token", "drawn"),
    [
        (" the", "␣the"),
        ("\n\n", "⏎⏎"),
        ("a\tb", "a⇥b"),
        ("\r", "⟨U+000D⟩"),
        ("", "∅"),
        ("\u202eevil", "⟨U+202E⟩evil"),
        ("a\u200bb", "a⟨U+200B⟩b"),
        ("\u00a0", "⟨U+00A0⟩"),
        ("\u3164", "⟨U+3164⟩"),
        ("\u0301", "◌\u0301"),
        ("é数🙂", "é数🙂"),
        ("<0xF0>", "&lt;0xF0&gt;"),
        ("<b>x</b>", "&lt;b&gt;x&lt;/b&gt;"),
        ("&amp;", "&amp;amp;"),
        ("$x$", "&#36;x&#36;"),
        ("'\"", "'\""),
    ],
)
def test_a_token_is_drawn_as_it_stands(token, drawn):
    assert theme.glyphs(token) == drawn


@given(st.text(st.characters(exclude_categories=())))
def test_no_token_is_markup_or_mathematics_or_unseen(token):
    drawn = theme.glyphs(token)
    assert drawn
    assert not {*drawn} & {*"<>$"}
    seen = html.unescape(drawn)
    assert not any(unicodedata.category(char)[0] in "CZ" for char in seen)


def test_a_long_token_is_cut_before_it_is_escaped():
    assert theme.glyphs("<" * 20, 4) == "&lt;&lt;&lt;…"


def test_the_caption_says_model_readout_n_and_filter():
    about = About("demo-qwen3", "norm", 1, 856123, 8, 448, "correct responses, positions 0 to 99")
    expected = "demo-qwen3 · through the final norm · 1 rollout, 856,123 tokens · correct responses, positions 0 to 99"
    assert theme.caption(about) == expected


def test_the_caption_names_a_lens_and_says_it_as_it_stands():
    assert "through the tuned lens" in theme.caption(About("demo", "tuned", 1, 1, 8, 448))
    figure = line(about=About("demo", "<b>$x$", 1, 1, 8, 448))
    assert "through the &lt;b&gt;&#36;x&#36; lens" in figure.layout.title.subtitle.text


def test_of_a_long_model_path_the_end_is_kept():
    assert theme.short("/a" * 40 + "/step-300").endswith("/step-300")
    assert len(theme.short("/a" * 40 + "/step-300")) == 48


def test_a_model_name_is_drawn_as_it_stands():
    figure = line(about=About("<b>$x$\u202e</b>", "raw", 1, 1, 8, 448))
    assert "&lt;b&gt;&#36;x&#36;⟨U+202E⟩&lt;/b&gt;" in figure.layout.title.subtitle.text


def test_title_and_caption_are_in_the_meta_as_plain_text():
    assert dict(line("A & B", style="paper").layout.meta) == {"title": "A & B", "caption": theme.caption(ABOUT)}


def test_on_the_screen_the_page_gives_the_colours():
    layout = line().layout
    assert (layout.paper_bgcolor, layout.plot_bgcolor) == ("rgba(0,0,0,0)",) * 2
    assert layout.font.color is None
    assert layout.width is None


@pytest.mark.parametrize(("wide", "width"), [(False, 312), (True, 648)])
def test_in_print_a_figure_is_a_column_or_a_page_wide_black_on_white(wide, width):
    figure = theme.layout(go.Figure(go.Scatter(y=[1])), "Entropy", ABOUT, "paper", wide=wide)
    assert figure.layout.width == width
    assert (figure.layout.paper_bgcolor, figure.layout.font.color) == ("white", "black")
    assert "Times" in figure.layout.font.family
    assert figure.layout.title.text is None


@pytest.mark.parametrize(("first", "last", "room"), [(1, 2, 9), (1, 8, 9), (0, 81, 20), (1, 80, 9), (30, 36, 9)])
def test_ticks_are_round_numbers_within_the_room(first, last, room):
    ticks = theme.ticks(first, last, room)
    assert 1 <= len(ticks) <= room + 1
    assert first <= ticks[0] <= ticks[-1] <= last


def test_the_page_needs_no_network_and_offers_no_upload(tmp_path):
    theme.write(line("</script><script>alert(1)</script>"), tmp_path / "figure.html")
    page = (tmp_path / "figure.html").read_text()
    assert 'src="http' not in page
    assert '"showSendToCloud": false' in page
    assert "</script><script>alert" not in page


def test_writing_leaves_the_configuration_as_it_was(tmp_path):
    before = dict(theme.CONFIG)
    theme.write(line(), tmp_path / "figure.html")
    assert before == theme.CONFIG
    assert before["plotlyServerURL"] == ""


def test_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected \.html, \.png, \.svg or \.pdf"):
        theme.write(line(), tmp_path / "figure.gif")


def test_a_folder_that_is_not_there_is_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(InputError, match="in a folder that exists"):
        theme.check(tmp_path / "nowhere" / "figure.html")


def test_without_kaleido_html_is_named_as_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(theme, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install kaleido"):
        theme.write(line(), tmp_path / "figure.png")
    theme.write(line(), tmp_path / "figure.html")


def test_without_chromium_html_is_named_as_the_way_out_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"No browser found .*\.html"):
        theme.write(line(), tmp_path / "figure.png")
    assert not [*tmp_path.iterdir()]


def test_images_are_drawn_on_white_without_the_network(tmp_path, monkeypatch):
    asked = {}

    def drawn(figure, opts, kopts):
        asked.update(figure=figure, **opts, **kopts)
        return b"image"

    monkeypatch.setattr(kaleido, "calc_fig_sync", drawn)
    figure = line()
    theme.write(figure, tmp_path / "figure.PNG")
    assert (tmp_path / "figure.PNG").read_bytes() == b"image"
    assert asked["figure"]["layout"]["paper_bgcolor"] == "white"
    assert (asked["format"], asked["mathjax"], asked["proxy_server"]) == ("png", False, "127.0.0.1:9")
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"


@pytest.mark.skipif(not CHROMIUM, reason="draws in Chromium, and there is none")
def test_plotly_draws_glyphs_as_the_token_stands(tmp_path):
    tokens = ["<b>x</b>", "&amp;", "$x$", "'\""]
    figure = line(style="paper").update_xaxes(tickvals=[0, 0.3, 0.6, 0.9], ticktext=[theme.glyphs(t) for t in tokens])
    theme.write(figure, tmp_path / "figure.svg")
    drawn = html.unescape((tmp_path / "figure.svg").read_text())
    for token in tokens:
        assert f">{token}</text>" in drawn
