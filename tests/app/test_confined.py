"""Which folders the dashboard opens, whatever the address and the boxes on its pages say."""

import importlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from internal_policy import bundle
from internal_policy.__main__ import main
from internal_policy.errors import InputError
from internal_policy.scans import store

pytest.importorskip("streamlit")
from streamlit.testing.v1 import AppTest

APP = Path(__file__).parents[2] / "app"
DEMO = bundle.DATA / "scans" / "demo-qwen3"
ALIGNED = bundle.DATA / "scans" / "demo-qwen3-alignment"
RUN = bundle.DATA / "experiments" / "bupo"
SAID = "is outside the cache. To open it, name it when you start the dashboard: internal-policy dashboard"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache with a scan, while the command line names no folder and this process works in the folder `secret`."""
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.syspath_prepend(str(APP))
    shutil.copytree(DEMO, tmp_path / "cache" / "model" / "0123456789ab")
    (tmp_path / "secret").mkdir()
    monkeypatch.chdir(tmp_path / "secret")
    return tmp_path / "cache"


@pytest.fixture
def secret(tmp_path) -> Path:
    """A folder outside the cache with a scan, a training run, a model and an alignment."""
    folder = tmp_path / "secret"
    for name, source in {"scan": DEMO, "run": RUN, "alignment": ALIGNED}.items():
        shutil.copytree(source, folder / name)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    return folder


def module(name: str) -> Any:
    return importlib.import_module(name)


def spellings(folder: Path, cache: Path) -> list[str]:
    """Ways to name a folder."""
    home = os.path.relpath(folder, Path.home())
    (cache / "model" / "link").symlink_to(folder)
    return [
        str(folder),
        f"{folder}/",
        f"{cache}/../secret/{folder.name}",
        f"../secret/{folder.name}",
        f"model/../../secret/{folder.name}",
        f"model/0123456789ab/../../../secret/{folder.name}",
        f"{cache}/model/link",
        "model/link",
        f"~/{home}",
        f"/proc/self/cwd/{folder.name}",
        folder.name,
        f"./{folder.name}",
        f"./././{folder.name}",
    ]


def test_no_spelling_opens_a_scan_outside_the_cache(secret, cache):
    for name in spellings(secret / "scan", cache):
        with pytest.raises(InputError, match=SAID):
            module("scans").find(name)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "/etc", "/dev/zero", "..", ".", "/", "~", "~root", "a\0b/c", "x/" * 3000]
)
def test_other_files_and_folders_are_refused_without_a_look(name, cache):
    with pytest.raises(InputError) as error:
        module("scans").find(name)
    assert "outside the cache" in str(error.value) or "File name too long" in str(error.value)
    assert len(str(error.value)) < 700


def test_a_folder_that_does_not_exist_is_refused_in_the_same_words(secret, cache):
    with pytest.raises(InputError, match=SAID):
        module("scans").find(str(secret / "nothing"))


@pytest.mark.parametrize("name", ["model/0123456789ab", "0123", "demo-llama"])
def test_scans_of_the_cache_and_the_package_open(name, cache):
    assert module("scans").find(name).name in ("0123456789ab", "demo-llama")


def test_scans_open_by_their_path_in_the_cache(cache):
    folder = cache / "model" / "0123456789ab"
    assert module("scans").find(str(folder)) == folder


def test_what_the_command_line_names_opens_and_is_listed_first(secret, cache, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "", str(secret)])
    assert next(iter(module("scans").listed())) == str(secret / "scan")
    assert module("scans").find(str(secret / "scan")) == secret / "scan"
    assert str(secret / "run") in module("confined").of_runs()
    assert str(secret / "model") in module("confined").of_models()
    assert module("views.prompt").checked(str(secret / "model")) == str(secret / "model")


def test_only_the_named_folder_opens_not_the_ones_beside_it(secret, cache, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", str(secret / "run")])
    for name in spellings(secret / "scan", cache):
        with pytest.raises(InputError, match=SAID):
            module("scans").find(name)


def test_links_in_the_cache_that_lead_outside_are_not_listed(secret, cache):
    (cache / "model" / "link").symlink_to(secret / "scan")
    (cache / "model" / "aligned").symlink_to(secret / "alignment")
    (cache / "runs").symlink_to(secret)
    assert "model/link" in [folder.relative_to(cache).as_posix() for folder in store.scans()]
    assert not {"model/link", "runs/scan"} & {*module("scans").listed()}
    assert "runs/run" not in module("confined").of_runs()
    assert not module("confined").holds(cache / "model" / "aligned")


def test_a_cache_behind_a_link_opens(cache, tmp_path, monkeypatch):
    (tmp_path / "other").symlink_to(cache)
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path / "other"))
    assert module("scans").find("model/0123456789ab")


def test_no_spelling_loads_a_model_outside_the_cache(secret, cache):
    for name in spellings(secret / "model", cache):
        with pytest.raises(InputError, match="that may be opened"):
            module("views.prompt").checked(name)


def refusals(page: str, **query: Any) -> list[str]:
    app = AppTest.from_file(str(APP / "main.py"), default_timeout=30)
    for name, value in query.items():
        app.query_params[name] = value
    app.switch_page(f"views/{page}.py").run()
    assert not app.exception
    return [text.value for text in app.text if text.value.startswith("⚠")]


def test_no_address_opens_a_training_run_outside_the_cache(secret, cache):
    for name in spellings(secret / "run", cache)[:10:3]:
        (said,) = refusals("training", run=name)
        assert "outside the cache" in said


@pytest.mark.slow
def test_every_spelling_of_a_folder_outside_is_refused_on_every_page(secret, cache):
    for name in spellings(secret / "run", cache):
        (said,) = refusals("training", run=name)
        assert "outside the cache" in said
    (cache / "model" / "link").unlink()
    for name in spellings(secret / "scan", cache):
        assert all("outside the cache" in said for said in refusals("overview", scan=name))
        assert any("outside the cache" in said for said in refusals("compare", scan="demo-qwen3", compare=[name]))
    (cache / "model" / "link").unlink()
    for name in spellings(secret / "alignment", cache):
        app = AppTest.from_file(str(APP / "main.py"), default_timeout=30)
        app.query_params["alignment"] = name
        app.switch_page("views/alignment.py").run()
        assert name not in app.selectbox(key="alignment").options
        assert app.selectbox(key="alignment").value != name


def test_the_command_refuses_a_folder_that_does_not_exist(capsys):
    assert main(["dashboard", "nowhere"]) == 2
    assert "There is no folder nowhere." in capsys.readouterr().err


def test_the_command_hands_its_folders_to_the_server(secret, cache, monkeypatch):
    from streamlit.web import cli

    given: list[str] = []
    monkeypatch.setattr(cli, "main", lambda words, **_: given.extend(words))
    assert main(["dashboard", str(secret / "run"), "--scan", str(secret / "scan")]) == 0
    assert given[given.index("--") + 1 :] == [str(secret / "run"), str(secret / "scan")]
