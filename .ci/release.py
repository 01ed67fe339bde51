"""Check that a tag can be released: `python .ci/release.py v0.2.0`."""

import re
import sys
import tomllib
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parent.parent


def problems(tag: str, root: Path = ROOT) -> list[str]:
    """What keeps a tag from being released, a sentence each."""
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    named = {
        "internal_policy/__init__.py": rf'^__version__ = "{re.escape(version)}"$',
        "CITATION.cff": rf"^version: {re.escape(version)}$",
        "README.md": rf"version = \{{{re.escape(version)}\}}",
        "recipe/recipe.yaml": rf'^  version: "{re.escape(version)}"$',
    }
    found = [] if tag == f"v{version}" else [f"The tag is {tag}, but pyproject.toml has version {version}."]
    for file, pattern in named.items():
        if not re.search(pattern, (root / file).read_text(), re.MULTILINE):
            found.append(f"{file} doesn't have version {version}.")
    heading = re.search(rf"^## \[?{re.escape(version)}\b.*$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    day = heading and re.search(r"\d{4}-\d{2}-\d{2}", heading[0])
    if not day:
        found.append(f"CHANGELOG.md has no heading with version {version} and its date: ## {version} ({date.today()}).")
    elif date.fromisoformat(day[0]) > date.today():
        found.append(f"CHANGELOG.md dates version {version} in the future: {day[0]}.")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(problems(sys.argv[1])) or 0)
