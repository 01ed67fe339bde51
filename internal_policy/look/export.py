"""Write a figure as an HTML page, PNG, SVG or PDF."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from internal_policy import files
from internal_policy.errors import InputError
from internal_policy.look import theme
from internal_policy.look.lens_grid.page import POLICY

CONFIG = {"showSendToCloud": False, "plotlyServerURL": "", "displaylogo": False, "responsive": True}
"""For plotly.js: no button that uploads the figure to a cloud service. Pass a copy, because plotly modifies it."""
IMAGES = (".png", ".svg", ".pdf")
PLAIN = 52
"""Height in pixels of the margin below the axes of a figure without a slider."""
WIDTH, SCALE = 960, 3
"""Width in pixels of an image of a figure that has none, and how many times finer a PNG is."""


def html(figure: go.Figure, name: str = "figure") -> str:
    """A figure as one HTML page that needs no network. `name` is that of the image its button saves."""
    plain = re.sub(r"[^\w .-]", "_", name)  # plotly writes it into a script as it is
    config = {**CONFIG, "toImageButtonOptions": {"format": "png", "scale": SCALE, "filename": plain}}
    page = figure.to_html(include_plotlyjs=True, include_mathjax=False, full_html=True, config=config)
    return page.replace("<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{POLICY}">', 1)


def write(figure: go.Figure, path: Path) -> None:
    """Write a figure as .html, .png, .svg or .pdf, whole or not at all. Raises InputError if that fails."""
    check(path)
    ending = path.suffix.lower().removeprefix(".")
    whole = html(figure, path.stem).encode() if ending == "html" else image(figure, ending)
    with files.replacing(path) as temporary:
        temporary.write_bytes(whole)


def write_page(text: str, path: Path) -> None:
    """Write an HTML page, whole or not at all. Raises InputError if that fails."""
    check(path)
    files.write_text(path, text)


def check(path: Path) -> None:
    """Raise InputError if a figure can't be written to `path`. Call this before drawing it."""
    ending = path.suffix.lower()
    if ending not in (".html", *IMAGES):
        raise InputError(f"Can't save a figure as '{path.name}'. Use .html, .png, .svg or .pdf.")
    if not path.parent.is_dir():
        raise InputError(f"Can't write {path} because its folder doesn't exist. Create it, or choose another.")
    if ending in IMAGES and find_spec("kaleido") is None:
        raise InputError(f"Saving {ending} needs kaleido. Run `pip install kaleido`, or save as .html.")


def picture(figure: go.Figure) -> go.Figure:
    """A figure as it is drawn in an image: as wide as it says, and without lines that only a click would show."""
    drawn = go.Figure([trace for trace in theme.traces(figure) if trace.visible != "legendonly"], figure.layout)
    return drawn.update_layout(width=figure.layout["width"] or WIDTH)


def still(figure: go.Figure) -> go.Figure:
    """The figure without the slider and buttons that play its steps; the title names the step of the image."""
    layout: Any = figure.layout
    if not layout.sliders:
        return figure
    (slider,), below = layout.sliders, layout.margin.b - PLAIN
    title = f"{layout.title.text}: step {slider.steps[slider.active].label}"
    drawn = go.Figure(data=figure.data, layout=figure.layout)
    drawn.layout["sliders"] = drawn.layout["updatemenus"] = ()
    return drawn.update_layout(title={"text": title}, margin={"b": PLAIN}, height=layout.height - below)


def image(figure: go.Figure, form: str) -> bytes:
    """A figure as png, svg or pdf, drawn by Chromium on white. Raises InputError if Chromium is missing."""
    import kaleido

    drawn = picture(still(figure))
    options = {"format": form, "width": drawn.layout["width"], "height": drawn.layout["height"], "scale": 1}
    options |= {"scale": SCALE} if form == "png" else {}
    offline = {
        "mathjax": False,
        "proxy_server": "127.0.0.1:9",
    }  # without these, kaleido fetches MathJax and Chromium calls home
    try:
        return kaleido.calc_fig_sync(drawn.to_dict(), opts=options, kopts=offline)
    except RuntimeError as error:
        said = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
        raise InputError(
            f"Chromium couldn't draw the image ({said}). Install it with `apt install chromium` or "
            "`kaleido_get_chrome`, or save as .html."
        ) from error
