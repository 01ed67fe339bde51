"""Names and texts that are markup are shown as text in a notebook, and request nothing."""

import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browsing import tab
from playwright.sync_api import Page

from internal_policy import bundle, files
from internal_policy.look import alignment, notebook, runs
from internal_policy.look.aligned import Alignment
from internal_policy.look.run import Run
from internal_policy.look.scan import of as scan_of
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


def test_nothing_of_a_hostile_scan_runs_in_a_notebook(hostile, browser, tmp_path):
    found = alignment.AlignmentTable({**_about(), "model": EVIL[0]}, _aligned())
    run = Run(runs.find("experiments/bupo"), EVIL[6])
    shown = [scan_of(hostile)._repr_html_(), run._repr_html_(), Alignment(found.about, found.table)._repr_html_()]
    shown.append(notebook.table(pd.DataFrame({EVIL[0]: [EVIL[1]]})) + notebook.sentences(EVIL))
    with tab(browser) as page:
        harmless(page, tmp_path / "notebook.html", "\n".join(map(str, shown)))


def _about() -> dict[str, object]:
    return dict(alignment.record(bundle.DATA / "scans" / "demo-qwen3-alignment"))


def _aligned() -> pd.DataFrame:
    return alignment.table(bundle.DATA / "scans" / "demo-qwen3-alignment")
