"""How far the log probabilities of the engine that sampled the responses are from the model's as measured here."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
from pandas import DataFrame

from internal_policy.errors import counted
from internal_policy.scans import store
from internal_policy.scans.store import Tables

ENGINE, MODEL = "engine_logprob", "final.logprob"
"""Columns of log probabilities: in the table `rollouts`, and in `policies`."""


@dataclass(frozen=True)
class Mismatch:
    """Differences of the model's log probabilities as measured here from the engine's, over all measured tokens."""

    tokens: int
    """Number of tokens."""
    mean: float
    """Mean absolute difference in nats."""
    max: float
    """Largest absolute difference in nats."""
    ratio: float
    """Mean of exp(difference), the importance ratio of the two policies; 1 if they agree."""
    k3: float
    """Estimate of KL(engine ‖ model) in nats: the mean of exp(d) - 1 - d, with d the difference (the estimator k3)."""

    def __str__(self) -> str:
        """Return it in a sentence."""
        return (
            f"The engine's log probabilities differ from the model's by {self.mean:.2g} nats on average and "
            f"{self.max:.2g} at most, over {counted(self.tokens, 'token')}. The mean importance ratio is "
            f"{self.ratio:.4f}, the KL {self.k3:.2g} nats."
        )


def mismatch(source: Path | Tables) -> Mismatch | None:
    """The mismatch of a scan; None if no engine reported log probabilities, or the model's weren't measured.

    Both are those of the policy at temperature 1 if the engine reports them before the temperature and top-p, as vLLM
    does by default. Raises InputError for a broken scan.
    """
    if ENGINE not in store.columns(source, "rollouts") or MODEL not in store.columns(source, "policies"):
        return None
    record = store.record(source)
    own = (ds.field("layer") == record["n_layers"]) & (ds.field("readout") == record["selection"]["readouts"][0])
    parts = zip(
        store.pieces(source, "rollouts", ["rollout", ENGINE]),
        store.pieces(source, "policies", ["rollout", "position", MODEL], own),
        strict=True,
    )
    found = np.concatenate([_differences(engine.to_pandas(), model.to_pandas()) for engine, model in parts])
    ratios = np.exp(found)
    sizes = np.abs(found)
    return Mismatch(len(found), sizes.mean(), sizes.max(), ratios.mean(), (ratios - 1 - found).mean())


def _differences(engine: DataFrame, model: DataFrame) -> np.ndarray:
    """The model's log probability minus the engine's in nats, for each measured token of a part."""
    listed = engine.set_index("rollout")[ENGINE]
    starts = pd.Series(listed.map(len).cumsum().shift(fill_value=0))
    places = starts.loc[model["rollout"]].to_numpy() + model["position"].to_numpy()
    return model[MODEL].to_numpy(np.float64) - np.concatenate(listed.to_list()).astype(np.float64)[places]
