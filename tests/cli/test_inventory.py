"""Finding scans, training runs and evaluations by name."""

import json
from pathlib import Path

import pytest

from internal_policy import bundle
from internal_policy.__main__ import main
from internal_policy.cli import inventory
from internal_policy.cli.evaluate import ASKED
from internal_policy.errors import InputError, counted
from internal_policy.look import runs
from internal_policy.scans import store

SCAN, RUN = bundle.DATA / "scans" / "demo-qwen3", bundle.DATA / "experiments" / "bupo"


@pytest.fixture
def cache(here) -> Path:
    """A cache with two scans, a training run, an evaluation and an unfinished sample."""
    root = store.root()
    written = {
        "mine/3fa900000000": store.ASKED,
        "mine/3fb100000000": store.ASKED,
        "runs/demo-qwen3-bupo-a1b2c3": runs.RECORD,
        "evaluations/77aa00000000": ASKED,
        "rollouts/0badc0ffee00": "0/rollouts-00000.parquet",
    }
    for folder, name in written.items():
        (root / folder / name).parent.mkdir(parents=True)
        (root / folder / name).write_text(json.dumps({}))
    return root


@pytest.mark.parametrize(
    ("name", "kind", "folder"),
    [
        ("3fa900000000", "scan", "mine/3fa900000000"),
        ("3fb", "scan", "mine/3fb100000000"),
        ("runs/demo-qwen3-bupo-a1b2c3", "run", "runs/demo-qwen3-bupo-a1b2c3"),
        ("demo-qwen3-bupo-a1b2c3", "run", "runs/demo-qwen3-bupo-a1b2c3"),
        ("demo-qwen3-b", "run", "runs/demo-qwen3-bupo-a1b2c3"),
        ("77aa", "evaluation", "evaluations/77aa00000000"),
        ("rollouts/0bad", "sample", "rollouts/0badc0ffee00"),
    ],
)
def test_an_item_of_the_cache_is_found_by_its_name_or_its_beginning(name, kind, folder, cache):
    found = inventory.find(name)
    assert (found.kind, found.folder, found.bundled) == (kind, cache / folder, False)


@pytest.mark.parametrize(
    ("name", "folder"), [("demo-qwen3", SCAN), ("experiments/bupo", RUN), ("grpo", RUN / "../grpo")]
)
def test_what_comes_with_the_package_is_found_by_its_name(name, folder, cache):
    found = inventory.find(name)
    assert (found.folder, found.bundled) == (folder.resolve(), True)


def test_an_item_is_found_by_its_folder(cache, copied):
    assert inventory.find(str(copied)) == inventory.Item("scan", copied, str(copied))
    assert inventory.find(str(SCAN)).bundled
    assert inventory.find(str(cache / "mine" / "3fa900000000")).name == "3fa900000000"


def test_a_folder_with_the_name_of_a_scan_doesnt_hide_it(cache, here):
    (here / "demo-qwen3").mkdir()
    assert inventory.find("demo-qwen3").folder == SCAN


@pytest.mark.parametrize(
    ("name", "kinds", "said"),
    [
        ("3f", (), "'3f' could be 3f.*00000000 or 3f.*00000000. Type more of the name."),
        ("e", (), "'e' could be any of 3: "),
        ("zz", ("scan",), "There is no scan 'zz' in .*cache. Choose one of .*demo-qwen3"),
        ("zz", ("scan", "run"), "There is no scan or training run 'zz'"),
        ("77aa", ("scan", "run"), "There is no scan or training run '77aa'"),
        ("", (), "There is no scan, training run or evaluation ''"),
        ("empty", (), "There is no scan, training run or evaluation in empty. Choose one of"),
        ("x" * 300, (), "There is no scan"),
    ],
)
def test_a_name_of_nothing_or_of_several_is_refused_with_the_choices(name, kinds, said, cache, here):
    (here / "empty").mkdir()
    with pytest.raises(InputError, match=said):
        inventory.find(name, *kinds)


@pytest.mark.parametrize("name", ["experiments/bupo", str(bundle.DATA / "experiments" / "bupo")])
@pytest.mark.parametrize("command", [["plot", "{}", "flow", "-o", "x.html"], ["export", "{}"], ["report", "{}"]])
def test_commands_for_scans_say_what_to_do_with_a_training_run(command, name, here, capsys):
    assert main([word.format(name) for word in command]) == 2
    said = f"{name} is a training run, and this needs a scan. Use `internal-policy show {name}`, or draw it with"
    assert said in capsys.readouterr().err


def test_numbers_agree_with_their_noun():
    assert [counted(n, "rollout") for n in (0, 1, 2, 1200)] == [
        "0 rollouts",
        "1 rollout",
        "2 rollouts",
        "1,200 rollouts",
    ]
