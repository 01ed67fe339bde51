"""Find the layer from which on a response token is the top token, for every token of a scan."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from internal_policy.look import view
from internal_policy.scans import store
from internal_policy.scans.store import Tables

RANK = "resid_post.rank"
OF_THE_MODEL = ("final.entropy", "final.logprob", "final.rank")
"""Columns of the model's own policy, where they were measured."""


def first_known(ranks: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """The layer from which on each token has rank 1, up to the last layer; NaN for one that hasn't at the last.

    `ranks` is (tokens, layers), NaN where missing, and `layers` holds the number of each of its columns, ascending.
    """
    stays = np.logical_and.accumulate((ranks == 1)[:, ::-1], axis=1).sum(axis=1)  # counted from the last layer down
    first = layers[np.minimum(len(layers) - stays, len(layers) - 1)]
    return np.where(stays > 0, first, np.nan)


def tokens(source: Path | Tables) -> Iterator[pa.Table]:
    """A row for each rollout, position and readout, part by part: the token that came, and from where it was known.

    docs/columns.md explains the columns. Raises InputError if the ranks of layer outputs weren't measured, or a part is
    damaged.
    """
    measured = store.columns(source, "policies")
    if RANK not in measured:
        raise view.absent(view.default(source), "rank", "resid_post")
    of_model = [name for name in OF_THE_MODEL if name in measured]
    texts = store.read(source, "vocabulary").set_index("id")["token"]
    columns = ["rollout", "position", "readout", "layer", RANK, *of_model]
    responses = store.pieces(source, "rollouts", ["rollout", "response_ids"])
    for policies, rollouts in zip(store.pieces(source, "policies", columns), responses, strict=True):
        layer = policies["layer"].to_numpy()
        if not len(layer):  # of a part whose responses end before the measured positions
            continue
        n = len(np.unique(layer))
        last = policies.take(np.arange(n - 1, len(layer), n))  # the rows of final; the layers of a token stand together
        ranks = policies[RANK].to_numpy().astype(float).reshape(-1, n)
        order = np.argsort(layer[: n - 1])
        first = first_known(ranks[:, order], layer[order])
        ids = _ids(rollouts, last["rollout"].to_numpy(), last["position"].to_numpy())
        yield pa.table(
            {
                **{name: last[name] for name in ("rollout", "position", "readout")},
                "id": pa.array(ids),
                "token": pa.array(texts.reindex(ids), pa.string()),
                "first_known": pa.array(np.nan_to_num(first).astype(np.int32), mask=np.isnan(first)),
                **{name: last[name] for name in of_model},
            }
        )


def _ids(rollouts: pa.Table, rollout: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The token id at each position of a rollout. `rollouts` is a part of that table."""
    responses = dict(zip(rollouts["rollout"].to_pylist(), rollouts["response_ids"].to_pylist(), strict=True))
    found = [responses[one][at] for one, at in zip(rollout.tolist(), position.tolist(), strict=True)]
    return np.array(found, dtype=np.int64)
