"""How the time and memory of a scan grow with tokens, vocabulary and layers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import reference
import scan
import torch
from timing import Candidate, alternate

from internal_policy.scans.scan import Scanner


@dataclass(frozen=True)
class Growth:
    """The sizes that grow, one at a time from the first of `layers`, `base_tokens` and `base_vocab`."""

    tokens: tuple[int, ...] = (128, 256, 512, 1024)
    """Response tokens."""
    d_vocab: tuple[int, ...] = (32_768, 65_536, 131_072, 262_144)
    """Vocabulary entries."""
    layers: tuple[int, ...] = (2, 4, 8, 16)
    """Layers."""
    base_tokens: int = 64
    """Response tokens while another size grows."""
    base_vocab: int = 151_936
    """Vocabulary entries while another size grows."""
    d_model: int = 256
    """Width of the hidden states."""


def cases(growth: Growth, device: torch.device) -> Iterator[dict[str, Any]]:
    """The results for each size that grows, one after another; each candidate runs once."""
    base = {"tokens": growth.base_tokens, "vocabulary": growth.base_vocab, "layers": growth.layers[0]}
    series = {"tokens": growth.tokens, "vocabulary": growth.d_vocab, "layers": growth.layers}
    for name, sizes in series.items():
        rest = ", ".join(f"{other}: {size:,}" for other, size in base.items() if other != name)
        yield {
            "part": "growth",
            "what": f"growth with {name} (d = {growth.d_model}, float32, {rest})",
            "size": name,
            "costs": {size: costs({**base, name: size}, growth.d_model, device) for size in sizes},
        }


def costs(sizes: dict[str, int], d_model: int, device: torch.device) -> dict[str, Any]:
    """Seconds and megabytes for one size."""
    model = scan.build(
        {
            "family": "qwen3",
            "hidden_size": d_model,
            "intermediate_size": 2 * d_model,
            "num_hidden_layers": sizes["layers"],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": max(2, d_model // 4),
            "vocab_size": sizes["vocabulary"],
            "tie_word_embeddings": True,
        },
        torch.float32,
        device,
    )
    ids = torch.randint(10, sizes["vocabulary"], (1, sizes["tokens"] + 1), generator=torch.Generator().manual_seed(0))
    batch, ids, scanner = scan.rollouts(ids), ids.to(device), Scanner.of(model, scan.selected(model))
    return alternate(
        {
            "ours: all measures, top 5": Candidate(lambda: scanner.measure(batch)),
            "reference algorithm: entropy": Candidate(lambda: reference.scan(model, ids, 1)),
        },
        1,
        device,
    )
