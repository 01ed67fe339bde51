"""The commands that draw: plot, report, dashboard."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import get_args

import pytest
from conftest import one_sentence

from internal_policy import bundle, files
from internal_policy.__main__ import main
from internal_policy.cli.plot import Figure, Measure
from internal_policy.errors import InputError
from internal_policy.look import alignment_catalogue, catalogue, run_catalogue, theme, view
from internal_policy.scans import positions, records, store

FIGURES = [
    "flow",
    "change",
    "norm-control",
    "residual",
    "convergence",
    "readouts",
    "distribution",
    "tokens",
    "cell",
    "ablation",
]
DEMO = bundle.DATA / "scans" / "demo-qwen3"


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path / "cache"))


def test_every_figure_has_its_name_on_the_command_line():
    named = {*catalogue.FIGURES, *alignment_catalogue.FIGURES, *run_catalogue.FIGURES}
    assert named == {*get_args(Figure)}


def test_an_alignment_is_drawn_by_its_name_or_folder(tmp_path, capsys):
    path = tmp_path / "gain.html"
    for name in ("demo-qwen3-alignment", str(bundle.DATA / "scans" / "demo-qwen3-alignment")):
        assert main(["plot", name, "alignment", "--site", "resid_post", "-o", str(path), "--force"]) == 0
        assert "96 prompts x 8 responses" in path.read_text()
    for words, message in (
        (["demo-qwen3-alignment", "alignment", "--site", "mlp_out"], "has no mlp_out, but resid_post"),
        (["demo-qwen3-alignment", "alignment", "--readout", "norm"], "--readout has no effect on alignment"),
        (["experiments/bupo", "alignment"], "There is no alignment 'experiments/bupo'"),
    ):
        assert main(["plot", *words, "-o", str(tmp_path / "x.html")]) == 2
        assert message in capsys.readouterr().err.replace("\n", " ")


def test_figures_of_training_runs_are_drawn_and_compared(tmp_path, capsys):
    path = tmp_path / "runs.html"
    arguments = ["training", "--against", "experiments/grpo", "--smooth", "10", "-o", str(path)]
    assert main(["plot", "experiments/bupo", *arguments]) == 0
    assert "mean of the last 10 steps" in path.read_text()
    assert main(["plot", "demo-qwen3", "training", "-o", str(tmp_path / "x.html")]) == 2
    assert "There is no training run or study 'demo-qwen3'" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("figure", FIGURES)
def test_each_figure_of_a_scan_is_written_as_a_page_that_needs_no_network(figure, tmp_path, capsys):
    path = tmp_path / "figure.html"
    assert main(["plot", "demo-qwen3", figure, "-o", str(path)]) == 0
    page = path.read_text()
    assert "Wrote" in capsys.readouterr().err
    assert ("mountLensGrid" if figure == "tokens" else "plotly.js v") in page
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']?http", page)


def test_scans_are_compared(tmp_path):
    path = tmp_path / "compare.html"
    assert main(["plot", "demo-qwen3", "compare", "--against", "demo-llama", "-o", str(path)]) == 0
    assert "demo-llama" in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo-qwen3", "flow", "-o", "x.gif"], "Use .html, .png, .svg or .pdf"),
        (["demo-qwen3", "flow", "-o", "nowhere/x.html"], "its folder doesn't exist"),
        (["nothing", "flow", "-o", "x.html"], "There is no scan 'nothing'"),
        (
            ["demo-qwen3", "flow", "--readout", "both", "-o", "x.html"],
            "There is no readout 'both'. Choose from raw, norm.",
        ),
        (
            ["demo-qwen3", "readouts", "--site", "attn", "-o", "x.html"],
            "There is no site 'attn'. Choose one of resid_pre",
        ),
        (["demo-qwen3", "flow", "--positions", "9-3", "-o", "x.html"], "--positions is '9-3'"),
        (
            ["demo-qwen3", "flow", "--positions", "9000-", "-o", "x.html"],
            "no response tokens among positions from 9000",
        ),
        (["demo-qwen3", "compare", "-o", "x.html"], "two to four scans, not 1"),
        (["demo-qwen3", "flow", "--against", "demo-llama", "-o", "x.html"], "--against has no effect on flow"),
        (["demo-qwen3", "tokens", "--rollout", "99", "-o", "x.html"], "no rollout 99. Choose one from 0 to 19."),
        (["demo-qwen3", "tokens", "--site", "attention", "-o", "x.html"], "There is no site 'attention'"),
        (["demo-qwen3", "distribution", "--measure", "change", "-o", "x.html"], "Can't draw distribution by 'change'"),
        (
            ["demo-qwen3", "tokens", "--measure", "cosine", "-o", "x.html"],
            "no cosine at resid_post. Choose one of",
        ),
        (
            ["demo-qwen3", "cell", "--layer", "9", "-o", "x.html"],
            "There is no layer 9. Choose one from 0 to 7",
        ),
        (["demo-qwen3", "norm-control", "--readout", "norm", "-o", "x.html"], "norm"),
    ],
)
def test_an_invalid_figure_is_refused_in_one_sentence(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plot", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error.replace("\n", " ")
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.glob("x.*"))


GIVEN = {
    "average": "rollouts", "site": "resid_post", "measure": "entropy", "rollout": "0", "position": "0", "layer": "0",
    "readout": "raw", "outcome": "correct", "positions": "0-9", "against": "demo-llama",
}  # fmt: skip
"""Option of a figure -> a value, where possible the one that it has by default."""


@pytest.mark.parametrize("figure", catalogue.FIGURES)
def test_an_option_that_a_figure_doesnt_use_is_refused_even_at_its_default(figure, here, capsys):
    refused = set()
    for option, value in GIVEN.items():
        code = main(["plot", "no-scan", figure, f"--{option}", value, "-o", "x.html"])
        error = capsys.readouterr().err
        assert code == 2
        refused |= {option} if re.match(f"error: --{option} (only applies to|has no effect on) ", error) else set()
    of_the_grid = {"against"} if figure == "tokens" else set()
    assert refused == {*GIVEN} - {*catalogue.USES[figure]} - of_the_grid


@pytest.mark.parametrize("command", [["plot", "demo-qwen3", "compare", "--against"], ["report", "demo-qwen3"]])
def test_the_same_scan_given_twice_is_refused(command, here, capsys):
    assert main([*command, str(DEMO), "-o", "x.html"]) == 2
    assert f"{DEMO} is given twice. Name each scan once." in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    "words",
    [["evaluate", "--problems"], ["evaluate", "--problems", "--limit", "2"], ["plot", "a", "compare", "--against"]],
)
def test_an_option_without_its_values_is_refused(words, here, capsys):
    assert main(words) == 2
    assert f"--{'against' if words[0] == 'plot' else 'problems'} needs a value." in capsys.readouterr().err


def test_a_window_of_positions_is_parsed():
    assert [positions.parse(text) for text in (None, "0-99", "100-", "7")] == [(0, None), (0, 99), (100, None), (7, 7)]
    for wrong in ("", "-3", "a-b", "5-x"):
        with pytest.raises(InputError, match="Write a range such as 0-99"):
            positions.parse(wrong)


def test_without_a_browser_an_image_is_refused_with_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-chromium"))
    assert main(["plot", "demo-qwen3", "flow", "-o", str(tmp_path / "x.png")]) == 2
    assert "apt install chromium" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_a_report_holds_every_figure_the_table_and_the_provenance_in_one_offline_file(tmp_path, capsys):
    path = tmp_path / "report.html"
    assert main(["report", "demo-qwen3", "demo-llama", "-o", str(path)]) == 0
    assert "MB" in capsys.readouterr().err
    page = path.read_text()
    assert page.count('class="plotly-graph-div"') == 2 * 10 + 2
    assert page.count('<div class="lens-grid"></div>') == 2
    assert page.count("function mountLensGrid") == 1
    assert page.count("plotly.js v") == 1
    assert "Not drawn" not in page
    assert "internal-policy scan --model demo-llama" in page
    assert store.record(DEMO)["asked"]["identity"] in page
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']?http", page)
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_a_report_says_why_a_figure_is_missing(tmp_path):
    path = tmp_path / "report.html"
    assert main(["report", "demo-qwen3", "--readout", "norm", "-o", str(path)]) == 0
    page = path.read_text()
    assert page.count("Not drawn") == 1
    assert page.count('class="plotly-graph-div"') == 9


def test_a_figure_in_a_report_has_one_title(tmp_path):
    path = tmp_path / "report.html"
    assert main(["report", "demo-qwen3", "-o", str(path)]) == 0
    page = path.read_text()
    assert page.count("Entropy flow (Fig. 2 of the paper)") == 1
    assert page.count("<figcaption>") == page.count('class="plotly-graph-div"')


def test_a_report_shows_the_findings_and_every_readout(tmp_path):
    path = tmp_path / "report.html"
    assert main(["report", "smollm2-135m", "-o", str(path)]) == 0
    page = path.read_text()
    assert "Raw hidden states are saturated" in page
    assert "KL from the model with each readout" in page
    assert '"chosen": {"readout": "norm"}' in page
    assert "FFN raises entropy significantly, so there is no target layer." in page
    assert "A dash means that no layer" in page


def test_texts_of_a_scan_are_escaped_in_a_report(tmp_path):
    folder = shutil.copytree(DEMO, tmp_path / "scan")
    record = records.read(folder / store.RECORD)
    files.write_json(folder / store.RECORD, {**record, "model": "<script>alert(1)</script>", "device": "<b>cpu</b>"})
    path = tmp_path / "report.html"
    assert main(["report", str(folder), "-o", str(path)]) == 0
    page = path.read_text()
    assert "<script>alert(1)" not in page
    assert "<b>cpu" not in page
    assert "&lt;b&gt;cpu" in page


def test_a_report_of_nothing_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 2
    assert "No scan is named" in capsys.readouterr().err
    assert main(["report", "demo-qwen3", "-o", "report.pdf"]) == 2
    assert "Use a name that ends in .html." in capsys.readouterr().err


def test_a_dashboard_of_an_unknown_scan_is_refused(capsys):
    assert main(["dashboard", "--scan", "nothing"]) == 2
    assert "There is no scan 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bupo", str(bundle.DATA / "experiments" / "bupo")])
def test_a_dashboard_of_a_training_run_says_where_to_open_it(name, capsys):
    assert main(["dashboard", "--scan", name]) == 2
    assert "is a training run, not a scan. Leave out --scan, and choose the run on the" in capsys.readouterr().err


def test_drawing_without_plotly_says_what_to_install(tmp_path):
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name in ('plotly', 'streamlit') else find(name, *rest)\n"
        "from internal_policy.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    for arguments in (["plot", "demo-qwen3", "flow", "-o", "x.html"], ["dashboard"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 2
        assert "pip install 'internal-policy[app]'" in done.stderr


@contextmanager
def dashboard(folder: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """A dashboard that answers, and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "internal_policy", "dashboard", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_heed_signals)
    try:
        while not answers(port):
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield process, port
    finally:
        process.kill()
        process.wait()


def _heed_signals() -> None:
    """Undo what nohup, or a shell that starts the tests in the background, has told this process to ignore."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


ENDED = {
    "SIGTERM": (0, -signal.SIGTERM),  # as soon as it listens, or once it also handles the signal
    "SIGINT": (0,),
    "SIGHUP": (-signal.SIGHUP,),
    "SIGKILL": (-signal.SIGKILL,),
}
"""Exit codes that each signal may end the dashboard with."""


@pytest.mark.parametrize("name", ENDED)
def test_ending_the_dashboard_ends_its_server(name, tmp_path):
    with dashboard(tmp_path) as (process, port):
        process.send_signal(getattr(signal, name))
        process.wait(60)
        assert not answers(port)
        assert process.returncode in ENDED[name]
        assert (tmp_path / "log").read_text().count(f"http://127.0.0.1:{port}") == 1


def test_a_port_in_use_is_refused_with_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "internal_policy", "dashboard", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"error: The dashboard didn't start on port {port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("measure", ["tokens", "topk_ids", "rollout"])
@pytest.mark.parametrize("figure", ["tokens", "distribution", "readouts", "compare"])
def test_a_measure_that_no_figure_draws_is_wrong_usage(figure, measure, here, capsys):
    assert main(["plot", "demo-qwen3", figure, "--measure", measure, "-o", "x.html"]) == 2
    one_sentence(capsys, f"--measure is '{measure}'. Choose one of entropy, change, logprob", here)
    with pytest.raises(InputError, match=f"Can't draw {figure} by '{measure}'"):
        catalogue.draw(figure, [view.View(DEMO)], catalogue.Choice(measure=measure))


def test_the_choices_of_plot_measure_match_the_figures():
    while_training = {"change_direction", "change_norm"}
    assert {*get_args(Measure)} == {"probability", *while_training, *chain(*catalogue.CHOICES.values())}
    assert {*chain(*catalogue.CHOICES.values())} <= {*theme.MEASURES}


@pytest.mark.parametrize("port", ["0", "-1", "70000"])
def test_the_dashboard_refuses_a_port_that_does_not_exist(port, capsys):
    assert main(["dashboard", "--port", port]) == 2
    assert f"--port is {port}. Use a number from 1 to 65535." in capsys.readouterr().err


def test_tokens_in_print_are_a_heatmap(tmp_path):
    path = tmp_path / "figure.html"
    assert main(["plot", "demo-qwen3", "tokens", "--style", "paper", "-o", str(path)]) == 0
    assert "plotly.js v" in path.read_text()


@pytest.mark.parametrize(("options", "readout"), [([], "norm"), (["--readout", "raw"], "raw")])
def test_a_grid_opens_on_the_norm_readout_unless_told_otherwise(options, readout, tmp_path):
    path = tmp_path / "grid.html"
    assert main(["plot", "demo-qwen3", "tokens", "--rollout", "1", *options, "-o", str(path)]) == 0
    assert f'"chosen": {{"readout": "{readout}"' in path.read_text()


def test_the_tokens_of_two_scans_are_compared_cell_by_cell(copied, tmp_path, capsys):
    path = tmp_path / "cells.html"
    assert main(["plot", "demo-qwen3", "tokens", "--against", str(copied), "--rollout", "1", "-o", str(path)]) == 0
    assert path.read_text().count('"rollout": 1') == 2
    assert '"why": ""' in path.read_text()
    assert main(["plot", "demo-qwen3", "tokens", "--against", "demo-llama", "-o", str(tmp_path / "x.html")]) == 0
    assert "A and B have different tokens" in capsys.readouterr().err


def test_tokens_are_compared_with_one_other_scan(copied, here, capsys):
    assert main(["plot", "demo-qwen3", "tokens", "--against", "demo-llama", str(copied), "-o", "x.html"]) == 2
    assert "tokens compares two scans, but --against names 2. Name one." in capsys.readouterr().err.replace("\n", " ")
