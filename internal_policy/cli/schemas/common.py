"""Fields that several documents share."""

from internal_policy.cli.schemas.field import Field, named, part, rows, text

LAYER = Field("integer", "decoder layer, from 0; one past the last is the model's own policy")
SITE = text("hook point in the layer, such as `resid_post`")
MEAN = {"mean": Field("number|null", "mean"), "low": Field("number|null", "lower end of its 95% interval")}
MEAN |= {"high": Field("number|null", "upper end")}
ALL = {"low_all": Field("number|null", "lower end of an interval that holds for all rows at once")}
ALL |= {"high_all": Field("number|null", "upper end")}
VERSIONS = named("distribution -> its version", "string")
COMMAND = Field("string[]", "the command that measured it")
FINDINGS = Field("string[]", "what the numbers show, in sentences")
BYTES = Field("integer", "size in bytes")
CREATED = text("when it was measured, UTC")

ENTROPY_SITES = ("resid_pre", "attn_in", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post", "final")
SCAN = {
    "scan": text("folder of the scan, or its address on the Hub"),
    "cached?": Field("boolean", "whether it had been measured before (`scan` only)"),
    "schema?": Field("integer", "version of the file format"),
    "digest": text("12 digits that identify the settings"),
    "created": CREATED,
    "model": text("name of the model"),
    "family": text("row of `families` that the model is read with"),
    "row?": part("how the model is read", {"name": text("the row"), "proved": text("where it was proved")}),
    "n_layers": Field("integer", "decoder layers"),
    "d_model": Field("integer", "size of a hidden state"),
    "d_vocab": Field("integer", "size of the vocabulary"),
    "dtype": text("type of the weights"),
    "device": text("where it ran"),
    "reader?": text("library that read the hidden states, if it isn't our own"),
    "quantization?": named("how the weights are quantized"),
    "lenses?": named("each fitted lens by the name of its readout"),
    "shard?": text("the part of the work that this process did"),
    "controls?": named("what was drawn for `--controls`"),
    "versions": VERSIONS,
    "command": COMMAND,
    "rollouts": Field("integer", "number of responses"),
    "tokens": Field("integer", "number of measured response tokens"),
    "selection": part(
        "what was measured",
        {
            "layers": Field("integer[]", "layers"),
            "sites": Field("string[]", "sites"),
            "readouts": Field("string[]", "readouts"),
            "measures": Field("string[]", "measures"),
            "top_k": Field("integer", "top tokens kept at each hook point"),
            "positions?": Field("any", "positions in the responses, if not all"),
            "every?": Field("integer", "every how many positions, if not 1"),
            "controls?": Field("any", "settings of `--controls`"),
        },
    ),
    "lacking?": named("site -> layers that have no such site", "integer[]"),
    "product?": text("kind of matrix product that was used"),
    "readout": text("readout of the numbers below"),
    "suggested": part(
        "the suggested target layer; null without entropies",
        {
            "part": text("whose entropy change it is"),
            "target": Field("integer|null", "the layer; null if no layer's FFN raises entropy significantly"),
            "runner_up": Field("integer|null", "the next best layer"),
            "spans": Field("any[]", "the stages of the layers: name, first and last layer"),
            **MEAN,
        },
        optional=True,
    ),
    "entropy": rows(
        "mean entropies in nats by layer; empty if entropy wasn't measured",
        {
            "layer": LAYER,
            **{f"{site}?": Field("number|null", f"entropy at `{site}`") for site in ENTROPY_SITES},
            "change_layer?": Field("number|null", "entropy change of the layer"),
            "change_attn?": Field("number|null", "entropy change of attention"),
            "change_mlp?": Field("number|null", "entropy change of the FFN"),
        },
    ),
    "findings": FINDINGS,
    "mismatch?": part(
        "how the log probabilities of the sampling engine differ",
        {
            "tokens": Field("integer", "number of tokens"),
            "mean": Field("number|null", "mean absolute difference in nats"),
            "max": Field("number|null", "largest absolute difference in nats"),
            "ratio": Field("number|null", "mean importance ratio"),
            "k3": Field("number|null", "estimate of KL(engine ‖ model) in nats"),
        },
    ),
}
"""What `scan` and `show` print of a scan."""

ABLATION = {
    "ablation": text("folder of the ablation"),
    "cached?": Field("boolean", "whether it had been measured before (`ablate` only)"),
    "schema?": Field("integer", "version of the file format"),
    "digest?": text("12 digits that identify the settings"),
    "product?": text("kind of matrix product that was used"),
    "created?": CREATED,
    "model": text("name of the model"),
    "scan": part(
        "the scan that was ablated",
        {"name": text("its folder"), "digest": text("its digest"), "rollouts?": text("identifies its responses")},
    ),
    "n_layers": Field("integer", "decoder layers"),
    "dtype": text("type of the weights"),
    "device?": text("where it ran"),
    "restarted?": Field("boolean", "whether passes start at the ablated layer"),
    "footers?": named("checksums"),
    "rollouts": Field("integer", "number of responses"),
    "tokens": Field("integer", "number of response tokens"),
    "versions?": VERSIONS,
    "command?": COMMAND,
    "effects": rows(
        "the effect of each ablation",
        {
            "layer": LAYER,
            "module": text("what was removed: layer, attn or mlp"),
            "replacement": text("what replaced its output: zero or mean"),
            "measure": text("what changed: kl, entropy_change, logprob_change, ..."),
            **MEAN,
            **ALL,
        },
    ),
    "rewards": rows(
        "rewards of responses that were sampled again; empty without `--samples`",
        {
            "layer": LAYER,
            "module": text("what was removed"),
            "replacement": text("what replaced its output"),
            "rollouts?": Field("integer", "number of responses"),
            "responses?": Field("integer", "number of responses"),
            "reward?": Field("number|null", "mean reward"),
            **{f"{name}?": each for name, each in MEAN.items()},
        },
    ),
    "correlations?": rows(
        "how the effects follow the entropy changes of the scan, if the scan still exists",
        {
            "module": text("what was removed"),
            "replacement": text("what replaced its output"),
            "layers": Field("integer", "number of layers"),
            "correlation": Field("number|null", "Spearman's rank correlation"),
            "low": Field("number|null", "lower end of its 95% interval"),
            "high": Field("number|null", "upper end"),
            "p": Field("number|null", "p value"),
        },
    ),
    "findings": FINDINGS,
}
"""What `ablate` and `show` print of an ablation."""

ALIGNMENT = {
    "alignment": text("folder of the alignment"),
    "cached?": Field("boolean", "whether it had been measured before (`align` only)"),
    "created": CREATED,
    "model": text("name of the model"),
    "n_layers": Field("integer", "decoder layers"),
    "prompts": Field("integer", "number of prompts"),
    "with_spread": Field("integer", "prompts whose responses have different rewards"),
    "responses": Field("integer", "number of responses"),
    "blocks": Field("integer", "blocks of the jackknife"),
    "kept": Field("number|null", "share of the gradient's norm that is shared by halves of the prompts"),
    "versions": VERSIONS,
    "command": COMMAND,
    "suggested": rows(
        "the layer that is best worth training first, for each site and readout",
        {
            "site": SITE,
            "readout": text("readout"),
            "layer": Field("integer|null", "the layer; null if none gains significantly"),
            "gain?": Field("number|null", "share of GRPO's gain"),
            "low?": Field("number|null", "lower end of its 95% interval"),
            "high?": Field("number|null", "upper end"),
            "cost?": Field("number|null", "cost of a step, as a share of GRPO's"),
            "alike?": Field("integer[]", "layers that aren't significantly worse"),
        },
    ),
    "rows": rows(
        "each measure at each hook point",
        {
            "layer": LAYER,
            "site": SITE,
            "readout": text("readout"),
            "cost": Field("number|null", "cost of a step, as a share of GRPO's"),
            "measure": text("gain, gain_in_batch, cosine, ..."),
            **MEAN,
        },
    ),
}
"""What `align` and `show` print of an alignment."""
