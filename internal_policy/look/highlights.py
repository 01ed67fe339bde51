"""Where to look first in a scan: its least certain response, and the least certain token of a site."""

from dataclasses import dataclass

import numpy as np
import pyarrow.dataset as ds

from internal_policy.look import view
from internal_policy.look.view import View, absent, layers, rollouts, within
from internal_policy.scans import store


@dataclass(frozen=True)
class Response:
    """A response, with the mean entropy of the model's own policy."""

    rollout: int
    entropy: float
    """Mean over the tokens of the response, in nats."""
    overall: float
    """The same over the tokens of all responses in view."""


@dataclass(frozen=True)
class Token:
    """A token of a response, with the entropy of the policy that predicted it at a site."""

    rollout: int
    position: int
    layer: int
    site: str
    entropy: float
    """In nats."""


def least_certain_response(one: View) -> Response:
    """The response in view whose tokens the model itself was least certain of; of equals, the first.

    Raises InputError if the entropy wasn't measured.
    """
    rows = layers(one, "entropy")
    rows = rows[rows["site"] == "final"]
    if "entropy" not in rows or not rows["entropy"].notna().any():
        raise absent(one, "entropy")
    rows = rows.dropna(subset="entropy").sort_values("rollout")
    most = rows.nlargest(1, "entropy").iloc[0]
    overall = np.average(rows["entropy"], weights=rows["tokens"])
    return Response(int(most["rollout"]), float(most["entropy"]), float(overall))


def closest(one: View, layer: int, site: str) -> int:
    """The layer itself if it has `site`, or else the last one before it that does, or else the first one after it."""
    record = view.check(one)
    having = [each for each in record["selection"]["layers"] if each not in view.lacking(record, site)]
    return max((each for each in having if each <= layer), default=having[0])


def least_certain_token(one: View, layer: int, site: str = "attn_out") -> Token:
    """The token in view that a layer's policy at `site` was least certain of; of equals, the first.

    It reads one column of all tokens. Raises InputError if the entropy wasn't measured there.
    """
    view.check(one)
    name, kept = f"{site}.entropy", rollouts(one)["rollout"].to_numpy()
    if name not in store.columns(one.source, "policies"):
        raise absent(one, "entropy", site)
    found: Token | None = None
    where = within(one) & (ds.field("layer") == layer)
    for piece in store.pieces(one.source, "policies", ["rollout", "position", name], where):
        rollout, position, entropy = (piece[column].to_numpy() for column in ("rollout", "position", name))
        entropy = np.where(np.isin(rollout, kept) & np.isfinite(entropy), entropy, -1.0)
        if not len(entropy) or entropy.max() <= (found.entropy if found else -1.0):
            continue
        at = np.lexsort((position, rollout, -entropy))[0]
        found = Token(int(rollout[at]), int(position[at]), layer, site, float(entropy[at]))
    if found is None:
        raise absent(one, "entropy", site)
    return found
