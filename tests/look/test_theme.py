"""Figures share one look, and draw tokens and names literally."""

import html
import unicodedata
from itertools import combinations

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_figures import (
    ABOUT,
    HOSTILE,
    about,
    cells,
    changes,
    choices,
    depths,
    dynamics,
    line,
    means,
    metrics,
    quantiles,
    response,
)

from internal_policy.look import catalogue, layer_figures, legend, theme, token_figures, training_figures
from internal_policy.look.view import About

SHARES = np.array([0.2126, 0.7152, 0.0722])
"""How much red, green and blue contribute to luminance."""


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
def test_a_token_is_drawn_literally(token, drawn):
    assert theme.glyphs(token) == drawn


@given(st.text(st.characters(exclude_categories=())))
def test_no_token_is_markup_maths_or_invisible(token):
    drawn = theme.glyphs(token)
    assert drawn
    assert not {*drawn} & {*"<>$"}
    seen = html.unescape(drawn)
    assert not any(unicodedata.category(char)[0] in "CZ" for char in seen)


def test_a_long_token_is_cut_before_it_is_escaped():
    assert theme.glyphs("<" * 20, 4) == "&lt;&lt;&lt;…"


def test_the_caption_names_model_readout_counts_and_filter():
    about = About("demo-qwen3", "norm", 1, 856123, 8, 448, "correct rollouts, positions 0 to 99")
    expected = "demo-qwen3 · through the final norm · 1 rollout, 856,123 tokens · correct rollouts, positions 0 to 99"
    assert theme.caption(about) == expected


def test_the_caption_names_a_lens_literally():
    assert "through the tuned lens" in theme.caption(About("demo", "tuned", 1, 1, 8, 448))
    figure = line(about=About("demo", "<b>$x$", 1, 1, 8, 448))
    assert "through the &lt;b&gt;&#36;x&#36; lens" in figure.layout.title.subtitle.text


def test_a_long_model_path_keeps_its_end():
    assert theme.short("/a" * 40 + "/step-300").endswith("/step-300")
    assert len(theme.short("/a" * 40 + "/step-300")) == 48


def test_a_model_name_is_drawn_literally():
    figure = line(about=About("<b>$x$\u202e</b>", "raw", 1, 1, 8, 448))
    assert "&lt;b&gt;&#36;x&#36;⟨U+202E⟩&lt;/b&gt;" in figure.layout.title.subtitle.text


def test_title_and_caption_are_in_the_meta_as_plain_text():
    assert dict(line("A & B", style="paper").layout.meta) == {"title": "A & B", "caption": theme.caption(ABOUT)}


def contrast(colour: str, other: str) -> float:
    """The contrast of two colours, from 1 to 21 (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = np.frombuffer(bytes.fromhex(colour[1:]), np.uint8) / 255
        return float(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ SHARES)

    low, high = sorted([luminance(colour), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_texts_have_the_contrast_that_wcag_asks_on_white():
    layout = line().layout
    texts = [layout.font, layout.title.font, layout.title.subtitle.font, layout.legend.font, layout.hoverlabel.font]
    texts += [part for axis in (layout.xaxis, layout.yaxis) for part in (axis.tickfont, axis.title.font)]
    assert all(contrast(text.color, "#FFFFFF") >= 4.5 for text in texts)
    assert layout.paper_bgcolor == layout.plot_bgcolor == layout.hoverlabel.bgcolor == "white"


def test_the_layer_output_is_the_strongest_curve_and_black_in_print():
    layer, attention, ffn = (legend.SITES[site].colour for site in ("resid_post", "attn_out", "mlp_out"))
    assert contrast(layer, "#FFFFFF") > 3 * max(contrast(attention, "#FFFFFF"), contrast(ffn, "#FFFFFF"))
    screen, paper = (layer_figures.flow(means(8), about(8), style) for style in ("screen", "paper"))
    (drawn,) = [trace for trace in theme.traces(screen) if trace.name == "layer output"]
    others = [trace for trace in theme.traces(screen) if trace.name in ("attention", "FFN")]
    assert all(drawn.line.width > other.line.width for other in others)
    assert {trace.zorder for trace in theme.traces(screen)} == {None}  # with any, plotly draws no frame around the axes
    (printed,) = [trace for trace in theme.traces(paper) if trace.name == "layer output"]
    assert printed.line.color == printed.marker.color == "black"


SEEN = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
"""Linear RGB as it is seen without one kind of cone (Machado et al. 2009, severity 1)."""


@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.parametrize("ink", [theme.INK, "#F4F5F7"], ids=["light", "dark"])
def test_layer_attention_and_ffn_differ_without_one_kind_of_cone(kind, ink):
    linear = [(np.frombuffer(bytes.fromhex(c[1:]), np.uint8) / 255) ** 2.2 for c in (ink, theme.ORANGE, theme.BLUE)]
    seen = [np.clip(np.array(SEEN[kind]) @ colour, 0, 1) ** (1 / 2.2) for colour in linear]
    apart = [np.linalg.norm(one - other) for one, other in combinations(seen, 2)]
    assert min(apart) > 0.35  # of the distance of 1.73 from black to white


def test_on_a_page_a_figure_has_no_background_of_its_own():
    figure = line()
    layout = theme.on_page(figure).layout
    assert (layout.paper_bgcolor, layout.plot_bgcolor) == ("rgba(0,0,0,0)",) * 2
    assert figure.layout.paper_bgcolor == "white"
    assert layout.width is None


@pytest.mark.parametrize(("wide", "width"), [(False, 312), (True, 648)])
def test_in_print_a_figure_is_a_column_or_a_page_wide_black_on_white(wide, width):
    figure = theme.layout(go.Figure(go.Scatter(y=[1])), "Entropy", ABOUT, "paper", wide=wide)
    assert figure.layout.width == width
    assert (figure.layout.paper_bgcolor, figure.layout.font.color) == ("white", "black")
    assert "Times" in figure.layout.font.family
    assert figure.layout.title.text is None


@pytest.mark.parametrize(("first", "last", "room"), [(1, 2, 9), (1, 8, 9), (0, 81, 20), (1, 80, 9), (30, 36, 9)])
def test_ticks_are_round_numbers_within_the_room_and_the_last(first, last, room):
    ticks = theme.ticks(first, last, room)
    assert 1 <= len(ticks) <= room + 1
    assert first <= ticks[0] <= ticks[-1] == last


def test_no_tick_touches_the_last():
    assert theme.ticks(0, 27, 9) == [0, 5, 10, 15, 20, 27]


def test_only_the_style_of_the_paper_counts_layers_from_1():
    assert (theme.first_layer("screen"), theme.first_layer("paper")) == (0, 1)
    assert (theme.layer_title("screen"), theme.layer_title("paper")) == ("Layer", "Layer (from 1)")
    assert theme.place(5, "attn_out", "paper") == "layer 6 · attention (5.attn_out)"


def all_figures(n_layers: int, style: theme.Style, model: str = "demo") -> dict[str, go.Figure]:
    """Every figure of one model."""
    one = about(n_layers, model)
    spans = [("exploration", 0, 0), ("convergence", 1, n_layers - 1)]
    settled = means(n_layers, ["resid_post"]).query("site != 'final'")
    return {
        "flow": layer_figures.flow(means(n_layers), one, style),
        "change": layer_figures.change(changes(n_layers), one, spans, style),
        "norm control": layer_figures.norm_control(changes(n_layers), one, style),
        "residual": layer_figures.residual(means(n_layers, ["attn_out", "mlp_out"]), means(n_layers), one, style),
        "convergence": layer_figures.convergence(means(n_layers), settled, one, style),
        "distribution": layer_figures.distribution(quantiles(n_layers), one, "attn_out", "entropy", style),
        "tokens": token_figures.tokens(cells(n_layers, 9), response(9), one, "resid_post", "entropy", style),
        "predictions": token_figures.predictions(choices(), one, 1, 7, style),
    }


AXES = {
    "flow": ["Entropy (nats)"],
    "change": ["Entropy change (nats)"],
    "norm control": ["layer<br>{} (nats)", "attention<br>{} (nats)", "FFN<br>{} (nats)"],
    "residual": ["Cosine", "Norm"],
    "convergence": ["KL (nats)", "Settled tokens"],
    "distribution": ["Entropy (nats)"],
    "tokens": ["Layer{}"],
    "predictions": [],
}


@depths
@pytest.mark.parametrize("style", ["screen", "paper"])
def test_axes_show_their_unit(n_layers, style):
    for name, figure in all_figures(n_layers, style).items():
        drawn = [axis.title.text for axis in figure.select_yaxes()] if AXES[name] else []
        words = {"screen": ("change", ""), "paper": ("Δ", " (from 1)")}[style]
        assert drawn == [said.format(words[said.startswith("Layer")]) for said in AXES[name]]


PHONE = 38
"""Most characters of a title at 390 pixels."""


def test_titles_fit_a_phone():
    drawn = [*all_figures(36, "screen").values(), training_figures.trained(dynamics(), metrics(), 2)]
    for measure in theme.WHILE_TRAINING:
        frame = dynamics().assign(**{measure: 1.0})
        drawn.append(training_figures.dynamics(frame, None, "run", measure, "resid_post"))
    for measure in catalogue.CHOICES["tokens"]:
        drawn.append(token_figures.tokens(cells(2, 9), response(9), about(2), "attn_out", measure))
    assert [title for figure in drawn if len(title := figure.layout.meta["title"]) > PHONE] == []


@depths
def test_every_figure_names_its_readout_and_counts(n_layers):
    for figure in all_figures(n_layers, "screen").values():
        for said in (figure.layout.meta["caption"], figure.layout.title.subtitle.text):
            assert "raw hidden states" in said
            assert "rollout" in said
            assert "token" in said


@pytest.mark.parametrize("style", ["screen", "paper"])
def test_a_hostile_model_name_is_drawn_literally(style):
    for figure in all_figures(2, style, HOSTILE).values():
        drawn = figure.to_dict()
        del drawn["layout"]["meta"]  # plain text that plotly doesn't draw
        assert HOSTILE not in str(drawn)
