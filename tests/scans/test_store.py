"""Damage to a scan on disk is noticed, and scans in memory read the same."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import write_record

from internal_policy import bundle, files
from internal_policy.errors import InputError
from internal_policy.scans import store

TABLE = pa.table({"rollout": [0, 0, 1], "entropy": pa.array([1.5, float("nan"), 2.5], pa.float32())})


@pytest.fixture
def folder(tmp_path):
    """A complete scan of one part, with TABLE as each of its three tables."""
    for kind in store.KINDS:
        store.write_table(store.part_path(tmp_path, kind, 0), TABLE, group="rollout")
    store.write_table(tmp_path / store.VOCABULARY, pa.table({"id": [0], "token": ["a"]}))
    files.write_json(tmp_path / store.ASKED, {"digest": "d", "asked": {}, "product": "plain"})
    write_record(tmp_path)
    return tmp_path


def test_a_file_has_one_row_group_per_rollout_and_the_schema_version(folder):
    file = pq.ParquetFile(folder / "policies-00000.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 1]
    assert file.schema_arrow.metadata[b"internal_policy.schema"] == str(store.SCHEMA).encode()


def test_nan_is_stored_as_nan_and_not_as_null(folder):
    read = store.read_part(folder / "policies-00000.parquet")["entropy"]
    assert read.null_count == 0
    assert str(read[1].as_py()) == "nan"


def test_some_rows_and_columns_can_be_read(folder):
    read = store.read(folder, "policies", ["entropy"], ds.field("rollout") == 1)
    assert read.to_dict("list") == {"entropy": [2.5]}


def test_an_error_names_a_truncated_part(folder):
    path = folder / "policies-00000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert store.cut_short(folder) == [path.name]
    with pytest.raises(InputError, match=r"policies-00000\.parquet is damaged .* --repair"):
        store.read(folder, "policies")


def test_an_error_names_a_part_with_an_altered_byte(folder):
    path = folder / "policies-00000.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(content)
    assert store.damaged(folder) == [path.name]


def test_an_altered_page_is_rejected_on_reading(tmp_path):
    path = tmp_path / "policies-00000.parquet"
    store.write_table(path, pa.table({"x": pa.array([i**0.5 for i in range(1000)], pa.float32())}))
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        store.read_part(path)


def test_an_unknown_schema_version_is_rejected(folder):
    files.write_json(folder / store.RECORD, {"schema": 99, "files": {}})
    with pytest.raises(InputError, match="schema version 99, but this version of internal-policy reads 1"):
        store.record(folder)


def test_unfinished_scans_and_other_folders_get_different_errors(folder, tmp_path):
    (folder / store.RECORD).unlink()
    with pytest.raises(InputError, match=r"is an unfinished scan\. Run its command again to finish it\."):
        store.record(folder)
    with (
        files.held(folder),
        pytest.raises(InputError, match=rf"Process {os.getpid()} is still writing it\. Wait until"),
    ):
        store.record(folder)
    (folder / store.ASKED).unlink()
    with pytest.raises(InputError, match="is not a scan"):
        store.record(folder)
    with pytest.raises(InputError, match="There is no folder"):
        store.record(tmp_path / "nowhere")


def test_one_of_the_scans_of_the_same_digest_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path))
    for model in ("step-1", "step-2"):
        (tmp_path / model / "abc1").mkdir(parents=True)
        files.write_json(tmp_path / model / "abc1" / store.ASKED, {})
    assert store.find("abc1").name == store.find("abc").name == "abc1"


def test_a_scan_is_found_by_the_first_digits_of_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path))
    for name in ("abc1", "abd2"):
        (tmp_path / "model" / name).mkdir(parents=True)
        files.write_json(tmp_path / "model" / name / store.ASKED, {})
    assert store.find("abc") == tmp_path / "model" / "abc1"
    with pytest.raises(InputError, match="2 scans begin with 'ab'"):
        store.find("ab")
    with pytest.raises(InputError, match="There is no scan 'x'"):
        store.find("x")


def test_the_cache_folder_may_begin_with_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", "~/scans")
    assert store.root() == tmp_path / "scans"


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_an_empty_or_relative_cache_home_counts_as_unset(value, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert store.root() == tmp_path / ".cache" / "internal-policy"


def test_without_a_home_folder_the_error_asks_for_a_cache_folder(monkeypatch):
    def homeless() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("INTERNAL_POLICY_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(store.Path, "home", homeless)
    with pytest.raises(InputError, match="Set INTERNAL_POLICY_CACHE to a folder"):
        store.root()


@pytest.mark.parametrize("model", ["Qwen/Qwen3-4B", "local"])
def test_a_scan_folder_is_named_after_the_model_not_its_path(model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()
    asked = {"identity": "sha256 0"}
    assert store.folder_of(model, asked).parent.name == model.replace("/", "--")
    assert store.folder_of(str(tmp_path / "local"), asked) == store.folder_of("./local/", asked)


def test_the_folder_of_a_scan_depends_on_everything_asked_and_stays_under_the_root(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path))
    folders = {store.folder_of("Qwen/Qwen3-4B", {"seed": seed}) for seed in (0, 1)}
    assert len(folders) == 2
    assert store.folder_of("../../etc", {}).parent.parent == tmp_path


@pytest.mark.parametrize("text", ["[]", "null", "{", '{"schema": 99}'])
def test_an_invalid_record_gets_a_one_sentence_error(folder, text):
    (folder / store.RECORD).write_text(text)
    with pytest.raises(InputError, match=r"is damaged|schema version 99"):
        store.record(folder)


def test_a_folder_without_a_scan_doesnt_hide_the_scan_of_its_name(here):
    (here / "demo-qwen3").mkdir()
    assert store.find("demo-qwen3") == bundle.DATA / "scans" / "demo-qwen3"
    (here / "mine").mkdir()
    assert store.find("mine") == Path("mine")
