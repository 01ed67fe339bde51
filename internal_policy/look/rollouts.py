"""The rollouts of a scan as a table: reward, length, entropy, where it settles, and how the response begins."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow.dataset as ds

from internal_policy.look import tokens, view
from internal_policy.look.view import View
from internal_policy.scans import store
from internal_policy.tasks.marks import MARK

POINTS = 100
"""Most points of a rollout's line of entropies."""
BEGINNING = 120
"""Characters of a response that are shown."""
HALF = 0.5
"""Share of a response's tokens that must have settled, as in `statistics.settling`."""


def by_rollout(looked: View) -> pd.DataFrame:
    """One row per rollout: rollout, reward, tokens, entropy, highest, settles, begins, problem, answer, line, marks.

    `entropy` and `highest` are the mean and the highest entropy of the model's own policy over the response, in nats.
    `settles` is the first layer by which the top token of half of the response's tokens is the model's own and stays
    so; it is missing if there is no such layer. `begins` is the beginning of the response. `line` is a list of the
    entropies along the response; of a long one, the highest of each of 100 stretches. Entropy and settling layer are
    missing where they were not measured. Each mark that came with the responses has a column mark.NAME.
    """
    view.check(looked)
    marks = [name for name in store.columns(looked.source, "rollouts") if name.startswith(MARK)]
    found = view.rollouts(looked, ["problem", "answer", "response", *marks])
    columns = store.columns(looked.source, "policies")
    found["begins"] = [text[:BEGINNING] for text in found.pop("response")]
    found = found.join(_entropies(looked) if "final.entropy" in columns else _unmeasured(), on="rollout")
    topk = {"resid_post.topk_ids", "final.topk_ids"} <= {*columns}
    found["settles"] = found["rollout"].map(_settling(looked) if topk else {}).astype("Int64")
    order = ["rollout", "reward", "tokens", "entropy", "highest", "settles", "begins", "problem", "answer", "line"]
    return found[[*order, *marks]]


def _entropies(looked: View) -> pd.DataFrame:
    """Mean, highest and line of the entropies of the model's own policy, by rollout."""
    last = ds.field("layer") == view.check(looked)["n_layers"]
    rows = store.read(looked.source, "policies", ["rollout", "final.entropy"], view.within(looked) & last)
    values = {rollout: part.to_numpy() for rollout, part in rows.groupby("rollout")["final.entropy"]}
    columns = {
        "entropy": [float(along.mean()) for along in values.values()],
        "highest": [float(along.max()) for along in values.values()],
        "line": [outline(along) for along in values.values()],
    }
    return pd.DataFrame(columns, index=pd.Index(values, name="rollout"))


def _unmeasured() -> pd.DataFrame:
    return pd.DataFrame({"entropy": [], "highest": [], "line": []}, index=pd.Index([], name="rollout", dtype=int))


def outline(values: Sequence[float] | np.ndarray) -> list[float]:
    """The values, or the highest of each of 100 stretches if there are more."""
    along = np.asarray(values, dtype=float)
    if len(along) > POINTS:
        along = np.maximum.reduceat(along, np.arange(POINTS) * len(along) // POINTS)
    return along.tolist()


def _settling(looked: View) -> pd.Series:
    """The first layer by which half of a rollout's tokens have settled, by rollout."""
    shares = tokens.settled(looked)
    reached = shares[shares["settled"] >= HALF]
    return reached.groupby("rollout")["layer"].min()
