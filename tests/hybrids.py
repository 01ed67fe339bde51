"""Tiny models whose layers have attention or an FFN, but not both."""

from dataclasses import replace

import pytest
from conftest import tiny_model
from transformers import PreTrainedModel

from internal_policy.models.family import Family
from internal_policy.models.rows import FAMILIES

BOTH = FAMILIES["llama"].sites
PATTERN = ("attention", "ffn", "attention", "ffn")


def row(*, mid: bool = False) -> Family:
    """Llama's row, read as if a layer had only one of both; with `mid`, an attention layer also has `resid_mid`."""
    kinds = {
        "attention": {"mlp_in", "mlp_out"} | (set() if mid else {"resid_mid"}),
        "ffn": {"attn_in", "attn_out", "resid_mid"},
    }
    sites = {kind: {site: place for site, place in BOTH.items() if site not in gone} for kind, gone in kinds.items()}
    why = "a layer has either attention or an FFN"
    return replace(FAMILIES["llama"], kinds=sites, kind="halves", absent=dict.fromkeys(set.union(*kinds.values()), why))


def hybrid(patch: pytest.MonkeyPatch, pattern: tuple[str, ...] = PATTERN, *, mid: bool = False) -> PreTrainedModel:
    """A tiny Llama of such layers, while `patch` lasts. What a layer lacks isn't read, but still runs."""
    patch.setitem(FAMILIES, "llama", row(mid=mid))
    return tiny_model("llama", num_hidden_layers=len(pattern), halves=list(pattern))
