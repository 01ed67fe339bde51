"""Every damaged file of a scan or an ablation is found, and named with what is wrong with it."""

import json
import shutil
from pathlib import Path

import pytest

from internal_policy import bundle
from internal_policy.errors import InputError
from internal_policy.scans import effects, records, store, verify
from internal_policy.scans.verify import Fault

DEMO = bundle.DATA / "scans" / "demo-qwen3"
REAL = bundle.DATA / "scans" / "smollm2-135m"
"""A scan with notes on its parts."""


@pytest.fixture
def real(tmp_path) -> Path:
    return Path(shutil.copytree(REAL, tmp_path / "real"))


def faults(folder: Path) -> list[tuple[str, str, str]]:
    return [(fault.file, fault.problem, fault.detail) for fault in verify.scan(folder).faults]


def test_what_comes_with_the_package_is_as_it_was_written():
    assert [verify.scan(folder).faults for folder in bundle.scans()] == [(), (), ()]
    assert [verify.ablation(folder).faults for folder in bundle.ablations()] == [(), ()]


def test_every_file_is_counted_and_read(real):
    reached = []
    found = verify.scan(real, lambda done, total: reached.append((done, total)))
    assert found.files == len(list(real.iterdir()))
    assert found.bytes == sum(path.stat().st_size for path in real.iterdir())
    assert found.rollouts == 12
    assert reached == [(n, 7) for n in range(1, 8)]


def test_a_file_that_is_cut_short_or_missing_or_altered_is_named(real):
    layers, policies = (real / f"{kind}-00001.parquet" for kind in ("layers", "policies"))
    size = layers.stat().st_size
    layers.write_bytes(layers.read_bytes()[:1000])
    policies.write_bytes(bytes(policies.stat().st_size))
    (real / "vocabulary.parquet").unlink()
    (real / "rollouts-00000.parquet").write_bytes((real / "rollouts-00000.parquet").read_bytes() + b"x")
    assert faults(real) == [
        ("vocabulary.parquet", "missing", ""),
        ("rollouts-00000.parquet", "altered", "1 byte too long"),
        ("policies-00001.parquet", "altered", "its SHA-256 differs"),
        ("layers-00001.parquet", "cut short", f"1,000 of {size:,} bytes"),
    ]


def test_a_single_bit_anywhere_is_noticed(real):
    for name in ("layers-00000.parquet", "scan.json", "asked.json", "part-00000.json", "vocabulary.parquet"):
        path = real / name
        whole = path.read_bytes()
        for place in (0, len(whole) // 3, len(whole) - 3):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert [file for file, *_ in faults(real)] == [name], (name, place)
        path.write_bytes(whole)


def test_swapped_parts_are_named_as_copies_of_each_other(real):
    one, two = real / "layers-00000.parquet", real / "layers-00001.parquet"
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)
    assert faults(real) == [
        (one.name, "altered", f"it is a copy of {two.name}"),
        (two.name, "altered", f"it is a copy of {one.name}"),
    ]


def test_extra_parts_are_named_and_other_files_are_not(real):
    shutil.copy(real / "layers-00001.parquet", real / "layers-00002.parquet")
    shutil.copy(DEMO / "policies-00000.parquet", real / "policies-00002.parquet")
    shutil.copy(real / "part-00001.json", real / "part-00002.json")
    (real / "mine.txt").write_text("a note of the user")
    (real / "mine.parquet").write_text("a file of the user")
    assert verify.scan(real).faults == (
        Fault("part-00002.json", "extra", "scan.json doesn't list this part"),
        Fault("layers-00002.parquet", "extra", "it is a copy of layers-00001.parquet", "layers-00001.parquet"),
        Fault("policies-00002.parquet", "extra", "no record lists it"),
    )


def test_settings_and_notes_of_another_scan_are_named(real):
    records.write(real / store.ASKED, {**records.read(real / store.ASKED), "digest": "0" * 12})
    shutil.copy(real / "part-00001.json", real / "part-00000.json")
    assert faults(real) == [
        ("asked.json", "altered", "it belongs to another scan"),
        ("part-00000.json", "altered", "it lists other files than scan.json"),
    ]


def test_a_record_that_lost_its_checksum_is_altered(real):
    record = records.read(real / store.RECORD) | {"footers": {}}
    (real / store.RECORD).write_text(json.dumps(record))
    assert faults(real) == [("scan.json", "altered", "it has no checksum")]


def test_without_a_record_the_notes_on_parts_tell_what_was_written(real):
    (real / store.RECORD).unlink()
    (real / "layers-00001.parquet").unlink()
    assert faults(real) == [
        ("scan.json", "missing", "the scan is unfinished, or it was removed"),
        ("layers-00001.parquet", "missing", ""),
    ]


def test_a_record_of_a_later_version_is_not_called_damaged(real):
    records.write(real / store.RECORD, {**records.read(real / store.RECORD), "schema": 2})
    with pytest.raises(InputError, match="Update internal-policy"):
        verify.scan(real)


def test_a_damaged_ablation_is_named(tmp_path):
    folder = Path(shutil.copytree(bundle.ablations()[0], tmp_path / "ablation"))
    (folder / "effects-00001.parquet").unlink()
    (folder / effects.ASKED).write_text("{")
    found = verify.ablation(folder).faults
    assert [(fault.file, fault.problem) for fault in found] == [
        (effects.ASKED, "altered"),
        ("effects-00001.parquet", "missing"),
    ]
