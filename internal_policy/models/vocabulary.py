"""The text of each token id, as the tokenizer's own decoder writes it."""

import json
from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}
"""Byte-level vocabularies write each byte as a character of its own."""


def vocabulary(tokenizer: PreTrainedTokenizerBase, d_vocab: int) -> pd.DataFrame:
    """The text that each of `d_vocab` token ids adds in the middle of a text, one row per id.

    Ids that the tokenizer doesn't know are written `<|id|>`, and tokens that are part of a character as bytes, such as
    `<0xF0><0x9F>`.
    """
    return pd.DataFrame({"id": np.arange(d_vocab), "token": token_texts(tokenizer, range(d_vocab))})


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The texts of some token ids, as `vocabulary` has them."""
    size = len(tokenizer)
    known = [token for token in ids if token < size]
    before = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]  # the first token of a text may lose its space
    start = len(_decode(tokenizer, before))
    texts = [_decode(tokenizer, [*before, token])[start:] for token in known]  # lists of many lists are slow to collect
    added, is_byte_level = tokenizer.added_tokens_decoder, _is_byte_level(tokenizer)
    for row, (token, piece) in enumerate(zip(known, tokenizer.convert_ids_to_tokens(known), strict=True)):
        if "\ufffd" in texts[row]:  # the decoder can't turn it into text
            texts[row] = _bytes(piece) if is_byte_level and token not in added else piece
    text_of = dict(zip(known, texts, strict=True))
    return [text_of.get(token, f"<|{token}|>") for token in ids]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return cast(str, tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.backend_tokenizer.decoder is None:
        return False
    decoder = json.loads(tokenizer.backend_tokenizer.decoder.__getstate__())
    return any(step["type"] == "ByteLevel" for step in decoder.get("decoders", [decoder]))


def _bytes(piece: str) -> str:
    return "".join(f"<0x{BYTE_OF[character]:02X}>" for character in piece)
