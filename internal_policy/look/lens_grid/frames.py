"""Data frames that notebooks draw as lens grids; like all tables, they don't need plotly until they are drawn."""

from typing import Any, ClassVar

import pandas as pd

from internal_policy.jupyter import notebook
from internal_policy.look import pairs
from internal_policy.look.pairs import Side
from internal_policy.look.view import View


class TokenTable(pd.DataFrame):
    """A measure at each token and layer of one response: a data frame that notebooks draw as a lens grid."""

    _metadata: ClassVar = ["_shown"]
    _shown: tuple[View, int, dict[str, Any]]

    @staticmethod
    def of(frame: pd.DataFrame, one: View, rollout: int, **chosen: Any) -> "TokenTable":
        """The frame as a table that draws this response."""
        table = TokenTable(frame)
        table._shown = (one, rollout, chosen)
        return table

    def _repr_html_(self) -> str:
        """The lens grid in a frame of its own, or the reason why it can't be drawn."""
        one, rollout, chosen = self._shown
        return notebook.page(lambda: _response(one, rollout, chosen))


class PairTable(pd.DataFrame):
    """How two responses differ at each token and layer: a data frame that notebooks draw as linked lens grids."""

    _metadata: ClassVar = ["_shown"]
    _shown: tuple[Side, Side, dict[str, Any]]

    @staticmethod
    def of(a: Side, b: Side, site: str, measure: str) -> "PairTable":
        """`pairs.differences` as a table that draws both responses."""
        table = PairTable(pairs.differences(a, b, site, measure))
        table._shown = (a, b, {"site": site, "measure": measure})
        return table

    def _repr_html_(self) -> str:
        """The grids in a frame of their own, or the reason why they can't be drawn."""
        a, b, chosen = self._shown
        return notebook.page(lambda: _pair(a, b, chosen))


def _response(one: View, rollout: int, chosen: dict[str, Any]) -> str:
    notebook.need_plotly()
    from internal_policy.look.lens_grid import response

    return response.frame(one, rollout, **chosen)


def _pair(a: Side, b: Side, chosen: dict[str, Any]) -> str:
    notebook.need_plotly()
    from internal_policy.look.lens_grid import pair

    return pair.frame(a, b, **chosen)
