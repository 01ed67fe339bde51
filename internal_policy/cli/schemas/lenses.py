"""Fields of the documents about a text, a lens and a family."""

from internal_policy.cli.schemas.common import LAYER, MEAN, SITE
from internal_policy.cli.schemas.field import Field, named, part, rows, text

CORPUS = {
    "file?": Field("string|null", "name of the file"),
    "source?": Field("string|null", "sampled or given"),
    "sha256?": Field("string|null", "digest of the token ids"),
    "problems?": Field("integer|null", "number of problems"),
    "rollouts?": Field("integer|null", "number of responses"),
    "tokens?": Field("integer|null", "number of tokens"),
    "sequences?": Field("integer|null", "number of sequences"),
}
AT = {"layer": LAYER, "site": SITE}
CARD = {
    "lens": text("file of the lens"),
    "kind": text("tuned or jacobian"),
    "model": Field("string|null", "model that it was fitted to"),
    "identity": Field("string|null", "identifies the weights of the model"),
    "d_model": Field("integer", "size of a hidden state"),
    "n_layers": Field("integer|null", "decoder layers of the model"),
    "fitted_on": part("what it was fitted on", CORPUS, optional=True),
    "held_out": part("what it was measured on", CORPUS, optional=True),
    "options": named("options of the fit"),
    "kl": rows("KL(final ‖ readout) in nats on held-out tokens", {**AT, "readout": text("readout"), **MEAN}),
    "gain": rows("how much closer it is than the logit lens, in nats, at all rows at once", {**AT, **MEAN}),
    "halves": rows(
        "how far apart lenses of two halves of the texts are: KL in nats",
        {
            **AT,
            "difference": Field("number|null", "|A - B| / |mean| of their maps"),
            **{f"{name}?": each for name, each in MEAN.items()},
        },
    ),
    "maps": rows(
        "each map",
        {
            **AT,
            "scale": Field("number|null", "multiple of the identity that is closest"),
            "off_identity": Field("number|null", "share of the map that isn't a multiple of the identity"),
        },
    ),
    "missing": Field("string[]", "what the file doesn't tell"),
    "unreadable": Field("string[]", "entries of the file that were left out"),
    "sentences": Field("string[]", "what the card says"),
}
"""What `fit-lens` and `show` print of a lens."""
MERGED = {
    "lens": text("file that was written"),
    "kind": text("tuned or jacobian"),
    "model": Field("string|null", "model that it was fitted to"),
    "identity": Field("string|null", "identifies the weights of the model"),
    "d_model": Field("integer", "size of a hidden state"),
    "n_layers": Field("integer", "decoder layers of the model"),
    "fitted_on": part("what it was fitted on", CORPUS),
    "maps?": Field("any", "each map, as in a card"),
}
TEXTS = {
    "model": text("name of the model"),
    "texts": rows(
        "each text",
        {
            "text": text("the text"),
            "site": SITE,
            "readout": text("readout"),
            "n_layers": Field("integer", "decoder layers"),
            "from_layer": Field("integer|null", "first layer from which on the target is the top token"),
            "verdict": text("the same in a sentence"),
            "rows": rows(
                "a row for each layer, with `--all-positions` at each token",
                {
                    "position": Field("integer", "index of the token that is read, from 0"),
                    "read": text("the token that is read"),
                    "layer": LAYER,
                    "point": text("hook point, such as `3.resid_post`"),
                    "token": text("top token"),
                    "probability": Field("number|null", "its probability"),
                    "entropy": Field("number|null", "entropy in nats"),
                    "kl": Field("number|null", "KL from the model's own policy in nats"),
                    "target": text("token that is followed"),
                    "target_probability": Field("number|null", "its probability"),
                    "target_rank": Field("integer", "its rank; 1 is the top token"),
                    "top_tokens": Field("string[]", "the top tokens, most likely first"),
                    "top_ids": Field("integer[]", "their ids"),
                    "top_probabilities": Field("number[]", "their probabilities"),
                },
            ),
        },
    ),
}
"""What `lens` prints."""
FAMILY = {
    "model_type": text("`model_type` of the model"),
    "name": Field("string|null", "row that it is read with"),
    "proved": Field(
        "string|null", "table: its row is proved; here: proved on a tiny model of it; null: it can't be read"
    ),
    "refusal": Field("string|null", "why it can't be read"),
    "contradictions": Field("object|null", "claim -> what contradicts it, empty if nothing does"),
    "row": Field("object|null", "the row: where each site is read"),
}
"""What `families MODEL` prints."""
FAMILIES = Field(
    "object", "each row by its name: where each site is read, `contradictions` and `proved`", values="object"
)
"""What `families` prints."""
EVERY = {
    "families": FAMILIES,
    "types": Field("object", "`model_type` -> the row that it is read with, or why it isn't", values="object"),
}
"""What `families --all` prints."""
