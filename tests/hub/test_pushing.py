"""Scans go up to the Hub whole, in one commit, with a card, and nothing else does."""

import json
import shutil
from pathlib import Path

import hub_server
import huggingface_hub.constants as constants
import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hub_server import Hub

import internal_policy as ip
from internal_policy import bundle, files
from internal_policy.__main__ import main
from internal_policy.cli.schemas.documents import json_schema
from internal_policy.cli.schemas.results import PUSHED
from internal_policy.look import card, catalogue, export, view
from internal_policy.look.card import markdown
from internal_policy.scans import records, store

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # of huggingface_hub's uploads
DEMO = bundle.DATA / "scans" / "demo-qwen3"
PUSH = ["push", "demo-qwen3", "org/scan", "--license", "mit", "--yes"]
NAME = "hf://datasets/org/scan"


@pytest.fixture(autouse=True)
def quick(monkeypatch, here) -> None:
    """Draw no figure, which takes Chromium seconds, and write a card with metadata alone."""
    monkeypatch.setattr(catalogue, "draw", lambda *_: None)
    monkeypatch.setattr(export, "image", lambda *_: b"a picture")
    monkeypatch.setattr(card, "markdown", lambda _, repository, licence: f"---\nlicense: {licence}\n---\n{repository}")


def uploaded(hub: Hub, name: str = "datasets/org/scan", branch: str = "main") -> dict[str, bytes]:
    found = hub.repositories[name]
    return found.commits[found.branches[branch]]


def said(capsys) -> str:
    return capsys.readouterr().err


def test_a_scan_is_uploaded_in_one_commit_and_opens_as_it_was(hub, capsys):
    assert main([*PUSH, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    jsonschema.validate(told, json_schema("push"))
    assert told.keys() == PUSHED.keys()
    found = hub.repositories["datasets/org/scan"]
    assert found.messages == ["Upload the scan 75a0938d59d2 of demo-qwen3"]
    assert told["commit"] == found.branches["main"]
    assert told["address"] == f"{NAME}@{told['commit']}"
    assert told["url"] == f"{hub.url}/datasets/org/scan/commit/{told['commit']}"
    assert ip.open_scan(NAME).means().equals(ip.open_scan("demo-qwen3").means())


def test_only_the_tables_scan_json_and_the_card_are_uploaded(hub, tmp_path):
    folder = Path(shutil.copytree(DEMO, tmp_path / "mine"))
    (folder / "secret.txt").write_text("mine")
    assert main(["push", str(folder), *PUSH[2:]]) == 0
    tables = json.loads((DEMO / records.RECORD).read_text())["files"]
    assert uploaded(hub).keys() == {*tables, "scan.json", "README.md", "flow.png", ".gitattributes"}
    assert {name: uploaded(hub)[name] for name in tables} == {name: (DEMO / name).read_bytes() for name in tables}


def test_a_scan_without_a_licence_of_its_texts_is_refused(hub, capsys):
    assert main(["push", "demo-qwen3", "org/scan", "--yes"]) == 2
    assert "publishes the prompts and responses of a scan, so it needs their licence. Add --license" in said(capsys)
    assert main(["push", "demo-qwen3", "org/scan", "--license", "CC BY 4.0"]) == 2
    assert "the Hub's names of licences are like cc-by-4.0" in said(capsys)
    assert hub.asked == []


def test_what_goes_up_and_who_can_read_it_is_said_before(hub, capsys):
    assert main([word for word in PUSH if word != "--yes"]) == 2
    err = said(capsys)
    assert "Everyone can read its prompts and 20 responses, under mit." in err
    assert "Nothing was uploaded, because there is no terminal to confirm on. Add --yes" in err
    assert hub.repositories == {}


def test_a_private_scan_is_hidden_from_others(hub, capsys, monkeypatch):
    assert main([*PUSH, "--private"]) == 0
    assert "to private hf://datasets/org/scan" in said(capsys)
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    assert main(["show", NAME]) == 2
    assert "Can't find the data set org/scan on the Hub. Check the name; if it is private" in said(capsys)


def test_a_public_data_set_is_not_taken_for_a_private_one(hub, capsys):
    hub.repository("datasets/org/scan").commit({})
    assert main([*PUSH, "--private"]) == 2
    assert "org/scan exists and is public. Make it private at" in said(capsys)


def test_an_earlier_upload_is_replaced_with_force_only(hub, capsys):
    others = {"notes.md": b"mine", "layers-00007.parquet": b"old", "scan.json": b"old"}
    hub.repository("datasets/org/scan").commit(others)
    assert main(PUSH) == 2
    assert "org/scan already has files (layers-00007.parquet, notes.md, scan.json)" in said(capsys)
    assert main([*PUSH, "--force"]) == 0
    assert "layers-00007.parquet" not in uploaded(hub)
    assert uploaded(hub)["notes.md"] == b"mine"


def test_a_branch_begins_at_main(hub):
    hub.repository("datasets/org/scan").commit({"notes.md": b"mine"})
    assert main([*PUSH, "--revision", "v2", "--force"]) == 0
    assert uploaded(hub).keys() == {"notes.md"}
    assert {"notes.md", "scan.json"} <= uploaded(hub, branch="v2").keys()
    assert store.record(store.find(f"{NAME}@v2"))["model"] == "demo-qwen3"


def changed(folder: Path, column: str, text: str) -> Path:
    """A copy of the bundled scan with another text in its first rollout, which its record lists."""
    shutil.copytree(DEMO, folder)
    path = folder / "rollouts-00000.parquet"
    table = pq.read_table(path)
    texts = [text, *table[column].to_pylist()[1:]]
    store.write_table(path, table.set_column(table.column_names.index(column), column, pa.array(texts)))
    record = json.loads((folder / records.RECORD).read_text())
    record.pop("checksum", None)
    record["files"][path.name] = files.fingerprint(path)
    records.write(folder / records.RECORD, record)
    return folder


def test_a_text_with_an_access_token_is_not_uploaded_unchecked(hub, tmp_path, capsys):
    folder = changed(tmp_path / "mine", "response", "my key is hf_abcdefghijklmnop, use it")
    assert main(["push", str(folder), *PUSH[2:]]) == 2
    assert "Rollout 0 looks as if it held an access token, in response. Nothing was uploaded." in said(capsys)
    assert hub.repositories == {}
    assert main(["push", str(folder), *PUSH[2:], "--texts-checked"]) == 0


def test_the_token_of_the_user_is_in_no_uploaded_file(hub):
    assert main(PUSH) == 0
    assert not any(hub_server.TOKEN.encode() in content for content in uploaded(hub).values())


def test_a_damaged_scan_is_not_uploaded(hub, copied, capsys):
    path = copied / "layers-00000.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert main(["push", str(copied), *PUSH[2:]]) == 2
    assert "layers-00000.parquet is missing or was altered" in said(capsys)
    assert hub.repositories == {}


def test_a_dry_run_writes_the_card_and_asks_the_hub_nothing(hub, here, capsys):
    words = ["push", "demo-qwen3", "org/scan", "--license", "mit", "--dry-run", "card"]
    assert main(words) == 0
    assert "`push` would upload 13 files" in said(capsys)
    assert {path.name for path in (here / "card").iterdir()} == {"README.md", "flow.png"}
    assert hub.asked == []
    assert main(words) == 2
    assert "already exists" in said(capsys)


def test_errors_of_an_upload_are_one_sentence_with_the_remedy(hub, capsys, monkeypatch):
    assert main(["push", "demo-qwen3", "name", *PUSH[3:]]) == 2
    assert "'name' isn't the name of a repository. Write org/name." in said(capsys)
    assert main(["push", "demo-qwen3", "strangers/name", *PUSH[3:]]) == 2
    assert "The Hub doesn't let you write to strangers/name. Log in with `hf auth login`" in said(capsys)
    assert main([*PUSH[:3], "--license", "nonsense", "--yes"]) == 2
    assert 'The Hub refuses the card ("license" must be one of' in said(capsys)
    assert hub.repositories == {}
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    assert main(PUSH) == 2
    assert "The Hub doesn't let you write to org/scan" in said(capsys)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(PUSH) == 2
    assert "because the Hub can't be reached" in said(capsys)


def front(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_tells_the_hub_where_each_table_is():
    about = front(markdown(view.default(DEMO), "org/scan", "cc-by-4.0"))
    assert about["license"] == "cc-by-4.0"
    assert {row["config_name"]: row["data_files"] for row in about["configs"]} == {
        "layers": "layers-*.parquet",
        "rollouts": "rollouts-*.parquet",
        "policies": "policies-*.parquet",
        "vocabulary": "vocabulary.parquet",
    }


def test_the_card_has_what_a_reader_needs():
    text, record = markdown(view.default(DEMO), "org/scan", "mit"), store.record(DEMO)
    for known in (record["asked"]["identity"], "bfloat16 on cpu", "torch 2.13.0+cpu", "Target layer: 6", "](flow.png)"):
        assert known in text
    assert all(about["sha256"] in text for about in record["files"].values())
    assert "| 7 | 3.418 | 0.199 | 0.016 | -0.076 | +2.643 | -0.300 |" in text
    assert 'ip.open_scan("hf://datasets/org/scan")' in text


def test_texts_of_a_record_have_no_meaning_in_the_card(tmp_path):
    shutil.copytree(DEMO, tmp_path / "mine")
    record = json.loads((DEMO / records.RECORD).read_text())
    record.pop("checksum", None)
    evil = 'a"\n---\nlicense: evil\n<script>alert(1)</script> | [x](http://evil)'
    records.write(tmp_path / "mine" / records.RECORD, record | {"model": evil})
    text = markdown(view.default(tmp_path / "mine"), "org/scan", "mit")
    assert front(text)["license"] == "mit"
    body = text.split("---\n", 2)[2]
    assert '\n# Internal policies of a" --- license: evil \\<script\\>alert(1)' in body
    assert "\\| \\[x\\](http://evil)" in body


@pytest.mark.filterwarnings("ignore")
def test_datasets_reads_every_table(tmp_path):
    from datasets import load_dataset

    folder = Path(shutil.copytree(DEMO, tmp_path / "mine"))
    (folder / "README.md").write_text(markdown(view.default(DEMO), "org/scan", "mit"))
    for name in card.TABLES:
        loaded = load_dataset(str(folder), name, split="train", cache_dir=str(tmp_path / "cache"))
        table = pa.concat_tables(store.pieces(DEMO, name))
        assert (loaded.column_names, len(loaded)) == (table.column_names, table.num_rows)


@pytest.mark.slow
def test_the_card_of_a_scan_has_a_picture(tmp_path, monkeypatch):
    monkeypatch.undo()  # the figure is drawn
    monkeypatch.chdir(tmp_path)
    assert main(["push", "demo-qwen3", "org/scan", "--license", "mit", "--dry-run", "card"]) == 0
    assert Path("card/flow.png").read_bytes().startswith(b"\x89PNG")
