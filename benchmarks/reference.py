"""The reference algorithm for the benchmarks: the analysis of arXiv 2512.19673."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from internal_policy.models.head import unembedding
from internal_policy.models.hooks import FINAL, HookPoint, hooked
from internal_policy.models.modules import decoder_layers

SITES = ("resid_pre", "attn_in", "attn_out", "mlp_in", "mlp_out", "resid_post")


def entropy(logits: Float[Tensor, "rows d_vocab"]) -> Float[Tensor, " rows"]:
    """Eq. 7 literally, on full rows of logits: softmax, log-softmax, product and sum are four more tensors."""
    return -(torch.softmax(logits, -1) * torch.log_softmax(logits, -1)).sum(-1)


@torch.inference_mode()
def scan(model: PreTrainedModel, ids: Int[Tensor, "1 seq"], first: int) -> dict[HookPoint, Tensor]:
    """The entropies at 6 sites of every layer and at the end of the model, for the tokens from `first` on."""
    kept: dict[HookPoint, Tensor] = {}
    points = [HookPoint(layer, site) for layer in range(len(decoder_layers(model))) for site in SITES] + [FINAL]
    with hooked(model, points, lambda point, hidden: kept.__setitem__(point, hidden.detach())):
        model(ids, use_cache=False)
    weight = unembedding(model).weight.float()
    return {point: entropy(hidden[0, first - 1 : -1].float() @ weight.T) for point, hidden in kept.items()}
