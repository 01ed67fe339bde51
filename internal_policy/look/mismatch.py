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

TOLD, OURS = "engine_logprob", "final.logprob"


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
    """The mismatch of a scan; None if no engine told log probabilities, or the model's weren't measured.

    Both are those of the policy at temperature 1 if the engine tells them before the temperature and top-p, as vLLM
    does by default. Raises InputError for a broken scan.
    """
    if TOLD not in store.columns(source, "rollouts") or OURS not in store.columns(source, "policies"):
        return None
    record = store.record(source)
    own = (ds.field("layer") == record["n_layers"]) & (ds.field("readout") == record["selection"]["readouts"][0])
    parts = zip(
        store.pieces(source, "rollouts", ["rollout", TOLD]),
        store.pieces(source, "policies", ["rollout", "position", OURS], own),
        strict=True,
    )
    found = np.concatenate([_differences(told.to_pandas(), ours.to_pandas()) for told, ours in parts])
    ratios = np.exp(found)
    sizes = np.abs(found)
    return Mismatch(len(found), sizes.mean(), sizes.max(), ratios.mean(), (ratios - 1 - found).mean())


def _differences(told: DataFrame, ours: DataFrame) -> np.ndarray:
    """The model's log probability minus the engine's, for each measured token of a part."""
    listed = told.set_index("rollout")[TOLD]
    starts = pd.Series(listed.map(len).cumsum().shift(fill_value=0))
    places = starts.loc[ours["rollout"]].to_numpy() + ours["position"].to_numpy()
    return ours[OURS].to_numpy(np.float64) - np.concatenate(listed.to_list()).astype(np.float64)[places]
