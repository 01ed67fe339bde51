"""`internal-policy mcp`: what its tools answer, over the SDK's own client, and what they may not open."""

import asyncio
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import one_sentence

from internal_policy import bundle
from internal_policy.__main__ import main
from internal_policy.cli.served import answer, places
from internal_policy.cli.served.tools import Tools
from internal_policy.errors import InputError

SCANS = bundle.DATA / "scans"
TESTS = Path(__file__).parent.parent


@pytest.fixture
def tools(here) -> Tools:
    """Tools that may open no folder outside the cache and the package."""
    return Tools()


# over the protocol


async def _asked(given: list[str], env: dict[str, str], calls: list[tuple[str, dict[str, Any]]]) -> tuple[Any, list]:
    from mcp import Client, StdioServerParameters

    words = ["-m", "internal_policy", "mcp", *given]
    async with Client(StdioServerParameters(command=sys.executable, args=words, env=env)) as client:
        listed = (await client.list_tools()).tools
        return listed, [await client.call_tool(name, arguments) for name, arguments in calls]


def test_the_sdks_client_lists_and_calls_every_tool_without_writing_or_connecting(here):
    pytest.importorskip("mcp")
    shutil.copytree(SCANS / "demo-qwen3", here / "scans" / "mine")
    before = {path: path.stat().st_mtime_ns for path in here.parent.rglob("*")}
    paths = [str(TESTS.parent), str(TESTS / "refusing"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CONNECTIONS": str(here.parent / "connections")}
    mine = str(here / "scans" / "mine")
    calls = [
        ("list", {"kind": "scan"}),
        ("show", {"name": mine, "readout": "norm"}),
        ("compare", {"a": "demo-qwen3", "against_readout": "norm", "sites": ["final"]}),
        ("tokens", {"name": "demo-qwen3", "rollout": 3, "count": 2, "layers": [0, 8]}),
        ("check", {"name": "demo-qwen3"}),
        ("show", {"name": "/etc"}),
        ("tokens", {"name": "demo-qwen3", "count": "many"}),
    ]
    listed, answers = asyncio.run(_asked([str(here / "scans")], {**env}, calls))
    assert [tool.name for tool in listed] == ["list", "show", "compare", "tokens", "check"]
    assert all(tool.annotations.read_only_hint and not tool.annotations.open_world_hint for tool in listed)
    assert [bool(one.is_error) for one in answers] == [False] * 5 + [True] * 2
    texts = [one.content[0].text for one in answers]
    found = [json.loads(text) for text in texts[:5]]
    assert all(one["note"] == answer.NOTE for one in found)
    names = [row["name"] for row in found[0]["data"]["items"]]
    assert {"smollm2-135m", "demo-qwen3", mine} <= {*names}
    assert (found[1]["data"]["readout"], len(found[1]["data"]["entropy"])) == ("norm", 9)
    assert {row["site"] for row in found[2]["data"]["differences"]} == {"final"}
    assert [[row["layer"] for row in one["layers"]] for one in found[3]["data"]["tokens"]] == [[0, 8], [0, 8]]
    assert len(found[4]["data"]["verdicts"]) == 6
    assert "that this server may open" in texts[5]
    assert "Traceback" not in texts[6]
    assert {path: path.stat().st_mtime_ns for path in here.parent.rglob("*")} == before


def test_a_missing_sdk_is_named(here, capsys, monkeypatch):
    monkeypatch.setattr("internal_policy.errors.find_spec", lambda _: None)
    assert main(["mcp"]) == 2
    one_sentence(capsys, "Run: pip install 'internal-policy[mcp]'", here)


# what may be opened


@pytest.fixture
def outside(tools, here) -> Path:
    """A scan outside the cache, the package and the named folders."""
    return Path(shutil.copytree(SCANS / "demo-qwen3", here / "outside"))


@pytest.mark.parametrize("name", ["outside", "./outside", "..", "/", "hf://datasets/org/name", "\0", "x" * 5000, ""])
def test_only_the_cache_the_package_and_named_folders_are_opened(name, tools, outside):
    for ask in (tools.show, tools.check, tools.tokens):
        with pytest.raises(InputError, match="that this server may open"):
            ask(name)
    with pytest.raises(InputError, match="that this server may open"):
        tools.compare("demo-qwen3", name)


def test_a_path_outside_is_not_looked_at(tools, outside):
    with pytest.raises(InputError) as there:
        tools.show(str(outside))
    with pytest.raises(InputError) as nothing:
        tools.show(str(outside.with_name("nothing")))
    said = [re.sub("'.*?'", "", str(error.value)) for error in (there, nothing)]
    assert said[0] == said[1]


def test_a_link_in_a_named_folder_does_not_lead_out_of_it(tools, outside, here):
    (here / "named").mkdir()
    (here / "named" / "link").symlink_to(outside)
    assert places.items([here / "named"]) == places.items([])
    assert not places.holds(here / "named" / "link", [here / "named"])


def test_the_scan_of_an_ablation_is_not_looked_for_outside(tools, here):
    shutil.copytree(SCANS / "demo-qwen3-ablation", here / "named" / "ablation")
    found = Tools([here / "named"]).show(str(here / "named" / "ablation"))
    assert found["scan"]["name"] == "demo-qwen3"
    assert not Tools([])._may_open(here / "named")


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda tools: tools.tokens("demo-qwen3", count=17), "1 to 16 tokens"),
        (lambda tools: tools.tokens("demo-qwen3", rollout=99), "99"),
        (lambda tools: tools.tokens("demo-qwen3", site="nowhere"), "nowhere"),
        (lambda tools: tools.show("demo-qwen3", "tuned"), "tuned"),
        (lambda tools: tools.show("experiments/bupo", "norm"), "readout only applies to scans"),
        (lambda tools: tools.compare("demo-qwen3"), "two scans, or one scan and against_readout"),
        (lambda tools: tools.compare("demo-qwen3", "demo-qwen3"), "with itself"),
        (lambda tools: tools.show("demo"), "could be"),
    ],
)
def test_a_wrong_question_is_answered_in_a_sentence(ask, said, tools):
    with pytest.raises(InputError, match=said):
        ask(tools)


# how answers are written


def test_characters_that_cannot_be_seen_are_escaped():
    hidden = "a\x1b[2J\u202eb\u200b\U000e0041\ud800é字\n"
    text = answer.written({"response": hidden})
    assert all(one.isprintable() for one in text)
    assert "é字" in text
    assert "\\u001b" in text
    assert "\\udb40\\udc41" in text
    assert json.loads(text)["data"]["response"] == hidden


def test_long_texts_and_lists_are_cut_and_marked():
    found = answer.bounded({"text": "a" * 1500, "rows": [*range(250)], "x": [float("nan"), 0.123456789]})
    assert found["text"].endswith("a... and 500 more characters, which were left out")
    assert found["rows"][-2:] == [199, "... and 50 more, which were left out"]
    assert found["x"] == [None, 0.12346]


def test_an_answer_that_is_too_long_is_refused():
    with pytest.raises(InputError, match="100,000 are allowed"):
        answer.written([["a" * 900] * 200])
