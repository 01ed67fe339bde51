"""A checkpoint is whole, or is known to be incomplete."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from internal_policy.train import checkpoints


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of two files."""
    written = tmp_path / checkpoints.PARTIAL / "checkpoint-2"
    (written / "optimizer").mkdir(parents=True)
    (written / "model.safetensors").write_bytes(b"weights")
    (written / "optimizer" / "rank-0.pt").write_bytes(b"moments")
    checkpoints.put(written, tmp_path / "checkpoint-2")
    return tmp_path / "checkpoint-2"


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_permissions_of_sealed_files_follow_the_umask(tmp_path):
    (tmp_path / "model.safetensors").touch(0o600)
    checkpoints.seal(tmp_path)
    (tmp_path / "usual").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_put_renames_a_folder_and_seals_it(folder):
    assert checkpoints.is_whole(folder)
    assert not list((folder.parent / checkpoints.PARTIAL).iterdir())


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer/rank-0.pt", checkpoints.MANIFEST])
def test_a_folder_with_a_truncated_file_is_not_whole(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:3])
    assert not checkpoints.is_whole(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer/rank-0.pt", checkpoints.MANIFEST])
def test_a_folder_without_one_of_its_files_is_not_whole(folder, name):
    (folder / name).unlink()
    assert not checkpoints.is_whole(folder)


@pytest.mark.parametrize("text", ["null", "{}", "[]", "[1]", '{"model.safetensors": "seven"}', "{"])
def test_an_invalid_manifest_means_not_whole(folder, text):
    (folder / checkpoints.MANIFEST).write_text(text)
    assert not checkpoints.is_whole(folder)


def test_put_replaces_an_existing_folder(folder):
    again = folder.parent / "again"
    again.mkdir()
    (again / "model.safetensors").write_bytes(b"others")
    checkpoints.put(again, folder)
    assert sorted(path.name for path in folder.iterdir()) == [checkpoints.MANIFEST, "model.safetensors"]
    assert checkpoints.is_whole(folder)


@pytest.mark.parametrize("stopped", [1, 2, 3, 4])
def test_a_put_stopped_at_any_rename_loses_neither_the_old_folder_nor_the_new(stopped, folder, monkeypatch):
    written, renames, count = folder.parent / checkpoints.PARTIAL / "checkpoint-2", Path.rename, iter(range(1, 5))
    written.mkdir()
    (written / "model.safetensors").write_bytes(b"newer")

    def rename(path: Path, target: Path) -> Path:
        if next(count) == stopped:
            raise InterruptedError
        return renames(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with nullcontext() if stopped == 4 else pytest.raises(InterruptedError):
        checkpoints.put(written, folder)
    monkeypatch.setattr(Path, "rename", renames)
    checkpoints.clear(folder.parent)
    assert checkpoints.is_whole(folder)
    assert (folder / "model.safetensors").read_bytes() == (b"weights" if stopped < 3 else b"newer")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_second_put_of_a_folder_fails_and_keeps_the_first(folder):
    with pytest.raises(FileNotFoundError):
        checkpoints.put(folder.parent / checkpoints.PARTIAL / folder.name, folder)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert checkpoints.is_whole(folder)


def test_a_put_overtaken_while_it_syncs_keeps_the_first(folder, monkeypatch):
    """Two nodes sync the same folder; the other one renames it in the meantime."""
    written = folder.parent / checkpoints.PARTIAL / folder.name
    written.mkdir()
    (written / "model.safetensors").write_bytes(b"newer")
    seal = checkpoints.seal

    def overtaken(claimed):
        monkeypatch.setattr(checkpoints, "seal", seal)
        with pytest.raises(FileNotFoundError):
            checkpoints.put(written, folder)
        assert (folder / "model.safetensors").read_bytes() == b"weights"
        seal(claimed)

    monkeypatch.setattr(checkpoints, "seal", overtaken)
    checkpoints.put(written, folder)
    assert (folder / "model.safetensors").read_bytes() == b"newer"
    assert checkpoints.is_whole(folder)


def test_seal_of_a_missing_folder_fails_and_does_not_create_it(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoints.seal(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


@pytest.mark.skipif(os.name != "posix", reason="Windows syncs only files that are open for writing")
def test_seal_opens_files_read_only(folder, monkeypatch):
    import fcntl

    modes, fsync = {}, os.fsync

    def recorded(descriptor):
        modes[os.fstat(descriptor).st_ino] = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    checkpoints.seal(folder)
    assert modes[(folder / "model.safetensors").stat().st_ino] == os.O_RDONLY


def test_checkpoints_are_found_newest_first(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-x", "model", ".partial"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-11").write_text("no folder")
    assert list(checkpoints.found(tmp_path)) == [10, 9]
