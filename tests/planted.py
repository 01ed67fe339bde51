"""Scans in memory of hidden states that a test makes up, with the measures of `scan --controls`."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa

from internal_policy.measure.sites import INPUT_OF, SITES
from internal_policy.scans.store import Tables

MEASURES = ("entropy", "norm", "entropy_at_input_norm")
CONTROLS = ("renyi_half", "renyi_2", "logit_scale", "entropy_at_input_scale", "entropy_shuffled", "entropy_random")


def entropy(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return -(p * np.log(np.maximum(p, 1e-300))).sum(-1)


def renyi(logits: np.ndarray, order: float) -> np.ndarray:
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return np.log((p**order).sum(-1)) / (1 - order)


def numbers(states: Mapping[str, np.ndarray], unembedding: np.ndarray, readout: str) -> dict[str, np.ndarray]:
    """`site.measure` -> (tokens, layers), of states (tokens, layers, d_model) by site."""
    random = np.random.default_rng(1)
    order = random.permutation(unembedding.shape[1])
    direction = random.normal(size=(len(next(iter(states.values()))), 1, unembedding.shape[1]))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    length = {site: np.linalg.norm(state, axis=-1, keepdims=True) for site, state in states.items()}
    normed = {site: state / length[site] * 4 for site, state in states.items()}
    read = states if readout == "raw" else normed
    scale = {site: (state @ unembedding.T).std(-1, keepdims=True) for site, state in states.items()}
    found = {}
    for site, state in read.items():
        logits = state @ unembedding.T
        size = np.linalg.norm(state, axis=-1, keepdims=True)
        found |= {f"{site}.entropy": entropy(logits), f"{site}.norm": length[site][..., 0]}
        found |= {f"{site}.renyi_half": renyi(logits, 0.5), f"{site}.renyi_2": renyi(logits, 2)}
        found |= {f"{site}.logit_scale": logits.std(-1)}
        found |= {f"{site}.entropy_shuffled": entropy(state[..., order] @ unembedding.T)}
        found |= {f"{site}.entropy_random": entropy(size * (direction @ unembedding.T))}
        if (before := INPUT_OF.get(site, "")) in states:
            logits = states[site] @ unembedding.T
            at_norm, at_scale = (entropy(logits * of[before] / of[site]) for of in (length, scale))
            if readout == "raw":
                found |= {f"{site}.entropy_at_input_norm": at_norm, f"{site}.entropy_at_input_scale": at_scale}
    return found


def scan(
    states: Mapping[str, np.ndarray],
    unembedding: np.ndarray,
    rollout: np.ndarray,
    prompt: int = 30,
    measures: tuple[str, ...] = (*MEASURES, *CONTROLS),
    readouts: tuple[str, ...] = ("raw", "norm"),
) -> Tables:
    """A scan of these states, (tokens, layers, d_model) by site; `rollout` is that of each token."""
    n = next(iter(states.values())).shape[1]
    sites = tuple(site for site in SITES if site in states)
    position = pd.Series(rollout).groupby(rollout).cumcount().to_numpy()
    parts, means = [], []
    for readout in readouts:
        found = numbers(states, unembedding, readout)
        kept = {name: values for name, values in found.items() if name.partition(".")[2] in measures}
        frame = pd.DataFrame({name: values.ravel() for name, values in kept.items()})
        keys = {"rollout": np.repeat(rollout, n), "position": np.repeat(position, n), "readout": readout}
        frame = frame.assign(**keys, layer=np.tile(np.arange(n), len(rollout)))
        last = pd.DataFrame({"rollout": rollout, "position": position, "readout": readout, "layer": n})
        parts.append(pd.concat([frame, last]).sort_values(["rollout", "position", "layer"]))
        for site in sites:
            named = {name.partition(".")[2]: name for name in kept if name.startswith(f"{site}.")}
            columns = {measure: frame[name] for measure, name in named.items()}
            by = frame[["rollout", "readout", "layer"]].assign(site=site, **columns)
            grouped = by.groupby(["rollout", "readout", "layer", "site"])
            means.append(grouped.mean(skipna=False).assign(tokens=grouped.size()).reset_index())
    numbered, lengths = np.unique(rollout, return_counts=True)
    rollouts = pd.DataFrame({"rollout": numbered, "reward": np.nan})
    rollouts["prompt_ids"] = [[1] * prompt] * len(numbered)
    rollouts["response_ids"] = [[2] * length for length in lengths]
    selection = {"layers": [*range(n)], "sites": sites, "readouts": readouts, "measures": measures, "top_k": 0}
    record = {"model": "planted", "n_layers": n, "d_vocab": len(unembedding), "dtype": "float64"}
    record |= {"selection": selection, "rollouts": len(numbered), "tokens": len(rollout)}
    frames = {"rollouts": rollouts, "policies": pd.concat(parts), "layers": pd.concat(means)}
    arrow = {name: pa.Table.from_pandas(frame, preserve_index=False) for name, frame in frames.items()}
    return Tables(record, arrow)
