"""Each token id is written as the text it adds to a response."""

import copy
import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import tiny_model
from tokenizers import AddedToken

from internal_policy.__main__ import main
from internal_policy.models.vocabulary import token_texts, vocabulary


def text_of(tokenizer) -> dict[str, str]:
    """Piece -> its text."""
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return dict(zip(pieces, vocabulary(tokenizer, len(tokenizer))["token"], strict=True))


@pytest.mark.parametrize(
    ("piece", "text"), [("▁the", " the"), ("the", "the"), ("▁", " "), ("<0xF0>", "<0xF0>"), ("<0x41>", "A")]
)
def test_pieces_of_a_sentencepiece_vocabulary_keep_their_spaces_and_bytes(sentencepiece, piece, text):
    assert text_of(sentencepiece)[piece] == text


def test_only_ascii_characters_share_a_text_in_a_sentencepiece_vocabulary(sentencepiece):
    texts = vocabulary(sentencepiece, 320)["token"].tolist()
    single = [chr(byte) for byte in range(128)]  # a letter may be both a piece and a byte
    twice = {text for text in texts if texts.count(text) > 1}
    assert twice <= set(single)


def test_token_texts_join_to_the_response(either):
    token = vocabulary(either, 320).set_index("id")["token"]
    text = "the units: 7 + 5 = 12, 4? the boat"
    assert "".join(token[either(text, add_special_tokens=False)["input_ids"]]).lstrip() == text


def test_an_added_token_of_a_byte_level_vocabulary_keeps_its_text(tokenizer):
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens([AddedToken("ünï", normalized=False)])
    assert text_of(changed)["ünï"] == "ünï"


def test_tokens_are_written_as_text(tokenizer):
    tokens = vocabulary(tokenizer, 320)["token"].tolist()
    for word in (" apples", "<|im_end|>", "\n"):
        (token,) = tokenizer(word)["input_ids"]
        assert tokens[token] == word


def test_ids_that_the_tokenizer_does_not_know_are_written_as_numbers(tokenizer):
    tokens = vocabulary(tokenizer, 320)["token"].tolist()
    assert tokens[len(tokenizer) :] == [f"<|{token}|>" for token in range(len(tokenizer), 320)]


def test_token_texts_equal_those_of_the_vocabulary(either):
    ids = [319, 300, 5, 260, 5, 17]
    table = vocabulary(either, 320)["token"]
    assert token_texts(either, ids) == [table[token] for token in ids]


def test_a_token_with_part_of_a_character_is_written_as_bytes(tokenizer):
    ids = tokenizer("🙂", add_special_tokens=False)["input_ids"]
    token = vocabulary(tokenizer, 320).set_index("id")["token"]
    assert len(ids) > 1
    assert "".join(token[ids]).replace("><", "> <").split() == ["<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]
    assert token[tokenizer.convert_tokens_to_ids("<|im_end|>")] == "<|im_end|>"


def test_a_vocabulary_smaller_than_the_tokenizers_is_cut(tokenizer):
    assert len(vocabulary(tokenizer, 50)) == 50


def test_a_scan_of_a_sentencepiece_model_keeps_the_spaces(sentencepiece, here):
    tiny_model("llama").float().save_pretrained("model")
    sentencepiece.save_pretrained("model")
    Path("r.jsonl").write_text(json.dumps({"prompt": "What is 3 + 4?", "response": "the other boat"}))
    assert main(["scan", "--model", "model", "--rollouts", "r.jsonl", "--output", "mine"]) == 0
    token = pd.read_parquet("mine/vocabulary.parquet").set_index("id")["token"]
    (rollout,) = pd.read_parquet("mine/rollouts-00000.parquet").to_dict("records")
    assert "".join(token[rollout["response_ids"]]) == " the other boat</s>"
    assert (rollout["response"], rollout["finished"]) == ("the other boat", True)
