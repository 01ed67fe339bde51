"""What each site, change and measure is called on screen, and the colour and symbol of each site and change."""

from dataclasses import dataclass

INK, SOFT = "#1A1C21", "#50555E"
"""The strongest line and the text of axes and captions on white. A dark page replaces both with light colours."""
GREY = "#8C8C8C"
"""For lines that aren't data; visible on white and black, but too pale for text."""
FAINT = "rgba(140,140,140,0.22)"
ORANGE, BLUE, PURPLE = "#D55E00", "#0072B2", "#CC79A7"


@dataclass(frozen=True)
class Mark:
    """How a quantity is drawn. The symbol identifies it where the colour can't."""

    name: str
    colour: str
    symbol: str


SITES = {
    "resid_pre": Mark("layer input", INK, "circle-open"),
    "attn_in": Mark("attention input", ORANGE, "square-open"),
    "attn_out": Mark("attention", ORANGE, "square"),
    "resid_mid": Mark("after attention", INK, "circle-open"),
    "mlp_in": Mark("FFN input", BLUE, "diamond-open"),
    "mlp_out": Mark("FFN", BLUE, "diamond"),
    "resid_post": Mark("layer output", INK, "circle"),
    "final": Mark("final", PURPLE, "star"),
}
"""What a site is called on screen, and how it is drawn."""
CHANGES = {
    "layer": Mark("layer", INK, "circle"),
    "attn": Mark("attention", ORANGE, "square"),
    "mlp": Mark("FFN", BLUE, "diamond"),
}
"""What an entropy change is called on screen, and how it is drawn."""
MEASURES = {
    "entropy": ("Entropy", "nats"),
    "change": ("Entropy change", "nats"),
    "entropy_at_input_norm": ("Entropy at the input's norm", "nats"),
    "entropy_at_input_scale": ("Entropy at input logit scale", "nats"),
    "entropy_shuffled": ("Entropy of the shuffled state", "nats"),
    "entropy_random": ("Entropy of a random state", "nats"),
    "renyi_half": ("Rényi entropy of order 1/2", "nats"),
    "renyi_2": ("Rényi entropy of order 2", "nats"),
    "logit_scale": ("Logit scale", ""),
    "kl": ("KL from the model", "nats"),
    "logprob": ("Log probability", "nats"),
    "rank": ("Rank of the actual token", ""),
    "top1": ("Actual token is the top token", "share"),
    "settled": ("Top token has settled", "share of tokens"),
    "norm": ("Norm", ""),
    "cosine": ("Cosine", ""),
    "reward": ("Change of reward", ""),
}
"""Measure -> its name on screen and its unit."""
