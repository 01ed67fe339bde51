"""A folder is for one piece of work; an error names the settings that differ."""

import json

import pytest

from internal_policy import files
from internal_policy.errors import InputError
from internal_policy.scans import records, store
from internal_policy.scans.claims import begun, changed, claim

QUESTION = {"model": "a", "identity": "sha256 1", "limit": 4, "seed": 0, "chat_template_kwargs": "{}"}


def write(folder, question):
    folder.mkdir(exist_ok=True)
    records.write(folder / "asked.json", {"digest": store.digest(question), "asked": question})


def test_a_new_folder_and_one_with_temporary_files_are_free(tmp_path):
    assert not begun(tmp_path / "new", "asked.json", "scan")
    for name in (f".internal-policy-{files.HERE}-1-01234567.json", ".asked.json.lock"):
        (tmp_path / name).touch()
    assert not begun(tmp_path, "asked.json", "scan")


@pytest.mark.parametrize("name", [".git", ".env", ".x.lock", ".internal-policy-notes.txt"])
def test_a_hidden_file_or_folder_of_others_makes_a_folder_not_empty(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="isn't empty and contains no scan"):
        begun(tmp_path, "asked.json", "scan")


@pytest.mark.parametrize("name", ["file", "folder"])
def test_a_folder_with_other_content_is_rejected(name, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "letter.txt").touch()
    with pytest.raises(InputError, match=r"is a file|isn't empty and contains no scan"):
        begun(tmp_path / name, "asked.json", "scan")


def test_the_same_question_may_continue(tmp_path):
    write(tmp_path / "scan", QUESTION)
    claim(tmp_path / "scan", "asked.json", "scan", QUESTION)


def test_an_error_names_the_options_that_differ(tmp_path):
    write(tmp_path / "scan", QUESTION)
    with pytest.raises(InputError, match=r"another scan with different settings \(--limit, --seed\)"):
        claim(tmp_path / "scan", "asked.json", "scan", {**QUESTION, "limit": 8, "seed": 1})


def test_a_damaged_record_is_rejected(tmp_path):
    write(tmp_path / "scan", QUESTION)
    (tmp_path / "scan" / "asked.json").write_text("[]")
    with pytest.raises(InputError, match="is damaged"):
        claim(tmp_path / "scan", "asked.json", "scan", QUESTION)


def test_files_are_compared_by_content_and_models_by_identity(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        (tmp_path / name).write_text("c" if name == "c.jsonl" else "same")
    old, moved, other = (
        {**QUESTION, "model": name, "problems": name, "content": {name: files.fingerprint(tmp_path / name)}}
        for name in ("a.jsonl", "b.jsonl", "c.jsonl")
    )
    assert changed(old, moved) == []
    assert changed(old, other) == ["problems"]
    assert changed(old, {**old, "identity": "sha256 2"}) == ["model"]


def test_secrets_are_compared_in_their_hidden_form():
    question = {**QUESTION, "chat_template_kwargs": '{"api_key": "hf_abcdefgh"}'}
    assert changed(json.loads(files.as_json(question)), question) == []
