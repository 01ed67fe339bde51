"""A lens card in words, as a table, and as Markdown for a repository of the Hugging Face hub."""

import math
import re
import shlex
from collections.abc import Mapping
from typing import Any

import pandas as pd

from internal_policy.errors import counted, joined
from internal_policy.lenses.card import Card, Corpus
from internal_policy.look.findings import layers_in_words
from internal_policy.look.markdown import inline, line
from internal_policy.look.markdown import table as markdown_table

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""The id of a model on the hub, such as Qwen/Qwen3-4B."""
UNCHANGED = "A map that is a multiple of the identity gives the logit lens."


def title(card: Card) -> str:
    """Its heading, such as `Tuned lens of demo-qwen3`."""
    return f"{card.kind.capitalize()} lens of {card.model or 'an unknown model'}"


def sentences(card: Card) -> list[str]:
    """What the card means, in a few sentences: its size and texts, how good it is, and what isn't known."""
    size = "".join([counted(card.n_layers, "layer") + ", " if card.n_layers else "", f"d_model {card.d_model}"])
    found = [f"{title(card)} ({size}) at {counted(len(card.maps), 'hook point')}."]
    found += [f"Fitted on {_texts(card.fitted_on)}."] if card.fitted_on else []
    found += [f"Measured on {_texts(card.held_out)} that it wasn't fitted on."] if card.held_out else []
    found += _compared(card) + _halves(card) + [_identity(card)]
    if card.missing:
        found.append(f"The file doesn't tell {joined(card.missing)}.")
    if card.unreadable:
        found.append(f"Entries that can't be read are left out: {', '.join(card.unreadable)}.")
    return found


def table(card: Card) -> list[list[str]]:
    """The card's numbers by hook point: a row of headings, then rows of cells, which are empty where there is none."""
    readouts = [*dict.fromkeys(card.kl["readout"])]
    own = card.kl[card.kl["readout"] == card.kind]
    kl = {(row["layer"], row["site"], row["readout"]): row["mean"] for row in card.kl.to_dict("records")}
    ranges, halves = _rows(own), _rows(card.halves)
    headings = ["", *readouts]
    headings += [f"{card.kind}, 95%"] * bool(ranges) + ["halves, KL", "halves, maps"] * bool(halves) + ["off identity"]
    rows = []
    for row in card.maps.to_dict("records"):
        place = row["layer"], row["site"]
        cells = [f"{row['layer']}.{row['site']}", *(_number(kl.get((*place, name))) for name in readouts)]
        cells += [_interval(ranges.get(place, {}))] * bool(ranges)
        half = halves.get(place, {})
        cells += [_number(half.get("mean")), _percent(half.get("difference"))] * bool(halves)
        rows.append([*cells, _percent(row["off_identity"])])
    return [headings, *rows]


def legend(card: Card) -> str:
    """What the columns of the table are."""
    parts = ["KL from the model's own policy in nats, means over held-out tokens"] if len(card.kl) else []
    if len(card.halves):
        parts.append("halves: KL in nats between lenses of two halves of the texts, and |A - B| / |mean| of their maps")
    return "; ".join([*parts, "off identity: |M - cI| / |M| of a map M"]) + "."


def as_dict(card: Card) -> dict[str, Any]:
    """The card as JSON has it."""
    facts = {name: getattr(card, name) for name in ("kind", "model", "identity", "d_model", "n_layers")}
    texts = {
        name: None if (found := getattr(card, name)) is None else vars(found) for name in ("fitted_on", "held_out")
    }
    tables = {name: getattr(card, name).to_dict("records") for name in ("kl", "gain", "halves", "maps")}
    words = {"missing": card.missing, "unreadable": card.unreadable, "sentences": sentences(card)}
    return {**facts, **texts, "options": dict(card.options), **tables, **words}


def markdown(card: Card, file: str, licence: str | None = None) -> str:
    """The card as the README of a repository on the hub with the lens as `file`; `licence` is as the Hub names it."""
    hub = card.model if card.model and HUB_ID.fullmatch(card.model) else None
    front = ["---", "library_name: internal-policy"]
    front += [f"license: {licence}"] if licence else []
    front += [f"base_model: {hub}"] if hub else []
    front += ["tags:", f"- {card.kind}-lens", "- interpretability", "---"]
    headings, *rows = table(card)
    options = {
        "sha256 of the tokens": card.fitted_on and card.fitted_on.sha256,
        "weights": card.identity,
        **card.options,
    }
    sites = [*dict.fromkeys(card.maps["site"])]
    words = ["internal-policy", "scan", "--model", card.model or "MODEL", "--lens", file, "--sites", ",".join(sites)]
    return "\n".join(
        [
            *front,
            "",
            f"# {inline(title(card))}",
            "",
            *(inline(sentence) + "  " for sentence in sentences(card)),
            "",
            *markdown_table(headings, rows),
            "",
            legend(card),
            "",
            *(f"- {inline(str(name))}: {inline(str(value))}" for name, value in options.items() if value is not None),
            "",
            "```bash",
            line(shlex.join(words)),
            "```",
            "",
        ]
    )


def _texts(corpus: Corpus) -> str:
    """A corpus in words, such as `410 responses (17,057 tokens) to 410 problems of train.jsonl`."""
    nouns = {"sequence": corpus.sequences, "response": corpus.rollouts, "problem": corpus.problems}
    first, *others = [counted(number, noun) for noun, number in nouns.items() if number is not None] or ["texts"]
    tokens = f" ({counted(corpus.tokens, 'token')})" if corpus.tokens is not None else ""
    return f"{' of '.join([first + tokens, *others])}" + (f" in {corpus.file}" if corpus.file else "")


def _compared(card: Card) -> list[str]:
    """Where the lens is closer to the model than the logit lens, where it isn't, and where that can't be told."""
    if not len(card.gain):
        return []
    if card.gain["low"].isna().all():
        return ["There are too few held-out responses for intervals, so it can't be compared with the logit lens."]
    closer, further = card.gain["low"] > 0, card.gain["high"] < 0
    words = {
        "closer to the model's own policy": closer,
        "further from the model's own policy": further,
        "not clearly closer or further": ~closer & ~further,
    }
    parts = [f"{verb} at {places(card.gain[rows], len(card.gain))}" for verb, rows in words.items() if rows.any()]
    certain = "95% intervals that hold for all hook points at once"
    return [f"Compared with the logit lens, it is {'; '.join(parts)} ({certain})."]


def _halves(card: Card) -> list[str]:
    """How far two lenses of half the texts are apart, and where that is more than what sets the lens apart."""
    if not len(card.halves):
        return []
    most = card.halves.sort_values("mean").iloc[-1]
    found = [
        f"Lenses fitted on two halves of the texts differ by a KL of {card.halves['mean'].min():.3f} to "
        f"{most['mean']:.3f} nats, most at {most['layer']}.{most['site']}."
    ]
    gain = card.gain[["layer", "site", "mean"]].rename(columns={"mean": "gain"})
    both = card.halves.merge(gain, "left", on=["layer", "site"]).dropna(subset=["low", "gain"])
    disagree = both[both["low"] > both["gain"].abs()]
    if len(disagree):
        found.append(
            f"At {places(disagree, len(card.halves))} that is more than the difference in KL between this lens and the "
            "logit lens. Fit on more texts before reading much into it there."
        )
    elif len(both) == len(card.halves):
        found.append("At every hook point that is less than the difference in KL between this lens and the logit lens.")
    return found


def _identity(card: Card) -> str:
    """How far the maps are from multiples of the identity."""
    off = card.maps["off_identity"]
    return f"Its maps are {_percent(off.min())} to {_percent(off.max())} off a multiple of the identity. {UNCHANGED}"


def places(rows: pd.DataFrame, every: int) -> str:
    """Hook points in a sentence, such as `resid_pre in layer 0 and resid_post in layers 0 to 6`."""
    if len(rows) == every:
        return f"all {every} hook points" if every > 1 else f"{rows['layer'].iloc[0]}.{rows['site'].iloc[0]}"
    sites = rows.groupby("site", sort=False)["layer"]
    return joined([f"{site} in {layers_in_words(sorted(layers))}" for site, layers in sites])


def _rows(frame: pd.DataFrame) -> dict[tuple[Any, Any], Mapping[Any, Any]]:
    """Hook point -> its row."""
    return {(row["layer"], row["site"]): row for row in frame.to_dict("records")}


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"


def _interval(row: Mapping[Any, Any]) -> str:
    ends = [_number(row.get(name)) for name in ("low", "high")]
    return " to ".join(ends) if all(ends) else ""


def _percent(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.0%}" if math.isfinite(value) else "no mean"
