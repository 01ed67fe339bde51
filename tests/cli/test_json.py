"""`--json`: stdout holds one document, also if a command fails."""

import json

import pytest

from internal_policy.__main__ import main
from internal_policy.cli import console

pytestmark = pytest.mark.usefixtures("here")


def document(capsys, *words: str, code: int = 0):
    """The one document that a command prints."""
    assert main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "nothing"], "There is no scan, ablation, alignment, training run or study 'nothing'"),
        (["show", "demo-qwen3", "--readout", "tuned"], "was not measured with the readout 'tuned'"),
        (["plot", "demo-qwen3", "flow", "-o", "flow.txt"], "flow.txt"),
        (["scan", "--layers"], "--layers"),
        (["shwo", "demo-qwen3"], "shwo"),
    ],
)
def test_a_failing_command_prints_its_error_as_a_document_too(words, said, capsys):
    assert main([*words, "--json"]) == 2
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert error["exit_code"] == 2
    assert said in error["message"]
    assert printed.err == f"error: {error['message']}\n"


def test_an_interrupted_command_prints_a_document_too(capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("internal_policy.cli.main._run", interrupted)
    error = document(capsys, "scan", "--seed", "5", code=130)["error"]
    assert error["exit_code"] == 130
    assert error["message"].startswith(
        "Interrupted. Finished work is kept. Continue with: internal-policy scan --seed 5"
    )


def test_an_error_stays_off_stdout_without_json(capsys):
    assert main(["show", "nothing"]) == 2
    assert capsys.readouterr().out == ""


def test_a_failing_command_prints_no_second_document(capsys, monkeypatch):
    monkeypatch.setattr("internal_policy.look.export.write", lambda *_: (_ for _ in ()).throw(OSError(13, "denied")))
    words = ("compare", "demo-qwen3", "--against-readout", "norm", "-o", "figure.svg")
    assert "denied" in document(capsys, *words, code=1)["error"]["message"]


def test_control_characters_of_an_error_are_escaped(capsys):
    assert main(["show", "\x1b[2J", "--json"]) == 2
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\x1b[2J" in json.loads(printed)["error"]["message"]
    assert console.visible_json(printed) == printed


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["report", "demo-qwen3", "-o", "report.html"], {}),
        (["export", "demo-qwen3", "-o", "layers.csv"], {"table": "layers", "format": "csv", "rows": 2280}),
    ],
)
def test_a_command_that_writes_a_file_says_which(words, facts, here, capsys, monkeypatch):
    monkeypatch.setattr("internal_policy.look.report.report", lambda views: f"{len(views)} scan")  # drawing takes long
    found = document(capsys, *words)
    assert found["bytes"] == (here / words[-1]).stat().st_size
    assert found["output"] == words[-1]
    assert found.items() >= facts.items()


def test_nothing_removed_is_an_empty_list(capsys, monkeypatch, asked):
    assert main([*asked, "-o", "mine"]) == 0
    capsys.readouterr()
    monkeypatch.setattr("internal_policy.cli.rm._agreed", lambda _: False)
    assert document(capsys, "rm", "mine", code=1) == []
