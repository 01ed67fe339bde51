"""In a notebook, work shows a bar that goes away; elsewhere it shows nothing."""

import importlib.util
import sys
from types import SimpleNamespace

import IPython.display
import nbformat
import pytest
from nbclient import NotebookClient
from transformers.utils import logging

import internal_policy as ip
from internal_policy.jupyter import progress

CELLS = (
    "import internal_policy as ip\nmodel, tokenizer = ip.load('demo-qwen3')",
    "rollouts = ip.generate(model, tokenizer, ['What is 47 + 385?'], max_new_tokens=4)",
    "scan = ip.scan(model, tokenizer, rollouts, layers=[0])",
)


@pytest.fixture
def shown(monkeypatch) -> list[str]:
    """What a notebook would show of a bar, one text for each drawing."""
    texts: list[str] = []

    def display(drawn: object, display_id: bool) -> SimpleNamespace:
        assert display_id
        texts.append(repr(drawn))
        return SimpleNamespace(update=lambda new: texts.append(repr(new)))

    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(progress, "OFTEN", 0.0)
    return texts


def test_outside_of_a_notebook_nothing_is_shown(capsys):
    assert not progress.in_notebook()
    with progress.bar("Scanning", 2) as advance:
        advance(1)
    assert capsys.readouterr() == ("", "")


def test_a_bar_counts_and_then_goes_away(shown):
    with progress.bar("Scanning", 16) as advance:
        advance(8)
        advance(8)
    first, half, whole, last = shown
    assert first == "Scanning: 0 of 16 rollouts"
    assert half.startswith("Scanning: 8 of 16 rollouts, 0 s left")
    assert whole.startswith("Scanning: 16 of 16 rollouts")
    assert last == ""


def test_a_bar_goes_away_when_the_work_fails(shown):
    with pytest.raises(ValueError, match="no"), progress.bar("Scanning", 16):
        raise ValueError("no")
    assert shown[-1] == ""


@pytest.mark.parametrize(("seconds", "words"), [(40.0, "40 s"), (700.0, "12 min"), (9000.0, "2.5 h")])
def test_the_time_left_is_told_in_words(seconds, words):
    assert repr(progress.Bar("Scanning", 1, 2, "rollouts", seconds)).endswith(f", {words} left")


def test_a_bar_shows_a_title_as_text():
    html = progress.Bar("<b>", 1, 4, "rollouts", 1.0)._repr_html_()
    assert '<progress value="1" max="4"' in html
    assert "&lt;b&gt;" in html


def test_scanning_counts_every_rollout(shown):
    model, tokenizer = ip.load("demo-qwen3")
    ip.scan(model, tokenizer, ["47 + 385"] * 3, layers=[0], readouts=["raw"], measures=["entropy"], batch_size=2)
    words = [text.partition(",")[0] for text in shown]
    assert words == ["Scanning: 0 of 3 rollouts", "Scanning: 2 of 3 rollouts", "Scanning: 3 of 3 rollouts", ""]


@pytest.mark.parametrize(("has_widgets", "is_shown"), [(True, True), (False, False)])
def test_weights_load_without_a_bar_of_text(has_widgets, is_shown, monkeypatch):
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(progress, "find_spec", lambda _: has_widgets or None)
    before = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    with progress.without_text_bars():
        assert logging.is_progress_bar_enabled() == is_shown
    assert logging.is_progress_bar_enabled()
    if not before:
        logging.disable_progress_bar()


def test_a_kernel_is_a_notebook_and_ipython_is_not(monkeypatch):
    for shell, is_notebook in ((SimpleNamespace(kernel=1), True), (SimpleNamespace(), False), (None, False)):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert progress.in_notebook() == is_notebook


@pytest.mark.slow
def test_a_kernel_leaves_no_text_below_cells(tmp_path, monkeypatch):
    for name in ("INTERNAL_POLICY_CACHE", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute(cwd=str(tmp_path))
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    hidden = "" if importlib.util.find_spec("ipywidgets") else [output["data"]["text/html"] for output in outputs]
    assert set(hidden) <= {""}
