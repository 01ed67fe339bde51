"""Tell what a model is called in lists, tables and figures."""

from pathlib import Path

from internal_policy import files

RUN, MODEL = "run.json", "model"
"""Names in the folder of a training run: its settings, and the trained model."""


def title(name: str) -> str:
    """What a model is called, by the folder, hub id or bundled name that loads it.

    A hub id or bundled name is kept, and a folder has its own name. The model of a training run is called after the
    run, and another folder in it, such as a checkpoint, after both: `bupo` and `bupo-checkpoint-40`.
    """
    path = Path(name)
    if not files.is_folder(path):
        return name
    path = path.resolve()
    if not (path.parent / RUN).is_file():
        return path.name
    return path.parent.name if path.name == MODEL else f"{path.parent.name}-{path.name}"
