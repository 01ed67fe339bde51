"""Names and texts that are markup are shown as text on every page that we write, and request nothing."""

import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browsing import tab
from playwright.sync_api import Page

from internal_policy import bundle, files
from internal_policy.jupyter import notebook
from internal_policy.look import alignment, catalogue, export, report, runs, view
from internal_policy.look.aligned import Alignment
from internal_policy.look.catalogue import Choice
from internal_policy.look.lens_grid import response
from internal_policy.look.run import Run
from internal_policy.look.scan import of as scan_of
from internal_policy.look.view import View
from internal_policy.scans import store

LINK = "<a href='http://evil.invalid/a'>a</a>"
EVIL = (
    "<img src='http://evil.invalid/x.png' onerror='window.hacked=1'>",
    "</script><script>window.hacked=1</script>",
    f"{LINK}<b>bold</b>",
    "![a](http://evil.invalid/a.png) [a](javascript:window.hacked=1)",
    r"$\href{http://evil.invalid/b}{x}$ %{customdata} {{ 7 * 7 }}",
    "\"onmouseover='window.hacked=1' x=\"",
    "<svg onload=window.hacked=1><foreignObject><iframe src='http://evil.invalid'></foreignObject></svg>",
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """A scan whose model, readout, problems, responses and tokens are markup."""
    folder = tmp_path_factory.mktemp("scans") / "<img src=x onerror=window.hacked=1>"
    shutil.copytree(bundle.DATA / "scans" / "demo-qwen3", folder)
    record = dict(store.record(folder))
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        texts = {name: [EVIL[n % len(EVIL)] for n in range(len(table))] for name in ("token", "problem", "response")}
        if "readout" in table.column_names:
            texts["readout"] = [EVIL[0] if name == "norm" else name for name in table["readout"].to_pylist()]
        for name in texts.keys() & {*table.column_names}:
            table = table.set_column(table.column_names.index(name), name, pa.array(texts[name]))
        pq.write_table(table, path)
        record["files"] = {**record["files"], path.name: files.fingerprint(path)}
    selection = {**record["selection"], "readouts": ["raw", EVIL[0]]}
    lens = {**record["asked"], "lens": [[EVIL[0], EVIL[2]]], "problems": EVIL[3], "revision": EVIL[1]}
    changed = {"model": EVIL[2], "family": EVIL[5], "device": EVIL[6], "selection": selection, "asked": lens}
    files.write_json(folder / store.RECORD, {**record, **changed})
    return folder


def harmless(page: Page, path: Path, text: str) -> None:
    """Open a page from disk, point at everything that reacts, and check that no text of it became an element."""
    path.write_text(text, encoding="utf-8")
    page.goto(path.as_uri())
    page.wait_for_timeout(300)
    for place in page.locator(".nsewdrag, [role=gridcell]").all()[:12]:
        place.hover(force=True)
    assert page.evaluate("window.hacked") is None
    assert not page.locator("[href*=evil], [src*=evil], [src=x], [href^=javascript], iframe[src], svg[onload]").count()


@pytest.mark.slow
def test_nothing_of_a_hostile_scan_runs_in_a_report(hostile, browser, tmp_path):
    with tab(browser) as page:
        harmless(page, tmp_path / "report.html", report.report([view.default(hostile)]))
        assert page.get_by_text("<img src=").count()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flow", "readouts", "compare", "tokens"])
def test_nothing_of_a_hostile_scan_runs_in_a_figure(name, hostile, browser, tmp_path):
    with tab(browser) as page:
        one = view.default(hostile)
        figure = catalogue.draw(name, [one, one] if name == "compare" else [one], Choice())
        harmless(page, tmp_path / "figure.html", export.html(figure, EVIL[1]))


ASKING = """address => {
    const told = (one, well, badly) => new Promise(done => { one[well] = () => done(1); one[badly] = () => done(0) });
    const image = new Image();
    image.src = address;
    const form = document.createElement("form");
    form.action = address;
    document.body.append(form);
    form.submit();
    navigator.sendBeacon(address);
    const socket = new WebSocket(address.replace("http", "ws"));
    return Promise.all([
        fetch(address).then(() => 1, () => 0), told(image, "onload", "onerror"), told(socket, "onopen", "onerror"),
    ]);
}"""
"""A script that tries to reach an address in every way that is at hand."""


@pytest.mark.parametrize(
    "kind", ["grid", *(pytest.param(name, marks=pytest.mark.slow) for name in ("figure", "report"))]
)
def test_no_script_in_a_page_that_we_write_can_connect(kind, browser, tmp_path):
    """Even if a text got through as a script, it couldn't tell anybody."""
    one = view.default(bundle.DATA / "scans" / "demo-qwen3")
    export.write_page(_written(kind, one), tmp_path / "page.html")
    asked: list[str] = []

    class Counted(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Counted) as server, tab(browser) as page:
        Thread(target=server.serve_forever, daemon=True).start()
        page.goto((tmp_path / "page.html").as_uri())
        said = page.evaluate(ASKING, f"http://127.0.0.1:{server.server_port}/secret")
        page.wait_for_timeout(200)
        server.shutdown()
    assert not any(said)
    assert not asked


def _written(kind: str, one: View) -> str:
    if kind == "report":
        return report.report([one])
    if kind == "figure":
        return export.html(catalogue.draw("flow", [one], Choice()))
    return response.html(one)


@pytest.mark.slow
def test_nothing_of_a_hostile_scan_runs_in_a_notebook(hostile, browser, tmp_path):
    found = alignment.AlignmentTable({**_about(), "model": EVIL[0]}, _aligned())
    run = Run(runs.find("experiments/bupo"), EVIL[6])
    shown = [scan_of(hostile)._repr_html_(), run._repr_html_(), Alignment(found.about, found.table)._repr_html_()]
    shown.append(notebook.table(pd.DataFrame({EVIL[0]: [EVIL[1]]})) + notebook.sentences(EVIL))
    shown.append(
        notebook.facts(dict(zip(EVIL, EVIL, strict=True))) + notebook.rows(EVIL, [EVIL]) + notebook.heading(EVIL[0])
    )
    with tab(browser) as page:
        harmless(page, tmp_path / "notebook.html", "\n".join(map(str, shown)))


def _about() -> dict[str, object]:
    return dict(alignment.record(bundle.DATA / "scans" / "demo-qwen3-alignment"))


def _aligned() -> pd.DataFrame:
    return alignment.table(bundle.DATA / "scans" / "demo-qwen3-alignment")
