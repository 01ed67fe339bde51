"""Whatever shows a scan refuses damaged data by the name of its file, or shows what it showed before the damage."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import SUMS, jsonl, slow
from damages import DAMAGES

from internal_policy import open_scan
from internal_policy.__main__ import main
from internal_policy.errors import InputError
from internal_policy.scans import store

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def scans(folder, tmp_path_factory) -> tuple[Path, Path]:
    """A scan of two parts, and another scan of the same model and problems."""
    here = tmp_path_factory.mktemp("scans")
    jsonl(here / "problems.jsonl", *SUMS[:4])
    words = ["scan", "--model", str(folder), "--problems", str(here / "problems.jsonl"), "--max-new-tokens", "8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERNAL_POLICY_CACHE", str(here / "cache"))
        for name, seed in (("one", "0"), ("other", "1")):
            assert main([*words, "--batch-size", "2", "--seed", seed, "--output", str(here / name)]) == 0
    return here / "one", here / "other"


TABLES = ("rollouts-00000.parquet", "policies-00000.parquet", "layers-00000.parquet")
READERS = {
    "show": ["show", "SCAN", "--json"],
    "plot": ["plot", "SCAN", "change", "-o", "out.html"],
    "plot tokens": ["plot", "SCAN", "tokens", "-o", "out.html"],
    "report": ["report", "SCAN", "-o", "out.html"],
    "compare": ["compare", "SCAN", "WHOLE", "--json"],
    "check": ["check", "SCAN", "--json"],
    **{f"export {kind}": ["export", "SCAN", "--table", kind, "-o", "out.csv"] for kind in (*store.KINDS, "vocabulary")},
}
"""Commands that show a scan."""


WHOLE: dict[str, str] = {}
"""What each reader shows of the whole scan."""


def looked(command: list[str], folder: Path, whole: Path, capsys) -> tuple[int, str, str]:
    """The exit code of a command, what it printed or wrote, and its errors; paths are left out."""
    words = [{"SCAN": str(folder), "WHOLE": str(whole)}.get(word, word) for word in command]
    code = main(words)
    printed = capsys.readouterr()
    wrote = [path for path in (Path("out.html"), Path("out.csv")) if path.exists()]
    text = printed.out + "".join(path.read_text() for path in wrote)
    for path in wrote:
        path.unlink()
    return code, re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "", text.replace(str(folder), "SCAN")), printed.err


def check_readers(folder: Path, whole: Path, named: str, readers: list[str], capsys) -> dict[str, bool]:
    """Assert that each reader refuses the scan with one sentence about a file, or shows what it shows of the whole one.

    Returns which of them refused it.
    """
    refused = {}
    for reader in readers:
        code, text, said = looked(READERS[reader], folder, whole, capsys)
        refused[reader] = code != 0
        if code == 0:
            if reader not in WHOLE:
                copy = shutil.copytree(whole, folder.with_name("copy"), dirs_exist_ok=True)
                WHOLE[reader] = looked(READERS[reader], copy, whole, capsys)[1]
            assert text == WHOLE[reader], reader
        else:
            assert code == 2, (reader, said)
            assert re.fullmatch(
                rf"error: \S*{named} .*internal-policy verify {re.escape(str(folder))} --repair.*\n", said
            )
    return refused


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_reader_refuses_a_damaged_part_by_name(damage, table, scans, tmp_path, capsys):
    whole, other = scans
    folder = Path(shutil.copytree(whole, tmp_path / "mine"))
    DAMAGES[damage](folder / table, other)
    kind = table.partition("-")[0]
    refused = check_readers(folder, whole, rf"{kind}-0000[01]\.parquet", list(READERS), capsys)
    assert refused[f"export {kind}"]


@pytest.mark.parametrize("reader", ["check", *slow("report")])
def test_nothing_is_left_out_because_it_is_damaged(reader, scans, tmp_path, capsys):
    whole, other = scans
    folder = Path(shutil.copytree(whole, tmp_path / "mine"))
    DAMAGES["flipped"](folder / "layers-00000.parquet", other)  # its size is the same
    assert check_readers(folder, whole, r"layers-00000\.parquet", [reader], capsys)[reader]


def test_a_part_of_another_scan_is_refused_by_name(scans, tmp_path, capsys):
    whole, other = scans
    folder = Path(shutil.copytree(whole, tmp_path / "mine"))
    DAMAGES["of another scan"](folder / "layers-00000.parquet", other)
    refused = check_readers(
        folder, whole, r"layers-00000\.parquet", ["show", "export layers", "export rollouts"], capsys
    )
    assert refused == {"show": True, "export layers": True, "export rollouts": False}


@pytest.mark.parametrize("damage", ["zeroed", "flipped", *slow(*DAMAGES)])
def test_an_opened_scan_refuses_damaged_data_by_name(damage, scans, tmp_path):
    whole, other = scans
    for kind, look in (
        ("rollouts", lambda scan: scan.rollouts),
        ("policies", lambda scan: scan.policies()),
        ("layers", lambda scan: scan.layers()),
    ):
        folder = Path(shutil.copytree(whole, tmp_path / kind))
        DAMAGES[damage](folder / f"{kind}-00000.parquet", other)
        with pytest.raises(
            InputError, match=rf"{kind}-0000[01]\.parquet is .*verify {re.escape(str(folder))} --repair"
        ):
            look(open_scan(folder))


def test_a_doubled_part_changes_nothing(scans, tmp_path, capsys):
    whole, _ = scans
    folder = Path(shutil.copytree(whole, tmp_path / "mine"))
    for kind in store.KINDS:
        shutil.copy(folder / f"{kind}-00000.parquet", folder / f"{kind}-00002.parquet")
    shutil.copy(folder / "part-00000.json", folder / "part-00002.json")
    refused = check_readers(folder, whole, "", ["show", "export rollouts", "export layers"], capsys)
    assert not any(refused.values())


@pytest.mark.parametrize("name", ["layers-00000.parquet", "rollouts-00001.parquet", *slow("policies-00000.parquet")])
def test_a_flipped_bit_is_refused_by_name_or_changes_no_number(name, scans, tmp_path):
    path = Path(shutil.copytree(scans[0], tmp_path / "mine")) / name
    kind, content = name.partition("-")[0], path.read_bytes()
    right, refusals = store.read(path.parent, kind), []
    for place in range(0, len(content), 50):
        path.write_bytes(flipped(content, place))
        try:
            assert store.read(path.parent, kind).equals(right), place
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > len(content) / 50 / 2
    remedy = f"verify {path.parent} --repair"
    assert all(said.startswith(f"{path} is damaged (") and remedy in said for said in refusals)


def test_a_flipped_bit_in_the_record_is_refused_by_name(scans, tmp_path):
    folder = Path(shutil.copytree(scans[0], tmp_path / "mine"))
    path = folder / store.RECORD
    content = path.read_bytes()
    for place in range(0, len(content), 50):
        path.write_bytes(flipped(content, place))
        with pytest.raises(InputError, match=r"scan\.json is damaged .*verify .* --repair`"):
            store.read(folder, "layers")


def flipped(content: bytes, place: int) -> bytes:
    """The same content with one bit flipped."""
    return content[:place] + bytes([content[place] ^ 1 << (place // 50 % 8)]) + content[place + 1 :]
