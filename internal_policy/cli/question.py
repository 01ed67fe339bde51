"""Which options can change the numbers, with the contents of their files: the key of the cache."""

import dataclasses
import json
from collections.abc import Iterable, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import Any

from internal_policy import files
from internal_policy.cli import lens_files
from internal_policy.cli.common import ResponseOptions
from internal_policy.cli.lens_files import LensFile
from internal_policy.models import checkpoint, templates, tokenizers
from internal_policy.tasks import rows
from internal_policy.tasks.formats import table
from internal_policy.tasks.formats.response import Response

LATER: dict[str, Any] = {
    "reader": "hooks",
    "remote": False,
    "text": (),
    "gguf_file": None,
    "quantize": None,
    "positions": None,
    "every": 1,
    "engine": "local",
    "tensor_parallel": 1,
    "served_model": None,
    **dict.fromkeys(("system_prompt", "prompt_suffix", "checkpoints", "steps", "sampled_from")),
    "every_step": 1,
}
"""Options of later versions -> their defaults. A question leaves these out, so that older scans still answer it."""
ELSEWHERE = {"lens", "lens_of_another_model", "force", "shard", "url", "max_memory", "offload_folder"}
"""Options of any command that are recorded in another way, or that don't change the numbers: a server may move."""


def of(
    options: ResponseOptions,
    unused: Set[str],
    paths: Iterable[str | None],
    rollouts: Sequence[str] = (),
    *,
    texts: Sequence[str] = (),
    lenses: Sequence[LensFile] = (),
) -> dict[str, Any]:
    """The options that can change the numbers, with the contents of their files. It is the key of the cache."""
    given = dataclasses.asdict(options).items()
    unused = {*unused, *ELSEWHERE}
    decisive = {name: value for name, value in given if name not in unused and (name, value) not in LATER.items()}
    arguments = options.template_arguments
    identity = checkpoint.identity(options.checkpoint)  # first, because it says best why a model can't be loaded
    dated = tokenizers.inserts_date(options.checkpoint, options.chat_template)
    if dated and not texts and not _untemplated(rollouts, options.limit):
        arguments = {templates.DATE: templates.today(), **arguments}
    return {
        **decisive,
        **({"rollouts": _one_or_all(rollouts)} if "rollouts" in decisive else {}),
        **({"lens": lens_files.asked(lenses)} if lenses else {}),
        "chat_template_kwargs": json.dumps(arguments, sort_keys=True),
        "identity": identity,
        "content": {path: held(path) for path in paths if path} | {lens.given: lens.content for lens in lenses},
    }


def _untemplated(rollouts: Sequence[str], limit: int | None) -> bool:
    """Whether no given rollout is rendered by the chat template: the file is text, or all of its rows are token ids."""
    if not rollouts:
        return False
    found = islice(table.read([Path(path) for path in rollouts]), limit)
    return not any(_is_rendered(one) for one in found)


def _is_rendered(one: table.Found) -> bool:
    if isinstance(one, Response):
        return one.prompt_ids is None and (one.is_bare or not isinstance(one.prompt, str))
    return not any(one.values.keys() >= {*columns} for columns in (("prompt_ids", "response_ids"), ("text",)))


def all_of(recorded: str | Sequence[str] | None) -> tuple[str, ...]:
    """The files of responses that a question names."""
    return (recorded,) if isinstance(recorded, str) else tuple(recorded or ())


def _one_or_all(paths: Sequence[str]) -> str | list[str] | None:
    """The name of a single file, as earlier versions recorded it; None without a file."""
    return [*paths] if len(paths) > 1 else next(iter(paths), None)


def held(source: str) -> dict[str, Any] | None:
    """An identification of the contents of a data source; None if it isn't a file.

    That is the fingerprint of a file, or the commit of a data set on the hub. Raises InputError if the hub has none.
    """
    if rows.from_hub(source):
        return {"revision": rows.hub_revision(source)}
    return files.fingerprint(Path(source))
