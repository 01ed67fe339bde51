"""A scan at a glance: entropies, target layer and how it was measured."""

from dataclasses import replace

import pandas as pd
import scans
import show
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from internal_policy.look import catalogue, statistics, summary
from internal_policy.look.catalogue import Choice
from internal_policy.look.statistics import Average
from internal_policy.look.view import View
from internal_policy.scans import store
from internal_policy.tasks import pass_at_k


def page(looked: View, average: Average) -> None:
    """Draw the page."""
    st.markdown(
        "Each layer, attention block and FFN, read as a policy of its own: how uncertain it is, and where that changes "
        "(Figs. 2 and 3 of [arXiv 2512.19673](https://arxiv.org/abs/2512.19673)). Layers count from 0 here "
        "and from 1 in the paper."
    )
    record = store.record(looked.source)
    st.text(show.line(record["model"]))
    last = numbers(looked)
    choice = Choice(average=average)
    flow, change = scans.data("flow", [looked], choice), scans.data("change", [looked], choice)
    left, right = st.columns(2)
    with left, show.refusing():
        means = flow.frames["entropy"]
        few = means[~means["site"].isin(["attn_in", "mlp_in"])]  # half a page only has room for a short legend
        show.figure("flow", catalogue.flow(replace(flow, frames={"entropy": few})), means)
    with right, show.refusing():
        show.catalogued("change", change)
    st.subheader("Target layer")
    st.markdown(
        "BuPO trains the last exploration layer first: the last one whose FFN raises entropy significantly. The 95 % "
        "intervals behind this hold for all layers at once, so they are wider than the bands above. The runner-up is "
        "the last other layer whose own interval is above 0. The rows for direction and norm show how much is due to "
        "the length of the hidden states alone."
    )
    show.table("targets", summary.targets(change.frames["change"]))
    st.subheader("Entropy by layer (nats)")
    by_layer = summary.by_layer(looked, average).round(3)
    final = by_layer["layer"] == record["n_layers"]
    show.table("by-layer", by_layer.assign(layer=by_layer["layer"].astype(str).mask(final, "final")))
    st.subheader("How this was measured")
    provenance = summary.provenance(looked)
    show.table("provenance", pd.DataFrame({"setting": provenance.keys(), "value": provenance.values()}))
    with show.refusing():  # reads every token of the scan, so it comes last
        depth = statistics.settling(scans.data("convergence", [looked], choice).frames["settled"])
        last.metric(
            "Half the tokens settle by",
            "the end" if depth is None else f"layer {depth}",
            help="From this layer on, at least half of the tokens keep the model's own top token.",
        )


def numbers(looked: View) -> DeltaGenerator:
    """Draw the key facts, and return an empty place for one more."""
    about, rollouts = scans.about(looked), scans.rollouts(looked)
    facts = {"Layers": f"{about.n_layers}", "Rollouts": f"{about.rollouts:,}", "Tokens": f"{about.tokens:,}"}
    facts["Vocabulary"] = f"{about.d_vocab:,}"
    name, value = pass_at_k.outcome(rollouts["reward"], rollouts["response"])
    facts[name.capitalize()] = value
    *columns, last = st.columns(len(facts) + 1)
    for column, (name, value) in zip(columns, facts.items(), strict=True):
        column.metric(name, value)
    return last.empty()


if __name__ == "__main__":
    page(scans.chosen(), scans.average())
    with st.expander("Make your own scan", key="make-your-own"):
        show.make_your_own()
