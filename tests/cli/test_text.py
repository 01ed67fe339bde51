"""Texts to measure as they are, from the command line, stdin and files."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
from conftest import one_sentence

from internal_policy.__main__ import main
from internal_policy.errors import InputError
from internal_policy.look import comparison, summary, view
from internal_policy.models import loading
from internal_policy.scans import store

pytestmark = pytest.mark.usefixtures("here")

PARIS = "The capital of France is Paris"


@pytest.fixture
def scanned(folder) -> list[str]:
    return ["scan", "--model", str(folder), "--output", "mine"]


@pytest.fixture
def weightless(monkeypatch) -> None:
    """No model can be loaded."""
    monkeypatch.setattr(loading, "load_model", None)


def stdin(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def rollouts(here) -> list[tuple[list[int], list[int]]]:
    """The prompt and the response of each text in the scan, as token ids."""
    frame = store.read(here / "mine", "rollouts", ["prompt_ids", "response_ids"])
    return [(list(prompt), list(ids)) for prompt, ids in zip(frame["prompt_ids"], frame["response_ids"], strict=True)]


def test_every_token_of_a_text_after_the_first_is_measured(scanned, here, tokenizer):
    assert main([*scanned, "--text", PARIS]) == 0
    ids = tokenizer(PARIS, add_special_tokens=False)["input_ids"]
    ((prompt, response),) = rollouts(here)
    assert (prompt + response)[-len(ids) :] == ids
    assert len(prompt) == 1
    assert len(store.read(here / "mine", "policies", ["position"])["position"].unique()) == len(response)


def test_the_option_is_repeated_for_several_texts(scanned, here):
    assert main([*scanned, "--text", PARIS, "--text", "-1 is below 0"]) == 0
    assert len(rollouts(here)) == 2
    assert store.record(here / "mine")["asked"]["text"] == [PARIS, "-1 is below 0"]


def test_a_second_text_without_the_option_is_refused(scanned, capsys):
    assert main([*scanned, "--text", PARIS, "and more"]) == 2
    assert "scan can't use 'and more'" in capsys.readouterr().err


def test_a_dash_reads_the_text_from_stdin(scanned, here, monkeypatch):
    stdin(monkeypatch, f"\ufeff{PARIS}\r\nor Lyon\r\n".encode())
    assert main([*scanned, "--text", "-"]) == 0
    assert store.record(here / "mine")["asked"]["text"] == [f"{PARIS}\nor Lyon"]


def test_another_text_is_another_scan(folder, capsys):
    found = []
    for text in (PARIS, PARIS, "Other"):
        assert main(["scan", "--model", str(folder), "--text", text, "--dry-run", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["scan"])
    assert found[0] == found[1] != found[2]


def test_the_same_text_is_answered_from_the_cache(folder, capsys):
    for cached in (False, True):
        assert main(["scan", "--model", str(folder), "--text", PARIS, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["cached"] is cached


def test_all_of_a_txt_file_is_one_text_without_the_line_break_at_its_end(scanned, here):
    (here / "a.txt").write_text(f"{PARIS}\n\nLyon\n")
    assert main([*scanned, "--rollouts", "a.txt"]) == 0
    from_file = rollouts(here)
    assert main([*scanned[:-1], "other", "--text", f"{PARIS}\n\nLyon"]) == 0
    assert from_file == rollouts(here)
    assert len(from_file) == 1


def test_each_line_of_a_txt_file_is_a_problem(scanned, here):
    (here / "a.txt").write_text("1 + 2?\r\n\n  \n2 + 3?\n")
    assert main([*scanned, "--problems", "a.txt", "--max-new-tokens", "3"]) == 0
    frame = store.read(here / "mine", "rollouts", ["problem", "answer", "reward"])
    assert frame["problem"].tolist() == ["1 + 2?", "2 + 3?"]
    assert frame["reward"].isna().all()


def test_a_scan_of_texts_shows_them_and_nothing_about_sampling(scanned, here, capsys):
    assert main([*scanned, *(f"--text={PARIS} {n}" for n in range(5))]) == 0
    assert "cut at the length limit" not in capsys.readouterr().out
    shown = summary.provenance(view.View(here / "mine"))
    assert shown["texts"] == f"'{PARIS} 0', '{PARIS} 1', '{PARIS} 2' and 2 more"
    assert shown["sampling"] == "none, the responses were given"


def test_scans_of_two_texts_differ_in_their_problems(scanned, here):
    for name, text in (("one", PARIS), ("two", "The capital of Italy is Rome")):
        assert main([*scanned[:-1], name, "--text", text]) == 0
    records = [store.record(here / name) for name in ("one", "two")]
    assert any("the problems" in difference for difference in comparison.differences(records))


BAD = {
    "empty": (["--text", ""], "--text: The text is empty"),
    "one token": (["--text", PARIS, "--text", "T"], "--text 2: The text 'T' has fewer than two tokens"),
    "too long": (["--text", "T" * 5000], "Rollout 0 has 5000 tokens, but the model reads at most 512. Shorten or"),
    "with problems": (["--text", PARIS, "--problems", "a.txt"], "Both --problems and --text are given"),
    "with rollouts": (["--text", PARIS, "--rollouts", "a.txt"], "Both --rollouts and --text are given"),
    "samples": (["--text", PARIS, "--samples", "2"], "--samples has no effect with --text. Leave it out."),
    "template": (["--text", PARIS, "--chat-template", "none"], "--chat-template has no effect with --text."),
    "temperature": (["--rollouts", "a.txt", "--temperature", "0"], "--temperature has no effect with --rollouts."),
    "column": (["--rollouts", "a.txt", "--answer-column", "b"], "--answer-column has no effect with --rollouts."),
    "twice stdin": (["--text", "-", "--text", "-"], "--text - is given twice"),
    "half a character": (["--text", "a\udcff b"], "--text isn't UTF-8. Save it as UTF-8 in a file"),
    "a folder": (["--rollouts", "."], ". has no file with responses among its 0 files"),
    "a folder of problems": (["--problems", "."], ". is a folder. Name a file in it"),
    "Latin-1": (["--rollouts", "latin.txt"], "latin.txt, line 2 isn't UTF-8 (invalid continuation byte). Save it"),
    "an empty file": (["--rollouts", "empty.txt"], "empty.txt: The text is empty"),
    "no problems": (["--problems", "empty.txt"], "empty.txt is empty"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.usefixtures("weightless")
def test_bad_text_is_refused_in_a_sentence_before_the_model_is_loaded(case, folder, here, capsys):
    words, sentence = BAD[case]
    (here / "latin.txt").write_bytes("a\nnaïve café".encode("latin-1"))
    (here / "empty.txt").write_text("\n")
    (here / "a.txt").write_text(PARIS)
    assert main(["scan", "--model", str(folder), *words]) == 2
    for path in here.iterdir():
        path.unlink()
    one_sentence(capsys, sentence, here)


def test_text_on_stdin_that_is_not_utf8_is_refused(scanned, here, monkeypatch, capsys):
    stdin(monkeypatch, b"caf\xe9 au lait")
    assert main([*scanned, "--text", "-"]) == 2
    one_sentence(capsys, "stdin, line 1 isn't UTF-8", here)


@pytest.mark.parametrize("option", ["--samples", "--max-new-tokens", "--batch-size"])
def test_fit_lens_refuses_sampling_options_that_have_no_effect(option, folder, here, capsys):
    assert main(["fit-lens", "--model", str(folder), "--rollouts", "a.jsonl", option, "3"]) == 2
    one_sentence(capsys, f"{option} has no effect with --rollouts. Leave it out.", here)


READ = r"Read through the chat template as: <|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"


def asking(here) -> None:
    (here / "r.jsonl").write_text(2 * (json.dumps({"prompt": "1 + 1?", "response": "2"}) + "\n"))
    (here / "p.jsonl").write_text(json.dumps({"problem": "1 + 1?", "answer": "2"}))


@pytest.mark.parametrize(
    "words",
    [
        ["scan", "--rollouts", "r.jsonl"],
        ["scan", "--problems", "p.jsonl", "--max-new-tokens", "3"],
        ["generate", "--problems", "p.jsonl", "--max-new-tokens", "3"],
        ["evaluate", "--problems", "p.jsonl", "p2.jsonl", "--max-new-tokens", "3"],
        ["fit-lens", "--problems", "p.jsonl", "--max-new-tokens", "3"],
    ],
    ids=" ".join,
)
def test_how_prompts_are_read_is_said_once_before_the_model_loads(words, folder, here, capsys, monkeypatch):
    def refused(*_, **__):
        raise InputError("Stop here.")

    asking(here)
    (here / "p2.jsonl").write_text((here / "p.jsonl").read_text())
    monkeypatch.setattr(loading, "load_model", refused)
    assert main([words[0], "--model", str(folder), *words[1:]]) == 2
    said = capsys.readouterr().err
    assert said.splitlines() == [READ, "For plain text, add --chat-template none.", "error: Stop here."]


def test_how_prompts_are_read_is_not_on_stdout_with_json(scanned, here, capsys):
    asking(here)
    assert main([*scanned, "--rollouts", "r.jsonl", "--json"]) == 0
    printed = capsys.readouterr()
    assert READ in printed.err
    assert json.loads(printed.out)["rollouts"] == 2


def test_plain_text_is_said_to_be_plain_text(scanned, here, capsys):
    asking(here)
    assert main([*scanned, "--rollouts", "r.jsonl", "--chat-template", "none", "--dry-run"]) == 0
    assert capsys.readouterr().err.strip() == "Read as plain text: 1 + 1?"


@pytest.mark.parametrize("row", [{"text": PARIS}, {"prompt_ids": [3, 4], "response_ids": [5]}], ids=str)
def test_nothing_is_said_of_texts_and_token_ids_which_are_read_as_they_are(row, scanned, here, capsys):
    (here / "r.jsonl").write_text(json.dumps(row))
    assert main([*scanned, "--rollouts", "r.jsonl", "--dry-run"]) == 0
    assert "Read" not in capsys.readouterr().err


def forecast(capsys, *words: str) -> dict:
    assert main(["scan", *words, "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_dry_run_estimates_the_time_of_given_texts(folder, capsys):
    found = forecast(capsys, "--model", str(folder), "--text", PARIS)
    assert found["seconds"] > 0
    assert "seconds_at_most" not in found


def test_a_dry_run_says_at_most_where_responses_are_sampled_first(folder, here, capsys):
    asking(here)
    words = ["--model", str(folder), "--problems", "p.jsonl", "--max-new-tokens", "20"]
    assert forecast(capsys, *words)["seconds_at_most"] > 0
    assert main(["scan", *words, "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Estimated time: at most 1 s on this machine, after loading the model; less if responses end" in printed


def test_longer_responses_take_longer(folder, here, capsys, monkeypatch):
    from internal_policy.scans import estimate

    monkeypatch.setattr(estimate, "measured", lambda *_: estimate.Speed(1.0, 2.0, 1e-6, 1e-5, 0.1, 0.1))
    asking(here)
    words = ["--model", str(folder), "--problems", "p.jsonl", "--samples", "2"]
    short, long = (forecast(capsys, *words, "--max-new-tokens", n)["seconds_at_most"] for n in ("20", "40"))
    assert 1.9 < long / short <= 2
