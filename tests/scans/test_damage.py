"""Damaged, altered and forged scans are refused with one sentence, and no wrong figures are shown."""

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import saved, slow, tiny_model, write_record

from internal_policy import files
from internal_policy.__main__ import main
from internal_policy.errors import InputError
from internal_policy.look import view
from internal_policy.scans import records, store
from internal_policy.scans.export import export_table

pytestmark = pytest.mark.usefixtures("here")

READERS = (["show", "SCAN", "--json"], ["export", "SCAN", "--output", "x.csv"])
ALL_READERS = (
    *READERS,
    *(["export", "SCAN", "--table", table, "--output", "x.csv"] for table in ("policies", "rollouts")),
    ["plot", "SCAN", "tokens", "--output", "x.html"],
)
LOOK = """
import contextlib, io, json, os, sys
from pathlib import Path
from internal_policy import files
from internal_policy.__main__ import main
words = json.loads(sys.argv[1])
for folder in sys.argv[2:]:
    found = []
    for command in words:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
            code = main([folder if word == "SCAN" else word for word in command])
        wrote = [path for path in (Path("x.csv"), Path("x.html")) if path.exists()]
        kept = "".join(path.read_text() for path in wrote if path.suffix == ".csv").splitlines()
        for path in wrote:
            path.unlink()
        found.append([code, out.getvalue().replace(folder, "SCAN").splitlines() + kept, err.getvalue().splitlines()])
    print(json.dumps(found), flush=True)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer) -> Path:
    return saved(tiny_model("qwen3").float(), tokenizer, tmp_path_factory.mktemp("model"))


@pytest.fixture
def words(model, here) -> list[str]:
    (here / "problems.jsonl").write_text("".join(f'{{"problem": "{n} + 5?", "answer": "{n + 5}"}}\n' for n in range(4)))
    return ["scan", "--model", str(model), "--max-new-tokens", "5", "--batch-size", "2", "--problems", "problems.jsonl"]


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory) -> Path:
    """A scan of two parts, shared by tests that don't alter it."""
    folder = tmp_path_factory.mktemp("scans")
    problems = folder / "problems.jsonl"
    problems.write_text("".join(f'{{"problem": "{n} + 5?", "answer": "{n + 5}"}}\n' for n in range(4)))
    words = ["scan", "--model", str(model), "--max-new-tokens", "5", "--batch-size", "2", "--problems", str(problems)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERNAL_POLICY_CACHE", str(folder / "cache"))
        assert main([*words, "--output", str(folder / "scan")]) == 0
    return folder / "scan"


@pytest.fixture
def scanned(finished, tmp_path) -> Path:
    """A copy of the scan that tests may alter."""
    return Path(shutil.copytree(finished, tmp_path / "scanned"))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << (place % 8)
    path.write_bytes(content)


def looked_at(folders: list[Path], commands) -> list:
    """(exit code, output, errors) of each command for each folder, run in one process that must not crash."""
    words = [sys.executable, "-c", LOOK, json.dumps(commands), *map(str, folders)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_all(finished: Path, folders: list[Path], commands) -> None:
    whole, *found = looked_at([finished, *folders], commands)
    assert [code for code, _, _ in whole] == [0] * len(commands)
    for folder, outcomes in zip(folders, found, strict=True):
        for command, right, (code, out, err) in zip(commands, whole, outcomes, strict=True):
            said = (folder.name, command, code, err)
            if code == 0:
                assert out == right[1], said
            else:
                assert (code, len(err)) == (2, 1), said
                assert err[0].startswith("error: "), said


def harmed(finished: Path, to: Path, flips: int) -> list[Path]:
    """Copies of a scan: in each, one bit of one file is flipped, or the file is cut short."""
    rng, found = random.Random(0), []
    names = [*sorted(p.name for p in finished.glob("*.parquet")), "scan.json"]
    for name in names:
        size = (finished / name).stat().st_size
        footer = [size - 9 - rng.randrange(min(size // 2, 600)) for _ in range(flips)]
        for place in {*footer, *(rng.randrange(size) for _ in range(flips // 2)), -1}:
            folder = Path(shutil.copytree(finished, to / f"{name}.{place}"))
            if place < 0:
                (folder / name).write_bytes((finished / name).read_bytes()[: size * 2 // 3])
            else:
                flip(folder / name, place)
            found.append(folder)
    return found


def test_a_flipped_bit_is_an_error_or_changes_no_output(finished, tmp_path):
    check_all(finished, harmed(finished, tmp_path / "harmed", 1), READERS)


@pytest.mark.slow
def test_many_flipped_bits_are_an_error_or_change_no_output(finished, tmp_path):
    check_all(finished, harmed(finished, tmp_path / "harmed", 16), ALL_READERS)


def test_a_table_is_checked_without_reading_it_from_end_to_end(scanned, monkeypatch):
    monkeypatch.setattr(files, "fingerprint", lambda path: pytest.fail(f"{path} was read from end to end"))
    assert len(store.read(scanned, "policies", ["final.entropy"]))
    assert store.record(scanned)["footers"].keys() == {path.name for path in scanned.glob("*.parquet")}


def test_a_scan_without_recorded_footers_is_read_from_end_to_end(scanned):
    record = {name: value for name, value in store.record(scanned).items() if name != "footers"}
    records.write(scanned / store.RECORD, record)
    flip(store.part_path(scanned, "policies", 1), 3)  # the magic word at the start, which Arrow doesn't check
    with pytest.raises(InputError, match=r"is damaged \(it was changed after it was written\)"):
        store.read(scanned, "policies", ["final.entropy"])


@pytest.mark.parametrize("kind", records.KINDS)
def test_an_altered_footer_is_rejected_before_it_is_parsed(scanned, kind):
    path = records.part_path(scanned, kind, 1)
    flip(path, path.stat().st_size - 40)
    with pytest.raises(InputError, match=r"is damaged \(it was changed after it was written\)\. Repair it with"):
        store.read(scanned, kind)


def test_an_unchanged_file_is_checked_only_once(scanned, monkeypatch):
    monkeypatch.setattr(files, "COARSE", -1.0)
    store.read(scanned, "layers")
    monkeypatch.setattr(files, "fingerprint", None)
    store.read(scanned, "layers")


def test_a_file_that_changes_is_checked_again(scanned, monkeypatch):
    monkeypatch.setattr(files, "COARSE", -1.0)
    store.read(scanned, "layers")
    flip(records.part_path(scanned, "layers", 1), 50)
    with pytest.raises(InputError, match="is damaged"):
        store.read(scanned, "layers")


def test_a_deleted_part_is_reported(scanned, capsys):
    records.part_path(scanned, "layers", 1).unlink()
    assert main(["show", str(scanned)]) == 2
    assert "layers-00001.parquet is damaged (it is missing" in capsys.readouterr().err


def test_a_part_missing_from_the_record_is_not_read(scanned):
    before = store.read(scanned, "layers")
    shutil.copy(records.part_path(scanned, "layers", 1), records.part_path(scanned, "layers", 2))
    assert len(store.read(scanned, "layers")) == len(before)
    assert export_table(scanned, "layers", "csv", scanned / "x.csv") == len(before)


def test_an_unfinished_scan_is_not_read(scanned):
    (scanned / store.RECORD).unlink()
    with pytest.raises(InputError, match="is an unfinished scan"):
        store.read(scanned, "layers")


def test_scans_lists_only_complete_scans(scanned, here):
    whole, begun = (store.root() / "model" / name for name in ("a", "b"))
    shutil.copytree(scanned, whole)
    shutil.copytree(scanned, begun)
    (begun / store.RECORD).unlink()
    assert store.scans() == [whole]
    assert {*store.scans(unfinished=True)} == {whole, begun}


@pytest.mark.parametrize(
    "name", ["../precious.txt", "/", *slow("precious.txt", "policies-1.parquet", "policies-00001.parquet/x")]
)
def test_a_forged_record_cannot_remove_other_files(words, here, tmp_path, name, capsys):
    assert main([*words, "--output", "mine"]) == 0
    precious = [tmp_path / "precious.txt", here / "precious.txt", here / "mine" / "precious.txt"]
    for path in precious:
        path.write_text("precious")
    absolute = str(precious[0]) if name == "/" else name
    record = json.loads((here / "mine" / store.RECORD).read_text())
    record["files"][absolute] = {"bytes": 1, "sha256": "0" * 64}
    records.write(here / "mine" / store.RECORD, {k: v for k, v in record.items() if k != "checksum"})
    capsys.readouterr()
    assert main(["show", "mine"]) == 2
    assert "isn't a file of a scan" in capsys.readouterr().err
    assert main(["verify", "mine", "--repair"]) == 0
    assert [path.read_text() for path in precious] == ["precious"] * 3


@pytest.mark.parametrize("name", ["layers-00000.parquet", "rollouts-00000.parquet", "vocabulary.parquet", "scan.json"])
def test_an_error_names_a_folder_in_place_of_a_file(words, here, name, capsys):
    assert main([*words, "--limit", "2", "--output", "mine"]) == 0
    (here / "mine" / name).unlink()
    (here / "mine" / name).mkdir()
    capsys.readouterr()
    assert main(["verify", "mine", "--repair"]) == 2
    assert f"{name} is a folder" in capsys.readouterr().err


SHAPES = ["[]", "null", '"x"', '{"schema": 1}', '{"schema": [1]}', "[" * 100_000]


@pytest.mark.parametrize("text", SHAPES)
def test_a_malformed_record_gets_a_one_sentence_error(scanned, text, capsys):
    (scanned / store.RECORD).write_text(text)
    assert main(["show", str(scanned)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("text", SHAPES)
def test_ls_lists_a_broken_scan_with_the_others(scanned, text, capsys):
    for name in ("a", "b"):
        shutil.copytree(scanned, store.root() / "model" / name)
    (store.root() / "model" / "a" / store.RECORD).write_text(text)
    assert main(["ls", "--json"]) == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert [listed[name]["state"] for name in ("a", "b")] == ["broken", "finished"]
    assert "scan.json" in listed["a"]["problem"]


def test_ls_explains_below_the_list_what_is_broken(scanned, capsys):
    for name in ("a", "b"):
        shutil.copytree(scanned, store.root() / "model" / name)
    (store.root() / "model" / "a" / store.RECORD).write_text("[]")
    assert main(["ls"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^a  +model .* broken$", printed, re.MULTILINE)
    assert re.search(r"^a \(broken, .*\): scan.json is damaged .* verify a --repair", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_layers", "8"),
        ("n_layers", True),
        ("n_layers", 0),
        ("model", None),
        ("versions", {"torch": 2}),
        ("selection", {}),
        ("selection", {"layers": [0], "sites": [], "readouts": ["raw"], "measures": ["entropy"]}),
        ("files", {}),
        ("files", {"vocabulary.parquet": None}),
        ("files", {"vocabulary.parquet": {"bytes": 1, "sha256": "x"}}),
    ],
)
def test_an_error_names_the_wrong_field_of_a_record(scanned, field, value):
    records.write(scanned / store.RECORD, {**store.record(scanned), field: value})
    with pytest.raises(InputError, match=rf"scan\.json is damaged \('{field}"):
        view.default(scanned)


def test_a_record_with_a_hidden_secret_is_still_valid(scanned):
    command = ["--chat-template-kwargs", '{"api_key": "hunter2"}', "https://me:hunter2@example.org?token=hunter2"]
    records.write(scanned / store.RECORD, {**store.record(scanned), "command": command})
    assert "hunter2" not in str(store.record(scanned)["command"])


def test_a_record_must_list_every_part_of_every_table(scanned):
    record = store.record(scanned)
    del record["files"]["layers-00000.parquet"]
    records.write(scanned / store.RECORD, record)
    with pytest.raises(InputError, match="doesn't list every part of the table layers"):
        store.read(scanned, "rollouts")


def test_an_altered_number_in_a_record_is_noticed(scanned):
    text = (scanned / store.RECORD).read_text()
    (scanned / store.RECORD).write_text(text.replace('"n_layers": 3', '"n_layers": 2'))
    with pytest.raises(InputError, match="it was changed after it was written"):
        store.record(scanned)


@pytest.mark.parametrize("victim", ["policies-00000.parquet", *slow("rollouts-00001.parquet", "part-00000.json")])
def test_no_record_is_written_if_files_disappear_during_a_scan(words, here, victim, capsys, monkeypatch):
    write = store.write_table

    def wiped(path, *rest, **options):
        if path.name == store.VOCABULARY:
            (here / "mine" / victim).unlink()
        write(path, *rest, **options)

    monkeypatch.setattr(store, "write_table", wiped)
    assert main([*words, "--output", "mine"]) == 2
    assert "was altered or removed while the scan ran. Run its command again" in capsys.readouterr().err
    assert not (here / "mine" / store.RECORD).exists()
    monkeypatch.setattr(store, "write_table", write)
    assert main([*words, "--output", "mine"]) == 0
    assert store.damaged(here / "mine") == []


@pytest.mark.parametrize("name", ["rollouts-00000.parquet", *slow("policies-00000.parquet", "layers-00001.parquet")])
def test_a_flipped_bit_in_an_unfinished_scan_is_measured_again(words, here, name):
    assert main([*words, "--output", "mine"]) == 0
    whole = {path.name: path.read_bytes() for path in (here / "mine").glob("*.parquet")}
    (here / "mine" / store.RECORD).unlink()
    flip(here / "mine" / name, (here / "mine" / name).stat().st_size - 40)
    assert main([*words, "--output", "mine"]) == 0
    assert {path.name: path.read_bytes() for path in (here / "mine").glob("*.parquet")} == whole


@pytest.mark.parametrize("place", [-40, 60], ids=["footer", "data"])
def test_a_flipped_bit_in_an_interrupted_sampling_is_sampled_again(words, here, monkeypatch, place):
    from internal_policy.scans import sampling

    asked = ["generate", *words[1:], "--output"]
    assert main([*asked, "whole.jsonl"]) == 0
    sampled = sampling.batch

    def interrupted(*given):
        if given[4]:
            raise KeyboardInterrupt
        return sampled(*given)

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "batch", interrupted)
        assert main([*asked, "r.jsonl"]) == 130
    (part,) = store.root().rglob("rollouts-00000.parquet")
    flip(part, place % part.stat().st_size)
    assert main([*asked, "r.jsonl"]) == 0
    assert (here / "r.jsonl").read_text() == (here / "whole.jsonl").read_text()


def test_a_part_without_its_notes_is_measured_again(words, here):
    assert main([*words, "--output", "mine"]) == 0
    whole = {path.name: path.read_bytes() for path in (here / "mine").glob("*.parquet")}
    (here / "mine" / store.RECORD).unlink()
    (here / "mine" / "part-00000.json").write_text("{")
    assert main([*words, "--output", "mine"]) == 0
    assert {path.name: path.read_bytes() for path in (here / "mine").glob("*.parquet")} == whole


def test_a_scan_continued_elsewhere_records_every_device_and_version(words, here, monkeypatch):
    from internal_policy.scans import job, scan

    facts, measure = job.facts, scan.Scanner.measured

    def interrupted(scanner, rollouts, first, *given):
        if first:
            raise KeyboardInterrupt
        return measure(scanner, rollouts, first, *given)

    with monkeypatch.context() as patch:
        patch.setattr(scan.Scanner, "measured", interrupted)
        patch.setattr(job, "facts", lambda *given: {**facts(*given), "device": "cuda:0", "versions": {"torch": "1"}})
        assert main([*words, "--output", "mine"]) == 130
    monkeypatch.setattr(job, "facts", lambda *given: {**facts(*given), "versions": {"torch": "2"}})
    assert main([*words, "--output", "mine"]) == 0
    record = store.record(here / "mine")
    assert (record["device"], record["versions"]) == ("cuda:0, cpu", {"torch": "1, 2"})


@pytest.mark.parametrize("text", ["[]", "{}", '{"digest": 1}', "{"])
def test_a_damaged_question_gets_a_one_sentence_error(words, here, text, capsys):
    assert main([*words, "--output", "mine"]) == 0
    (here / "mine" / store.ASKED).write_text(text)
    capsys.readouterr()
    assert main([*words, "--output", "mine"]) == 2
    assert "asked.json is damaged" in capsys.readouterr().err


def test_a_damaged_file_outside_a_scan_gets_its_own_remedy(tmp_path):
    path = tmp_path / "metrics.parquet"
    store.write_table(path, pa.table({"x": [1]}))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match=r"is damaged .*\. Remove it and write it again"):
        store.read_part(path)


def test_write_record_writes_a_valid_record(tmp_path):
    for name in ("rollouts-00000", "policies-00000", "layers-00000", "vocabulary"):
        store.write_table(tmp_path / f"{name}.parquet", pa.table({"rollout": [1]}))
    write_record(tmp_path)
    assert store.damaged(tmp_path) == []
