"""The public API: what `import internal_policy` gives."""

import inspect
import tomllib
from pathlib import Path

import pytest

import internal_policy as ip
from internal_policy.cli.main import main

ROOT = Path(__file__).parent.parent


def test_every_public_name_can_be_imported():
    assert all(getattr(ip, name) is not None for name in ip.__all__)


def test_tab_completion_offers_the_public_names():
    assert dir(ip) == sorted(ip.__all__)


@pytest.mark.parametrize("name", [name for name in ip.__all__ if name not in ("FINAL", "__version__")])
def test_every_public_name_has_a_docstring(name):
    assert len(inspect.getdoc(getattr(ip, name)) or "") > 80


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'scam'"):
        ip.scam  # noqa: B018


def test_the_version_is_the_one_in_pyproject():
    assert ip.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_command_line_prints_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"internal-policy {ip.__version__}\n"
