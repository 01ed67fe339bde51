"""Find the checkpoints of a training run, in a folder or among the branches and tags of a hub model."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

from internal_policy import files
from internal_policy.errors import InputError, joined
from internal_policy.models import folder
from internal_policy.models.failures import explained

NAMED = re.compile(r"(?:step|checkpoint|ckpt|iter|epoch)s?[-_]?(\d{1,15})(?!\d)", re.IGNORECASE)
"""Where the name of a checkpoint has its step: checkpoint-40, step1000, global_step_20, stage1-step1000-tokens4B."""
HEADER = 8
"""Bytes at the beginning of a safetensors file: the length of its header."""
LONGEST = 100_000_000
"""Longest header of a safetensors file in bytes, as its format says."""
NETWORK = ("httpx", "httpx2", "httpcore", "requests")
"""Packages whose errors mean that the hub can't be reached; versions of huggingface_hub use different ones."""
LISTED = 5
"""Names in a message at most."""


@dataclass(frozen=True)
class Member:
    """A checkpoint of a series."""

    step: int
    """The step after which it was saved."""
    name: str
    """The name of its folder, branch or tag."""
    place: str
    """What its model is loaded from: a folder or a hub id."""
    revision: str = "main"
    """The commit of a hub model."""


@dataclass(frozen=True)
class Series:
    """The checkpoints of one training run."""

    name: str
    """What the series is called."""
    place: str
    """Where it was found: the absolute path of a folder, or a hub id with the pattern of its revisions."""
    members: Sequence[Member]
    """Its complete checkpoints by step."""
    skipped: Sequence[str] = ()
    """Why each incomplete checkpoint is left out, in sentences."""


def find(place: str) -> Series:
    """The checkpoints in a folder, or those of a hub model whose branches or tags match, as in `org/model@step*`.

    Raises InputError if there are none, two have the same step, or the hub can't be reached.
    """
    if files.is_folder(Path(place)):
        return _in_folder(Path(place))
    name, at, pattern = place.partition("@")
    if not at or name.count("/") != 1 or not pattern:
        raise InputError(
            f"There is no folder '{place:.80}'. Give a folder of checkpoints, or a hub model with the names of its "
            "branches or tags, such as 'EleutherAI/pythia-14m@step*'."
        )
    return _on_hub(name, pattern)


def step_of(name: str) -> int | None:
    """The step in the name of a checkpoint; None if the name has none."""
    found = NAMED.findall(name) or re.findall(r"^\d{1,15}$", name)
    return int(found[-1]) if found else None


def chosen(members: Sequence[Member], steps: str | None, every: int) -> list[Member]:
    """The checkpoints at `steps`, such as `0-1000,5000-`, that are multiples of `every`. Raises InputError."""
    if every < 1:
        raise InputError(f"--every-step is {every}; it must be 1 or more.")
    spans = [(0, None)] if steps is None else [_span(part.strip()) for part in steps.split(",")]
    found = [
        one
        for one in members
        if one.step % every == 0 and any(low <= one.step and (high is None or one.step <= high) for low, high in spans)
    ]
    if not found:
        known = ", ".join(str(one.step) for one in members[:LISTED]) + (" ..." if len(members) > LISTED else "")
        raise InputError(f"No checkpoint has such a step; there are {known}. Choose other --steps or --every-step.")
    return found


def _span(text: str) -> tuple[int, int | None]:
    match = re.fullmatch(r"(\d{1,15})(-(\d{1,15})?)?", text)
    low, high = (int(match[1]), int(match[3]) if match[3] else None if match[2] else int(match[1])) if match else (1, 0)
    if high is not None and high < low:
        raise InputError(f"'{text:.60}' in --steps isn't a step or a range. Write steps such as 0-1000,5000-.")
    return low, high


def _in_folder(place: Path) -> Series:
    """The checkpoints among the folders in a folder."""
    inside = [path for path in place.iterdir() if path.is_dir() and step_of(path.name) is not None]
    why = {path: incomplete(path) for path in inside}
    skipped = [f"Skipping {path.name}, which isn't complete: {said}" for path, said in sorted(why.items()) if said]
    whole = [Member(step_of(path.name) or 0, path.name, str(path)) for path in inside if not why[path]]
    if not whole:
        more = f" {skipped[0]}" if skipped else ""
        raise InputError(
            f"There are no complete checkpoints in {place}. Give a folder with folders such as checkpoint-100 or "
            f"step1000, each with a model or an adapter.{more}"
        )
    return Series(place.resolve().name, str(place.resolve()), _ordered(whole), skipped)


def _on_hub(name: str, pattern: str) -> Series:
    """The branches and tags of a hub model whose names match a pattern, each at its present commit."""
    with explained(name, pattern):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import OfflineModeIsEnabled

        try:
            refs = HfApi().list_repo_refs(name)
        except Exception as error:
            network = type(error).__module__.partition(".")[0] in NETWORK
            if not network and not isinstance(error, OfflineModeIsEnabled):
                raise
            raise InputError(
                f"Can't list the branches and tags of {name} because the hub can't be reached. Check the network, or "
                "give a folder of checkpoints."
            ) from error
        commits = {ref.name: ref.target_commit for ref in (*refs.branches, *refs.tags)}
    matching = {each: commit for each, commit in commits.items() if fnmatchcase(each, pattern)}
    steps = {each: step_of(each) for each in matching}
    whole = [Member(step, each, name, matching[each]) for each, step in steps.items() if step is not None]
    if not whole:
        listed = f"It has {joined(sorted(commits)[:LISTED])}{' and more' if len(commits) > LISTED else ''}."
        raise InputError(f"{name} has no branch or tag with a step that matches '{pattern}'. {listed}")
    unnumbered = [f"Skipping {each}, whose name has no step." for each, step in sorted(steps.items()) if step is None]
    return Series(name, f"{name}@{pattern}", _ordered(whole), unnumbered)


def _ordered(members: Iterable[Member]) -> list[Member]:
    """Checkpoints by step. Raises InputError if two have the same."""
    found = sorted(members, key=lambda one: (one.step, one.name))
    for one, other in pairwise(found):
        if one.step == other.step:
            raise InputError(
                f"Both {one.name} and {other.name} are step {one.step}. Choose checkpoints of one training run, on the "
                "hub with a narrower pattern such as 'stage1-step*'."
            )
    return found


def incomplete(path: Path) -> str | None:
    """Why the folder of a checkpoint isn't complete, in a sentence; None if it is."""
    try:
        folder.check(path)
    except InputError as error:
        return str(error)
    weights = sorted(path.glob("*.safetensors"))
    if any("-of-" in one.name for one in weights) and not (path / folder.INDEX).is_file():
        return f"{folder.INDEX} is missing."
    if short := [one.name for one in weights if _is_short(one)]:
        return f"{short[0]} is cut short."
    return None


def _is_short(path: Path) -> bool:
    """Whether a safetensors file ends before the last weight that its header names."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(HEADER), "little")
        if size < HEADER or length > min(size - HEADER, LONGEST):
            return True
        try:
            header = json.loads(file.read(length))
            ends = [each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return False  # damaged rather than short, which loading says better
    return size < HEADER + length + max((end for end in ends if isinstance(end, int)), default=0)
