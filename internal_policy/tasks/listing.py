"""A list of rollouts that prints as a short table and that notebooks draw."""

from typing import SupportsIndex, overload

from internal_policy.errors import counted
from internal_policy.jupyter import notebook
from internal_policy.jupyter.notebook import printable
from internal_policy.tasks.rollouts import Rollout

SHOWN, IN_NOTEBOOK = 10, 50
"""Rollouts that are printed, and that a notebook shows."""
WIDTH = 46
"""Characters of a problem and of a response that are printed."""


class Rollouts(list[Rollout]):
    """Rollouts as a list, with `==`, slices and everything else that a list has."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Rollout: ...
    @overload
    def __getitem__(self, index: slice) -> "Rollouts": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "Rollout | Rollouts":
        """One of the rollouts, or some of them."""
        found = super().__getitem__(index)
        return Rollouts(found) if isinstance(found, list) else found

    def __repr__(self) -> str:
        """What they are in words, and a line for each of the first ones: reward, problem and response."""
        lines = [
            f"{number:>4}  {_mark(one):>4}  {_short(one.problem):<{WIDTH}}  {_short(one.response)}"
            for number, one in enumerate(self[:SHOWN])
        ]
        more = [f"… and {len(self) - SHOWN} more"] if len(self) > SHOWN else []
        return "\n".join([f"<{summary(self)}>", *lines, *more])

    def _repr_html_(self) -> str:
        """The same as a table, for a notebook."""
        named = ("", "problem", "response", "answer", "reward", "tokens")
        rows = [
            (number, one.problem, one.response, one.answer, one.reward, len(one.response_ids))
            for number, one in enumerate(self[:IN_NOTEBOOK])
        ]
        more = [f"The first {IN_NOTEBOOK} of {len(self)}."] if len(self) > IN_NOTEBOOK else []
        return notebook.page(
            lambda: notebook.heading(summary(self)),
            lambda: notebook.rows(named, rows),
            lambda: notebook.sentences(more),
        )


def summary(rollouts: list[Rollout]) -> str:
    """How many rollouts there are, how many were marked correct, how many were cut, and their tokens, in words."""
    marked = [one.reward for one in rollouts if one.reward is not None]
    cut = sum(not one.finished for one in rollouts)
    parts = [
        counted(len(rollouts), "rollout"),
        *([f"mean reward {sum(marked) / len(marked):.2f}"] if marked else []),
        *([f"{cut} cut at the length limit"] if cut else []),
        counted(sum(len(one.response_ids) for one in rollouts), "token"),
    ]
    return ", ".join(parts)


def _mark(rollout: Rollout) -> str:
    return "-" if rollout.reward is None else f"{rollout.reward:g}"


def _short(text: str) -> str:
    """A text on one line, with its control characters escaped."""
    cut = text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
    return printable(cut)[:WIDTH]
