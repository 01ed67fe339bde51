"""All tests here start real commands and take long: they run with -m slow."""

from pathlib import Path

import pytest
from faults.commands import COMMANDS
from faults.harness import Reference, undisturbed

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder as slow."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def references(tmp_path_factory):
    """A function that gives each command as it ends undisturbed."""
    known: dict[str, Reference] = {}

    def reference(name: str) -> Reference:
        if name not in known:
            known[name] = undisturbed(COMMANDS[name], tmp_path_factory.mktemp(name) / "room")
        return known[name]

    return reference
