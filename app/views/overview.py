"""A scan at a glance: what it shows in three sentences and two figures, and where to look next."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import scans
import show
import streamlit as st

from internal_policy.look import catalogue, findings, highlights, recipe, summary, targets, tokens, view
from internal_policy.look.catalogue import Choice
from internal_policy.look.highlights import Response, Token
from internal_policy.look.statistics import Average
from internal_policy.look.view import View
from internal_policy.scans import store
from internal_policy.tasks import pass_at_k

TARGET = (
    "BuPO trains the last exploration layer first: the last one whose FFN raises entropy significantly. The 95% "
    "intervals behind this hold for all layers at once, so they are wider than the bands above. The runner-up is the "
    "last other layer whose own interval is above 0. The rows for direction and norm show how much is due to the "
    "length of the hidden states alone."
)
AROUND = ("attn_in", "mlp_in")
"""Sites that are left out of the figure here, because half a page only has room for a short legend."""


def page(looked: View, average: Average) -> None:
    """Draw the page."""
    record = store.record(looked.source)
    st.text(show.line(record["model"]))
    st.caption(show.unmarked(facts(looked)))
    st.markdown("\n".join(f"- {show.unmarked(sentence)}" for sentence in verdict(looked)))
    choice, changes = Choice(average=average), None
    left, right = st.container(key="side-by-side").columns(2)
    with left, show.refusing():
        flow = scans.data("flow", [looked], choice)
        means = flow.frames["entropy"]
        few = means[~means["site"].isin(AROUND)]
        drawn = catalogue.flow(replace(flow, frames={"entropy": few}))
        show.figure("flow", drawn, means, recipe=recipe.of_scan("flow", flow))
    with right, show.refusing():
        change = scans.data("change", [looked], choice)
        changes = change.frames["change"]
        show.catalogued("change", change)
    st.markdown(
        "Each layer, attention block and FFN is read as a policy of its own (Figs. 2 and 3 of "
        "[arXiv 2512.19673](https://arxiv.org/abs/2512.19673), which counts layers from 1). Bands are 95% intervals "
        "over rollouts."
    )
    next_to_look_at = st.container()  # filled last, because one of the links takes a column of every token
    with st.expander("Target layer by direction and norm", key="by-part"), show.refusing():
        st.markdown(TARGET)
        show.targets({"": view.changes(looked, average) if changes is None else changes})
    with st.expander("Entropy by layer (nats)", key="all-layers"), show.refusing():
        by_layer = summary.by_layer(looked, average).round(3)
        final = by_layer["layer"] == record["n_layers"]
        show.table("by-layer", by_layer.assign(layer=by_layer["layer"].astype(str).mask(final, "final")))
    with st.expander("How this was measured", key="measured"):
        provenance = summary.provenance(looked)
        show.table("provenance", pd.DataFrame({"setting": provenance.keys(), "value": provenance.values()}))
    if changes is not None:
        with next_to_look_at, show.refusing():
            links(looked, changes)


@scans.kept(50)
def verdict(looked: View) -> tuple[str, ...]:
    """What the scan shows, in up to three sentences."""
    return findings.verdict(looked)


def facts(looked: View) -> str:
    """Key facts on one line."""
    about, rollouts = scans.about(looked), scans.rollouts(looked)
    said = (
        f"{about.n_layers} layers",
        f"vocabulary {about.d_vocab:,}",
        f"{about.rollouts:,} rollouts",
        f"{about.tokens:,} tokens",
        pass_at_k.outcome_in_words(rollouts["reward"], rollouts["response"]),
        about.which,
    )
    return " · ".join(part for part in said if part)


def links(looked: View, changes: pd.DataFrame) -> None:
    """Draw links to the least certain response, and to the least certain token of attention in one layer."""
    st.markdown("**Look next**")
    if "readout" not in st.query_params:  # tokens are read through the final norm, unless another readout was chosen
        looked = replace(looked, readout=view.for_tokens(looked.source).readout)
    left, right = st.columns(2)
    if scans.about(looked).rollouts > 1:
        with left:
            response = least_certain_response(looked)
            link(looked, "The least certain response", rollout=response.rollout)
            means = f"{response.entropy:.3g} nats per token against {response.overall:.3g} overall"
            st.caption(show.unmarked(f"Rollout {response.rollout}: {means}"))
    if "attn_out" not in store.record(looked.source)["selection"]["sites"]:
        return
    with right:
        layer = highlights.closest(looked, layer_of_interest(changes), "attn_out")
        link_to_token(looked, *least_certain_token(looked, layer))


def link_to_token(looked: View, token: Token, text: str) -> None:
    """Draw a link to a token, whose text is `text`."""
    label = f"Where attention of layer {token.layer} was least certain"
    link(looked, label, rollout=token.rollout, layer=token.layer, position=token.position, site=token.site)
    shown = show.unmarked(text[:24]).strip() or "␣"
    before = f"{token.entropy:.3g} nats, predicting “"
    after = f"” at position {token.position} of rollout {token.rollout}"
    st.caption(f"{show.unmarked(before)}{shown}{show.unmarked(after)}")


def layer_of_interest(changes: pd.DataFrame) -> int:
    """The target layer, or else the runner-up, or else the last layer."""
    suggestion = targets.suggestion(changes)
    found = suggestion["target"] if suggestion["target"] is not None else suggestion["runner_up"]
    return int(changes["layer"].max() if found is None else found)


def link(looked: View, label: str, **cell: int | str) -> None:
    """Draw a link to a response, or a cell of it, on the Tokens page."""
    scan = {} if "scan" in st.query_params else {"scan": scans.name_of(Path(str(looked.source)))}  # the rest come along
    query = {name: str(value) for name, value in {**scan, **cell}.items()}
    st.page_link("views/tokens.py", label=label, icon=":material/arrow_forward:", query_params=query)


@scans.kept(20)
def least_certain_response(looked: View) -> Response:
    """The response whose tokens the model was least certain of."""
    return highlights.least_certain_response(looked)


@scans.kept(20)
def least_certain_token(looked: View, layer: int) -> tuple[Token, str]:
    """The token that attention of a layer was least certain of, and its text."""
    found = highlights.least_certain_token(looked, layer)
    texts = tokens.response(looked, found.rollout).set_index("position")["token"]
    return found, str(texts[found.position])


if __name__ == "__main__":
    page(scans.chosen(), scans.average())
    with st.expander("Make your own scan", key="make-your-own"):
        show.make_your_own()
