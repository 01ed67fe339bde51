"""Scans on the Hub are read at a pinned commit, and nothing but what their scan.json lists is downloaded."""

import json
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
from hub_server import Hub

import internal_policy as ip
from internal_policy import bundle
from internal_policy.__main__ import main
from internal_policy.errors import DamageError, InputError
from internal_policy.scans import address, records, store

DEMO = bundle.DATA / "scans" / "demo-qwen3"
NAME = "hf://datasets/org/scan"
PUSHED = [path.name for path in DEMO.iterdir() if path.name != records.ASKED]
"""Files that `push` uploads."""


@pytest.fixture
def commit(hub: Hub) -> str:
    """The commit of a Hub that has the bundled scan."""
    return hub.put("datasets/org/scan", DEMO, *PUSHED)


def downloaded(served: Hub) -> list[str]:
    return [
        path.rpartition("/")[2] for method, _, path in (line.partition(" ") for line in served.asked) if method == "GET"
    ]


def test_a_scan_on_the_hub_is_the_scan_that_was_uploaded(commit):
    there, here = ip.open_scan(NAME), ip.open_scan("demo-qwen3")
    assert there.means().equals(here.means())
    assert there.rollouts.equals(here.rollouts)


def test_only_scan_json_and_what_it_lists_is_downloaded(hub):
    hub.put("datasets/org/scan", DEMO, *PUSHED, **{"extra.py": b"print()", "part-00000.json": b"{}"})
    folder = store.find(NAME)
    assert {path.name for path in folder.iterdir()} == {*PUSHED}
    assert sorted(downloaded(hub)) == sorted(PUSHED)


def test_a_revision_is_resolved_to_its_commit_once(hub, commit):
    folder = store.find(NAME)
    assert folder.name == commit
    assert str(address.of_folder(folder)) == f"{NAME}@{commit}"
    asked = [line.split("/resolve/")[1].split("/") for line in hub.asked]
    assert {tuple(parts) for parts in asked if parts[0] != commit} == {("main", "scan.json")}


def test_a_scan_is_downloaded_once_and_read_without_a_network(hub, commit, monkeypatch):
    first = store.find(NAME)
    del hub.asked[:]
    assert store.find(f"{NAME}@{commit}") == first
    assert hub.asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert store.find(NAME) == first


def test_another_revision_is_another_folder(hub, commit):
    other = hub.put("datasets/org/scan", bundle.DATA / "scans" / "demo-llama")
    assert store.record(store.find(NAME))["model"] == "demo-llama"
    assert store.record(store.find(f"{NAME}@{commit}"))["model"] == "demo-qwen3"
    assert store.find(NAME).name == other


def test_commands_read_a_scan_on_the_hub(commit, here, capsys):
    pinned = f"{NAME}@{commit}"
    assert main(["show", NAME]) == 0
    shown = capsys.readouterr().out
    assert f"Scan: {pinned}" in shown
    assert f"internal-policy show {pinned} --readout norm" in shown
    assert main(["verify", NAME]) == 0
    assert f"{pinned}: 11 files" in capsys.readouterr().out


READERS = {
    "report": ["report", NAME],
    "check": ["check", NAME, "--json"],
    "export": ["export", NAME],
    "compare": ["compare", NAME, "demo-qwen3", "--json"],
    "plot": ["plot", NAME, "flow", "-o", "flow.html"],
}


@pytest.mark.parametrize("name", READERS)
def test_every_command_that_reads_a_scan_reads_one_on_the_hub(name, commit, here):
    assert main(READERS[name]) == 0


def test_a_scan_on_the_hub_is_not_removed_or_repaired(commit, here, capsys):
    assert main(["rm", NAME, "--yes"]) == 2
    assert "is on the Hub, where internal-policy removes nothing" in capsys.readouterr().err
    table = store.find(NAME) / "layers-00000.parquet"
    table.unlink()
    table.write_bytes(b"nothing")
    assert main(["verify", f"{NAME}@{commit}", "--repair"]) == 2
    assert "another layers-00000.parquet than its scan.json lists" in capsys.readouterr().err


def altered(folder: Path, tmp_path: Path, **changes) -> dict[str, bytes]:
    """The files of a scan, with another scan.json that has a valid checksum."""
    found = json.loads((folder / records.RECORD).read_text())
    found.pop("checksum", None)
    path = tmp_path / "scan.json"
    records.write(path, found | changes)
    return {name: (folder / name).read_bytes() for name in PUSHED} | {"scan.json": path.read_bytes()}


FILES = json.loads((DEMO / records.RECORD).read_text())["files"]
LONG = {**FILES, "layers-00000.parquet": {**FILES["layers-00000.parquet"], "bytes": 2**62}}
HOSTILE = {
    "a file above the folder": (
        {"files": {**FILES, "../../evil.parquet": FILES["vocabulary.parquet"]}},
        "isn't a file of",
    ),
    "an absolute path": ({"files": {**FILES, "/etc/passwd": FILES["vocabulary.parquet"]}}, "isn't a file of a scan"),
    "no files": ({"files": {}}, "doesn't list every part"),
    "a file larger than the disk": ({"files": LONG}, "GB to download, but the disk of"),
    "layers that don't exist": ({"n_layers": 10**9}, "expected at most 10,000"),
    "settings of the wrong type": ({"command": "rm -rf /"}, "'command'"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_record_is_refused_before_anything_else_is_downloaded(case, hub, tmp_path):
    changes, said = HOSTILE[case]
    hub.repository("datasets/org/scan").commit(altered(DEMO, tmp_path, **changes))
    with pytest.raises(InputError, match=said) as error:
        store.find(NAME)
    assert "datasets/org/scan@" in str(error.value)
    assert downloaded(hub) == ["scan.json"]


def test_a_file_that_is_not_the_listed_one_is_refused_each_time(hub):
    files = {name: (DEMO / name).read_bytes() for name in PUSHED}
    files["layers-00001.parquet"] = files["layers-00001.parquet"][:-1] + b"?"
    hub.repository("datasets/org/scan").commit(files)
    for _ in range(2):
        with pytest.raises(DamageError, match=r"another layers-00001\.parquet than .* \(its SHA-256 differs\)"):
            store.find(NAME)


def test_a_file_of_another_size_is_not_downloaded(hub, commit):
    hub.sizes["policies-00000.parquet"] = 2**50
    with pytest.raises(DamageError, match=r"another policies-00000\.parquet .* instead of 1,345,234"):
        store.find(NAME)
    assert "policies-00000.parquet" not in downloaded(hub)


def test_a_missing_file_is_named(hub):
    hub.put("datasets/org/scan", DEMO, *(name for name in PUSHED if name != "vocabulary.parquet"))
    with pytest.raises(DamageError, match=r"lacks vocabulary\.parquet, which its scan\.json lists"):
        store.find(NAME)


def test_a_giant_scan_json_is_not_downloaded(hub, commit):
    hub.sizes["scan.json"] = 2**40
    with pytest.raises(InputError, match=r"has a scan.json of 1,099,511,627,776 bytes"):
        store.find(NAME)
    assert downloaded(hub) == []


def test_a_scan_json_of_links_and_devices_is_text(hub):
    hub.repository("datasets/org/scan").commit({"scan.json": b"/etc/passwd"})  # how Git stores a link
    with pytest.raises(DamageError, match=r"scan\.json is damaged"):
        store.find(NAME)


@pytest.mark.parametrize(
    "name",
    [
        "hf://org/scan",
        "hf://datasets/org",
        "hf://datasets/org/scan/../../x",
        "hf://datasets/org/scan@../../x",
        "hf://datasets/org/scan/part",
        "hf://spaces/org/scan",
        "hf://datasets/../scan",
        "hf://",
    ],
)
def test_what_is_not_the_address_of_a_scan_is_refused(name, hub):
    with pytest.raises(InputError, match="isn't the address of a scan"):
        store.find(name)
    assert hub.asked == []


def test_a_path_that_joined_the_slashes_is_an_address(commit):
    assert ip.open_scan(Path(NAME)).record["model"] == "demo-qwen3"


def refused(name: str = NAME) -> str:
    with pytest.raises(InputError) as error:
        store.find(name)
    return str(error.value)


def test_errors_of_the_hub_are_one_sentence_with_the_remedy(hub, commit, monkeypatch):
    assert refused("hf://datasets/org/none").startswith("Can't find the data set org/none on the Hub. Check the name")
    assert (
        refused(f"{NAME}@v9")
        == "org/scan has no revision 'v9'. Look it up at https://huggingface.co/datasets/org/scan."
    )
    assert refused("hf://datasets/org/a--b") == "'org/a--b' isn't the name of a repository on the Hub. Write org/name."
    hub.repository("datasets/org/other").commit({"data.csv": b"a"})
    assert "The data set org/other has no scan.json at main, so it isn't a scan." in refused("hf://datasets/org/other")
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    hub.repository("datasets/org/scan").gated = True
    assert refused().startswith("org/scan is gated. Accept its terms at https://huggingface.co/datasets/org/scan")


def test_without_a_network_the_remedy_is_named(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refused() == (
        f"Can't download {NAME} because the Hub can't be reached, and there is no complete local copy. Check the "
        "network, or unset HF_HUB_OFFLINE if it is set."
    )


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "refuses your token"),
        (429, "too many requests"),
        (500, "a problem of its own (error 500)"),
        (418, "refused"),
    ],
)
def test_statuses_of_the_hub_are_explained(status, said, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its tries
    hub.fails = status
    assert said in refused()


def test_the_dashboard_serves_the_local_copy(commit, monkeypatch):
    from internal_policy.cli import dashboard

    served = []
    monkeypatch.setattr(dashboard, "serve", lambda _, folders: served.extend(folders))
    assert main(["dashboard", NAME, "--scan", NAME]) == 0
    assert served == [str(store.find(NAME))] * 2
