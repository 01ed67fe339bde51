"""`internal-policy lens`: what each layer would say next, printed."""

import io
import json
import shutil
import sys

import pytest
from conftest import one_sentence

import internal_policy as ip
from internal_policy.__main__ import main
from internal_policy.look import lens

TEXT = "Mia has 47 apples"


@pytest.fixture(autouse=True)
def _wide(here, monkeypatch):
    monkeypatch.setattr("internal_policy.cli.lens.out.width", 100)


def test_it_prints_a_row_a_layer_and_the_sentence(folder, capsys):
    assert main(["lens", TEXT, "--model", str(folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    layers = [line[0] for line in lines if line[0].isdigit() or line[0] == "model"]
    assert layers == ["0", "1", "2", "model"]
    assert lines[-1][-4:] == ["(layers", "0", "to", "2)."]


def test_it_writes_nothing(folder, here):
    assert main(["lens", TEXT, "--model", str(folder)]) == 0
    assert not list(here.iterdir())
    assert not (here.parent / "cache").exists()


def test_json_has_the_rows_of_python(folder, capsys):
    assert main(["lens", TEXT, "--model", str(folder), "--top-k", "2", "--all-positions", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["texts"]
    rows = ip.lens(*ip.load(str(folder)), TEXT, top_k=2, all_positions=True)
    assert found["rows"] == json.loads(json.dumps(rows.to_dict("records")))
    assert found["text"] == TEXT


def test_several_texts_are_read_one_after_the_other(folder, capsys):
    assert main(["lens", TEXT, "The answer is", "--model", str(folder), "--json"]) == 0
    assert [text["text"] for text in json.loads(capsys.readouterr().out)["texts"]] == [TEXT, "The answer is"]


def test_a_dash_reads_stdin_without_its_last_newline(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{TEXT}\r\n".encode())))
    assert main(["lens", "-", "--model", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"][0]["text"] == TEXT


def test_a_question_goes_through_the_chat_template_and_says_how(folder, capsys):
    assert main(["lens", TEXT, "--model", str(folder), "--chat", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["texts"][0]["rows"][0]["read"] == "\n"
    assert r"Read through the chat template as: <|im_start|>user\nMia has 47 apples<|im_end|>" in printed.err


def test_a_target_of_several_tokens_is_read_by_its_first(folder, capsys):
    assert main(["lens", TEXT, "--model", str(folder), "--target", " apples+", "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "' apples+' is 2 tokens. The first, ' apples', is the target.\n"
    assert json.loads(printed.out)["texts"][0]["rows"][0]["target"] == " apples"


def test_the_grid_has_a_column_a_token(folder, capsys):
    assert main(["lens", TEXT, "--model", str(folder), "--all-positions"]) == 0
    printed = capsys.readouterr().out
    assert "·apples" in printed
    assert "the last" not in printed


@pytest.mark.parametrize("width", [24, 40, 57, 80])
def test_the_grid_leaves_out_the_first_tokens_where_the_terminal_is_narrow(folder, capsys, monkeypatch, width):
    monkeypatch.setattr("internal_policy.cli.lens.out.width", width)
    assert main(["lens", TEXT * 8, "--model", str(folder), "--all-positions"]) == 0
    printed = capsys.readouterr().out
    grid = [line for line in printed.splitlines() if line.strip().startswith(("layer ", "0 ", "1 ", "2 ", "model "))]
    assert len(grid) == 5
    assert max(map(len, grid)) <= width
    assert "the last" in printed


def test_markup_in_a_text_is_printed_as_it_is(folder, capsys):
    assert main(["lens", "[red]:smile:[/red]\x1b[2J", "--model", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert r"[red]:smile:[/red]\x1b[2J" in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([""], "The text has no tokens"),
        ([TEXT, "--target", ""], "The target '' has no tokens"),
        ([TEXT, "--site", "resid"], "There is no site 'resid'"),
        ([TEXT, "--top-k", "0"], "--top-k is 0. Use 1 or more."),
        (["-", "-"], "TEXT - is given twice"),
        ([TEXT, "--top-k", "2", "--all-positions"], "--all-positions prints one token per cell"),
        ([TEXT * 10_000], "but the model reads at most"),
    ],
)
def test_bad_input_is_refused_before_the_model_loads(folder, here, capsys, monkeypatch, arguments, sentence):
    monkeypatch.setattr("internal_policy.models.loading.load_model", lambda *_, **__: pytest.fail("loaded"))
    assert main(["lens", *arguments, "--model", str(folder)]) == 2
    one_sentence(capsys, sentence, here)


def test_text_on_stdin_that_is_not_utf_8_is_refused(folder, here, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Zürich".encode("latin-1"))))
    assert main(["lens", "-", "--model", str(folder)]) == 2
    one_sentence(capsys, "stdin, line 1 isn't UTF-8", here)


def test_a_model_without_a_chat_template_is_refused_with_chat(folder, here, capsys, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("chat_template.jinja"))
    assert main(["lens", TEXT, "--chat", "--model", str(bare)]) == 2
    one_sentence(capsys, "has no chat template. Leave out --chat.", here)


@pytest.mark.parametrize("width", [20, 80, 200])
def test_no_token_is_cut_whatever_the_width(folder, capsys, monkeypatch, width):
    monkeypatch.setattr("internal_policy.cli.lens.out.width", width)
    assert main(["lens", TEXT, "--model", str(folder), "--top-k", "9"]) == 0
    printed = capsys.readouterr().out
    assert "…" not in printed
    for tokens in ip.lens(*ip.load(str(folder)), TEXT, top_k=9)["top_tokens"]:
        assert all(lens.quote(token) in printed for token in tokens)


def test_tokens_after_the_top_one_stay_within_the_terminal(folder, capsys, monkeypatch):
    monkeypatch.setattr("internal_policy.cli.lens.out.width", 100)
    assert main(["lens", TEXT, "--model", str(folder), "--top-k", "9"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
