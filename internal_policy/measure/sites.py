"""The sites of a decoder layer, and which of them are before and after a module."""

SITES = ("resid_pre", "attn_in", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
"""The sites of a layer in the order a forward pass reaches them."""
WITH_FINAL = (*SITES, "final")
"""The same, then the state after the final norm."""
CHANGES = {"layer": ("resid_pre", "resid_post"), "attn": ("attn_in", "attn_out"), "mlp": ("mlp_in", "mlp_out")}
"""What changes the entropy -> the sites before and after it (Eqs. 11 to 13 of arXiv 2512.19673)."""
INPUT_OF = {after: before for before, after in CHANGES.values()}
"""An output -> its input, to whose norm or logit scale controls scale it."""
STREAM_OF = {"attn_out": ("resid_pre",), "mlp_out": ("resid_mid", "resid_pre")}
"""A module's output -> the stream it is added to: the first of these sites that the model has."""
ONLY_AT = {
    "cosine": tuple(STREAM_OF),
    "entropy_at_input_norm": tuple(site for site in SITES if site in INPUT_OF),
    "kl": SITES,
    "entropy_at_input_scale": tuple(site for site in SITES if site in INPUT_OF),
    "entropy_shuffled": SITES,
    "entropy_random": SITES,
}
"""Measures that only some sites have -> those sites."""
