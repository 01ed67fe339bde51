"""Read what each layer would say next after a text: the logit lens, or another readout."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from internal_policy.errors import InputError
from internal_policy.look import lens
from internal_policy.look.lens import LensTable
from internal_policy.measure.sites import SITES
from internal_policy.models.families import layer_sites, place
from internal_policy.models.hooks import HookPoint
from internal_policy.models.passes import positions
from internal_policy.models.policy import Readout, readout_name
from internal_policy.models.vocabulary import token_texts
from internal_policy.scans.reader import Reader, reader_of
from internal_policy.scans.scan import Scanner, check_rollouts, name_of
from internal_policy.scans.selection import Selection
from internal_policy.tasks.problems import Message, Problem
from internal_policy.tasks.prompts import Chat, Ids, continuation, encode_problem, encode_text
from internal_policy.tasks.rollouts import Rollout

MEASURES = ("entropy", "logprob", "rank", "kl", "topk")
"""What is measured at each layer."""


def check(config: PreTrainedConfig, ids: Ids, site: str, top_k: int) -> None:
    """Raise InputError for a text, site or top-k that doesn't suit a model of this configuration."""
    text = config.get_text_config()
    if site not in SITES:
        raise InputError(f"There is no site '{site}'. Choose one of {', '.join(SITES)}.")
    place(config, site)
    if not ids:
        raise InputError("The text has no tokens. Write at least one word.")
    if len(ids) >= (longest := positions(text)):
        raise InputError(f"The text has {len(ids)} tokens, but the model reads at most {longest - 1}. Shorten it.")
    if not 1 <= top_k <= text.vocab_size:
        raise InputError(f"top-k is {top_k}; it must be from 1 to the model's {text.vocab_size} tokens.")


def encode(tokenizer: PreTrainedTokenizerBase, text: str, chat: Chat) -> Ids:
    """Token ids of a text: as it is if `chat` is None, otherwise as a user's question through the chat template."""
    if chat is None:
        return encode_text(tokenizer, text)
    return encode_problem(tokenizer, Problem((Message(role="user", content=text),), None), chat)


def table(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    target: str | None,
    site: str,
    readout: Readout,
    top_k: int,
    all_positions: bool,
    chat: Chat,
) -> LensTable:
    """What each layer would say next after `text`. Arguments and errors are those of `internal_policy.lens`."""
    reader, ids = reader_of(model), encode(tokenizer, text, chat)
    wanted = None if target is None else continuation(tokenizer, ids, text, target)[0]
    frame = numbers(reader, ids, wanted, site=site, readout=readout, top_k=top_k, all_positions=all_positions)
    known = sorted({*ids, *frame["target"], *(token for tokens in frame["top_ids"] for token in tokens)})
    text_of = dict(zip(known, token_texts(tokenizer, known), strict=True))
    frame["read"] = [text_of[ids[position]] for position in frame["position"]]
    frame["top_tokens"] = [[text_of[token] for token in tokens] for tokens in frame["top_ids"]]
    frame["token"], frame["probability"] = frame["top_tokens"].str[0], frame["top_probabilities"].str[0]
    frame["target"] = frame["target"].map(text_of)
    shown = LensTable(frame[list(lens.COLUMNS)])
    shown.attrs.update(
        model=name_of(reader.model), text=text, site=site, readout=readout_name(readout), n_layers=reader.n_layers
    )
    return shown


def numbers(
    reader: Reader,
    ids: Ids,
    target: int | None = None,
    *,
    site: str = "resid_post",
    readout: Readout = "norm",
    top_k: int = 1,
    all_positions: bool = False,
) -> pd.DataFrame:
    """What the policy at `site` of each layer that has it would say after the tokens `ids`, and the model's own last.

    Columns: position (of the last token that was read, from 0), layer (from 0; one past the last for the model's own
    policy), point (the hook point), top_ids and top_probabilities (the `top_k` most likely tokens), entropy and kl
    (nats; KL from the model's own policy), target (a token id), target_probability and target_rank (1 is the top
    token). At the last position, the only one unless `all_positions`, the target is `target`, or else the model's own
    top token; at earlier ones it is the token of `ids` that comes next. Raises InputError for what can't be read.
    """
    check(reader.model.config, ids, site, top_k)
    if target is None:
        first = _measured(reader, (*ids, 0), len(ids), Selection((0,), (site,), ("raw",), ("topk",), 1))
        target = int(first["final.topk_ids"].dropna().iloc[0][0])
    read = (*ids, target)
    start = 1 if all_positions else len(ids)
    known = layer_sites(reader.model.config)
    layers = tuple(layer for layer in range(reader.n_layers) if site in known[layer])
    measured = _measured(
        reader, read, start, Selection(layers, (site,), (readout_name(readout),), MEASURES, top_k), readout
    )
    final = measured["layer"] == reader.n_layers

    def column(measure: str) -> pd.Series:
        return measured[f"{site}.{measure}"].where(~final, measured[f"final.{measure}"])

    position = measured["position"] + start - 1
    return pd.DataFrame(
        {
            "position": position,
            "layer": measured["layer"],
            "point": ["final" if n == reader.n_layers else str(HookPoint(n, site)) for n in measured["layer"]],
            "top_ids": [ids.tolist() for ids in column("topk_ids").to_numpy()],
            "top_probabilities": [values.tolist() for values in column("topk_probs").to_numpy()],
            "entropy": column("entropy").astype(float),
            "kl": measured[f"{site}.kl"].where(~final, 0.0).astype(float),
            "target": np.asarray(read)[position + 1],
            "target_probability": np.exp(column("logprob").astype(float)),
            "target_rank": column("rank").astype("Int64"),
        }
    )


def _measured(
    reader: Any, ids: Sequence[int], start: int, selection: Selection, readout: Readout = "raw"
) -> pd.DataFrame:
    """The table `policies` of a text whose tokens from number `start` on are predicted."""
    rollout = Rollout("", None, 0, tuple(ids[:start]), tuple(ids[start:]), "", None, True)
    check_rollouts(reader, [rollout])
    lenses = {} if isinstance(readout, str) else {readout_name(readout): readout}
    return Scanner.of(reader, selection, lenses).measure([rollout])[0].to_pandas()
