"""What comes with the package: demo models, problems, recipes, scans, the dashboard and modules of notebooks."""

from pathlib import Path

PACKAGE = Path(__file__).parent
DATA = next((p for p in (PACKAGE / "data", PACKAGE.parent / "data") if p.is_dir()), PACKAGE / "data")
"""The bundled models, problems, recipes and scans: inside an installed package, beside the package in a checkout."""
APP = next((p for p in (PACKAGE / "app", PACKAGE.parent / "app") if p.is_dir()), PACKAGE / "app")
"""The dashboard's folder, likewise."""
NOTEBOOKS = next(
    (p for p in (PACKAGE / "notebooks", PACKAGE.parent / "notebooks") if p.is_dir()), PACKAGE / "notebooks"
)
"""The modules that a notebook imports, likewise."""


def model(name: str) -> Path | None:
    """The folder of the bundled model with this name; None if there is none."""
    return {path.name: path for path in (DATA / "models").glob("demo-*")}.get(name)


def recipe(name: str | None) -> str | None:
    """The file of the bundled recipe or chat template with this name; anything else is returned as it is."""
    found = {path.stem: str(path) for path in (DATA / "recipes").iterdir()}
    return found.get(name or "", name)


def scans() -> list[Path]:
    """Folders of the bundled scans: that of a real language model, then those of the demo models."""
    found = [path.parent for path in (DATA / "scans").glob("*/scan.json")]
    return sorted(found, key=lambda folder: (folder.name.startswith("demo-"), folder.name))


def ablations() -> list[Path]:
    """Folders of the bundled ablations, each beside its scan."""
    return sorted(path.parent for path in (DATA / "scans").glob("*/ablation.json"))


def alignments() -> list[Path]:
    """Folders of the bundled alignments."""
    return sorted(path.parent for path in (DATA / "scans").glob("*/alignment.json"))


def runs() -> list[Path]:
    """Folders of the bundled training runs."""
    return sorted(path.parent for path in (DATA / "experiments").glob("*/metrics.parquet"))
