"""Name and load the rewards of a run: built-in ones, and functions of a module or file."""

import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from internal_policy.errors import InputError, quoted
from internal_policy.tasks.marking import is_prose
from internal_policy.tasks.problems import Problem
from internal_policy.train.dataset import box_reward, format_reward, is_number, number_reward
from internal_policy.train.scoring import Function, checked, described, line_of

BUILT_IN: dict[str, Function] = {"box": box_reward, "last-number": number_reward, "format": format_reward}
"""Name -> reward function of this package."""
MARKS: dict[str, Callable[[str], bool]] = {"box": lambda answer: not is_prose(answer), "last-number": is_number}
"""Built-in reward that marks a response by the answer -> whether an answer can be marked by."""
DEFAULT = "box"
"""Reward of a run that names none."""
GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""What TRL passes to a reward function besides the columns of the problems."""
DEFAULT_FUNCTION = "reward"
"""Function that is taken from a file if none is named."""


@dataclass(frozen=True)
class Reward:
    """A reward as it was named."""

    place: str
    """Name of a built-in reward, a module, or a Python file."""
    function: str | None = None
    """Function of the module or file; None for a built-in reward, or to choose it when the file is read."""
    weight: float | None = None
    """Weight in the sum of rewards; None if it isn't given."""

    @property
    def text(self) -> str:
        """The reward without its weight, as `parse` reads it."""
        return self.place if self.function is None else f"{self.place}:{self.function}"

    @property
    def name(self) -> str:
        """Name in the logs: that of the function, or of the file if its function is called reward or isn't named."""
        return Path(self.place).stem if self.function in (None, DEFAULT_FUNCTION) else str(self.function)

    @property
    def path(self) -> Path | None:
        """The file, if it is in a file."""
        return Path(self.place).expanduser() if self.place.endswith(".py") else None


def parse(text: str) -> Reward:
    """The reward NAME, MODULE:FUNCTION, FILE.py or FILE.py:FUNCTION, with =WEIGHT or without. Raises InputError."""
    called, weight = text, None
    before, sign, after = text.rpartition("=")
    with suppress(ValueError):
        called, weight = (before, float(after)) if sign else (text, None)
    if weight is not None and not math.isfinite(weight):
        raise InputError(f"The reward '{text}' has the weight {after}. Use a finite number.")
    if called in BUILT_IN or called.endswith(".py"):
        return Reward(called, weight=weight)
    place, _, function = called.rpartition(":")
    module = bool(place) and all(part.isidentifier() for part in place.split("."))
    if (module or place.endswith(".py")) and function.isidentifier():
        return Reward(place, function, weight)
    raise InputError(
        f"There is no reward '{text:.80}'. Use {', '.join(BUILT_IN)}, FILE.py, FILE.py:FUNCTION or MODULE:FUNCTION; a "
        "weight follows as =0.5."
    )


def split(given: Sequence[str], weights: Sequence[float] | None) -> tuple[list[str], list[float] | None]:
    """Rewards without their weights, and the weights; None if none has one. Raises InputError.

    `weights` are those of TRL's field, which can be given instead.
    """
    if isinstance(given, str):
        raise InputError(f"rewards is the text '{given}'. Give a list of rewards: ['{given}'].")
    if not given:
        raise InputError("rewards is empty. Name at least one, such as box.")
    found = [parse(text) for text in given]
    names = [reward.name for reward in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"Two rewards are called {twice[0]}, but each needs a name of its own. Rename a function.")
    named = [reward.text for reward in found]
    if all(reward.weight is None for reward in found):
        return named, None if weights is None else list(weights)
    if weights is not None:
        raise InputError("reward_weights is set, but rewards have weights of their own. Remove one of them.")
    return named, [1.0 if reward.weight is None else reward.weight for reward in found]


def check_weights(named: Sequence[str], weights: Sequence[float] | None) -> None:
    """Raise InputError unless each reward has a finite weight and not all are 0, or none has one."""
    if weights is not None and (len(weights) != len(named) or not all(map(math.isfinite, weights))):
        raise InputError(f"reward_weights is {weights}, but needs a finite weight for each of {', '.join(named)}.")
    if weights is not None and not any(weights):
        raise InputError("All rewards have weight 0, so nothing would be trained. Give one of them another weight.")


def in_words(named: Sequence[str], weights: Sequence[float] | None) -> list[str]:
    """A line for each reward: its name, its weight if it has one, and what a built-in one marks."""
    lines = []
    for text, weight in zip(named, weights or [None] * len(named), strict=True):
        about = f": {inspect.getdoc(BUILT_IN[text])}" if text in BUILT_IN else ""
        lines.append(f"{text}{'' if weight is None else f', weight {weight:g}'}{about.partition(';')[0].rstrip('.')}")
    return lines


def sources(named: Iterable[str]) -> dict[str, Path]:
    """Place -> the file that defines its rewards. Raises InputError for a file or module that isn't there."""
    found = {}
    for reward in map(parse, named):
        if reward.place not in BUILT_IN:
            origin = _spec(reward).origin
            if origin is None:
                raise InputError(f"{reward.place} is a folder without code, so it has no reward. Name a module in it.")
            found[reward.place] = Path(origin)
    return found


def _spec(reward: Reward) -> ModuleSpec:
    """Where the module or file of a reward is. Raises InputError if it isn't there."""
    path = reward.path
    try:
        if path is not None:
            found = importlib.util.spec_from_file_location(f"rewards_{path.stem}", path) if path.is_file() else None
        else:
            _reach(Path.cwd())
            found = importlib.util.find_spec(reward.place)  # this imports the packages around the module
    except (Exception, SystemExit) as error:
        if not isinstance(error, ModuleNotFoundError) or not f"{reward.place}.".startswith(f"{error.name}."):
            raise InputError(f"Can't import {reward.place}: {described(error)}. Fix it.") from error
        found = None  # the package around the module isn't there
    if found is None:
        where = "Check the path." if path is not None else "Install it, or change to the folder that has it."
        raise InputError(f"There is no {'file' if path is not None else 'module'} {reward.place}. {where}")
    return found


def _reach(folder: Path) -> None:
    """Let Python also look for modules in a folder, after all others."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def functions(named: Sequence[str], problems: Sequence[Problem]) -> list[Function]:
    """The reward functions for TRL, which imports the modules and files that are named, and nothing else.

    They are given the columns of `problems`, and check what they return (`scoring.checked`). Raises InputError for a
    function that isn't there, and for one that needs a column that the problems lack.
    """
    rewards = [parse(text) for text in named]
    places = {reward.place: reward for reward in rewards if reward.place not in BUILT_IN}
    modules = {place: _module(reward) for place, reward in places.items()}  # each is imported once
    columns = [*dict.fromkeys([*(name for problem in problems for name in problem.columns), "answer"])]
    found = []
    for reward in rewards:
        function = BUILT_IN[reward.place] if reward.place in BUILT_IN else _function(modules[reward.place], reward)
        _check_parameters(reward, function, columns)
        found.append(checked(reward.name, function, problems, alone=len(rewards) == 1))
    return found


def _module(reward: Reward) -> ModuleType:
    """Import the module or file of a reward. Raises InputError if its code fails."""
    spec = _spec(reward)
    try:
        if reward.path is None:
            return importlib.import_module(reward.place)
        assert spec.loader is not None
        _reach(reward.path.resolve().parent)  # as for a script, whose neighbours can be imported
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        at = line_of(error, str(spec.origin))
        raise InputError(f"Can't import {reward.place}{at}: {described(error)}. Fix it.") from error
    return module


def _function(module: ModuleType, reward: Reward) -> Function:
    """The function of a reward in its module. Raises InputError if there is none, or several to choose from."""
    own = [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    name = reward.function or (DEFAULT_FUNCTION if DEFAULT_FUNCTION in own else own[0] if len(own) == 1 else None)
    if name is not None and callable(function := getattr(module, name, None)):
        return function
    problem = f"has no function {name}" if name else "has several functions" if own else "has no function"
    remedy = f"Choose from {', '.join(f'{reward.place}:{name}' for name in own)}." if own else "Define one."
    raise InputError(f"{reward.place} {problem}. {remedy}")


def check_answers(named: Sequence[str], problems: Sequence[Problem]) -> None:
    """Raise InputError if built-in rewards can't mark the responses to every problem by its answer.

    With functions of the user it is enough if they can for one problem: such a function can mark the others.
    """
    places = [parse(text).place for text in named]
    marks = [MARKS[place] for place in places if place in MARKS]
    wrong = [number for number, problem in enumerate(problems) if not _is_marked(problem.answer, marks)]
    enough = 1 if {*places} <= {*BUILT_IN} else len(problems)
    if not marks or len(wrong) < enough:
        return
    answer = problems[wrong[0]].answer
    if answer is None:
        raise InputError(
            f"Problem {wrong[0] + 1} has no answer to mark responses with. Add one, remove the problem, or name "
            "another --reward."
        )
    kind = "an answer in prose" if is_prose(answer) else "an answer that isn't a number"
    raise InputError(
        f"Problem {wrong[0] + 1} has {kind} ({quoted(answer)}), which no response can be marked by. Give a short "
        "answer, remove the problem, or name another --reward."
    )


def _is_marked(answer: str | None, marks: Sequence[Callable[[str], bool]]) -> bool:
    return answer is not None and any(can_mark(answer) for can_mark in marks)


def _check_parameters(reward: Reward, function: Function, columns: Sequence[str]) -> None:
    """Raise InputError for a function that can't be called with what it is passed."""
    parameters = inspect.signature(function).parameters.values()
    kinds = {parameter.kind for parameter in parameters}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        raise InputError(
            f"The reward {reward.text} doesn't take every column. Define it as "
            f"`def {reward.function or DEFAULT_FUNCTION}(completions, **columns)`."
        )
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    for parameter in parameters:
        required = parameter.kind not in variable and parameter.default is inspect.Parameter.empty
        if required and parameter.name not in (*GIVEN, *columns):
            raise InputError(
                f"The reward {reward.text} needs '{parameter.name}', which the problems don't have. They have "
                f"{', '.join(columns)}."
            )
