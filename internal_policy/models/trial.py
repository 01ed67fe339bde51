"""Try the known rows on a tiny model of a type that has none, and use one that passes every proof."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from internal_policy.errors import InputError
from internal_policy.models.adapters import inside
from internal_policy.models.classes import auto_class
from internal_policy.models.families import ADMITTED, has_row, row_of, trying
from internal_policy.models.family import Family, terms
from internal_policy.models.modules import part
from internal_policy.models.proofs import failure, input_ids, one_thread, proved
from internal_policy.models.rows import FAMILIES
from internal_policy.models.shrink import shrunk
from internal_policy.models.tiny import EXACT, randomized

LIMIT = 20.0
"""Seconds of computing after which no further row is tried."""

Build = Callable[[PreTrainedConfig], PreTrainedModel]
"""Builds a model with a configuration."""


@dataclass(frozen=True)
class Trial:
    """What came of trying the known rows on a tiny model of a type without a row."""

    model_type: str
    """`config.model_type`."""
    row: str = ""
    """The row that passed every proof, or else the one that came closest; empty if none could be tried."""
    contradictions: Mapping[str, str] | None = None
    """Claim -> what contradicts it for that row; None if it lacks a module that the row names."""
    why: str = ""
    """Why no row is used, in words; empty if one passed every proof."""
    is_decoder: bool = True
    """Whether its tokens don't see later tokens."""

    @property
    def refusal(self) -> str:
        """Why no row is used, in a sentence with the remedy; empty if one passed every proof."""
        if not self.is_decoder:
            return f"{self.model_type} isn't supported: {self.why}."
        start = f"The model type '{self.model_type}' has no row, and none of the known rows fits it"
        end = "To support it, add a row to FAMILIES in internal_policy/models/rows."
        return f"{start}: {self.why}. {end}" if self.why else ""


def admit(model: nn.Module) -> str:
    """Try the known rows on a tiny copy of a model whose type has none, and use one from now on, in this process.

        model = AutoModelForCausalLM.from_pretrained(folder)
        ip.admit(model)  # "llama": every proof holds with Llama's row
        ip.scan(model, tokenizer, rollouts)

    Returns the name of the row, also for a type of the table. `ip.load` and the command line do this by themselves.
    Raises InputError if no row passes every proof, with the first contradiction of the one that came closest.
    """
    model = inside(model)
    if not has_row(model.config.model_type):
        admit_config(model.config, lambda config: type(model)._from_config(config, **EXACT))
    return row_of(model.config)[0]


def admit_config(config: PreTrainedConfig, build: Build | None = None, **options: Any) -> None:
    """Use one of the known rows for models with a configuration whose type has none. Raises InputError.

    `build` makes the tiny model; by default it is the class that transformers has for the configuration, or, with
    `trust_remote_code=True` among the `options` of its `from_config`, the class in the model's own code.
    """
    if has_row(config.model_type):
        return
    tried = trial(config, build, **options)
    if tried.refusal:
        raise InputError(tried.refusal)
    known = ADMITTED.setdefault(tried.model_type, tried.row)
    if known != tried.row:
        raise InputError(
            f"This {tried.model_type} fits the row {tried.row}, but another in this process fitted {known}. "
            "Use another process for it."
        )


_trials: dict[tuple[type, str], Trial] = {}
"""(class of the configuration, its shrunk content) -> its trial."""


def trial(config: PreTrainedConfig, build: Build | None = None, **options: Any) -> Trial:
    """Try the known rows on a tiny model of a configuration without a row; a trial in this process is remembered."""
    kind = config.model_type
    try:
        nested = config.get_text_config() is not config
        small = shrunk(config)
        key = type(config), json.dumps(small.to_dict(), sort_keys=True, default=str)
    except Exception as error:  # each class checks its values in its own way
        return Trial(kind, why=_unbuilt(error))
    if key not in _trials:
        _trials[key] = _trial(config, small, nested, build, options)
    return _trials[key]


def _trial(
    config: PreTrainedConfig, small: PreTrainedConfig, nested: bool, build: Build | None, options: Mapping[str, Any]
) -> Trial:
    kind = config.model_type
    rows = {name: row for name, row in distinct().items() if bool(row.nested) == nested}
    auto = auto_class(next(iter(rows.values())))
    make = build or (lambda config: auto.from_config(config, **{"trust_remote_code": False, **options, **EXACT}))
    small.name_or_path = config.name_or_path  # where the code of a model with its own is
    start = time.thread_time()
    with one_thread():
        try:
            model = randomized(lambda: make(small))
            if sees_later_tokens(model):
                return Trial(kind, why="its tokens see later tokens, so it predicts none", is_decoder=False)
        except Exception as error:
            return Trial(kind, why=_unbuilt(error))
        return _best(kind, model, rows, lambda: time.thread_time() - start > LIMIT)


def _best(kind: str, model: PreTrainedModel, rows: Mapping[str, Family], late: Callable[[], bool]) -> Trial:
    """The trial of the row that passes every proof, or else of the one that came closest."""
    missing = {name: _missing(model, row) for name, row in rows.items()}
    closest, most = Trial(kind), -1
    for name in (name for name, modules in missing.items() if not modules):
        if late():
            return Trial(kind, why=f"trying them took longer than {LIMIT:.0f} s")
        with trying(model.config.model_type, name):
            found = proved(model)
        passed = sum(not text for text in found.values())
        if passed == len(found):
            return Trial(kind, name, found)
        if passed > most:
            why = next(text for text in found.values() if text)
            closest, most = Trial(kind, name, found, f"{name} comes closest, but {why}"), passed
    if most < 0:
        name = min(missing, key=lambda name: len(missing[name]) / (2 + len(_paths(rows[name]))))
        closest = Trial(kind, name, None, f"{name} comes closest, but the model has no module {missing[name][0]}")
    return closest


def _unbuilt(error: Exception) -> str:
    return f"a tiny model of it can't be run ({failure(error)[:200]})"


def distinct() -> dict[str, Family]:
    """The rows that differ in where they read, each by the first of its names."""
    found: dict[str, tuple[str, Family]] = {}
    for name, row in FAMILIES.items():
        found.setdefault(repr(where_it_reads(row)), (name, row))
    return dict(found.values())


def where_it_reads(row: Family) -> dict[str, Any]:
    """The fields of a row that say where it reads, and what happens to the states there and to the logits."""
    return {key: value for key, value in vars(row).items() if key not in OWN}


OWN = ("note", "absent", "model_type", "tiny", "beside", "needs")
"""Fields of a row that don't say where it reads."""


def _missing(model: PreTrainedModel, row: Family) -> list[str]:
    """The modules that a row names and a model lacks."""
    layers = list(part(model, row.layers).children()) if _has(model, row.layers) else []
    outside = [path for path in (row.layers, row.final_norm) if not _has(model, path)]
    return outside + [path for path in _paths(row) if not any(_has(layer, path) for layer in layers)]


def _paths(row: Family) -> list[str]:
    """The modules of the decoder layers that a row names."""
    places = [place for sites in (row.sites, *row.kinds.values()) for place in sites.values()]
    return list(dict.fromkeys(module for path, _ in places for module, _ in terms(path)))


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def sees_later_tokens(model: PreTrainedModel) -> bool:
    """Whether the logits of a token depend on tokens after it."""
    ids = input_ids()
    other = ids.clone()
    other[:, -1] = ids[:, -1].flip(0) + 1
    with torch.inference_mode():
        one, two = (model(each, use_cache=False).logits[:, :-1] for each in (ids, other))
    return not torch.allclose(one, two, rtol=1e-6, atol=1e-9)
