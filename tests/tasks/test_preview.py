"""One line shows how a prompt was read."""

import pytest

from internal_policy.tasks.preview import END, START, preview, printable
from internal_policy.tasks.problems import Message, Problem
from internal_policy.tasks.prompts import encode_problem


def read(tokenizer, text: str, chat) -> str:
    problem = Problem((Message(role="user", content=text),), None)
    return preview(tokenizer, encode_problem(tokenizer, problem, chat), chat)


def test_a_prompt_is_shown_as_the_template_rendered_it(tokenizer):
    rendered = r"<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    assert read(tokenizer, "What is 1 + 1?", {}) == f"Read through the chat template as: {rendered}"


def test_a_bos_that_the_tokenizer_adds_is_shown(sentencepiece):
    assert read(sentencepiece, "the boat", None) == f"Read as plain text: {sentencepiece.bos_token} the boat"


def test_a_long_prompt_is_cut_in_the_middle(tokenizer):
    shown = read(tokenizer, "a" * 400 + "?", {}).removeprefix("Read through the chat template as: ")
    assert shown.startswith("<|im_start|>user\\na")
    assert shown.endswith("a?<|im_end|>\\n<|im_start|>assistant\\n")
    assert len(shown) == START + END + len(" ... ")


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31m", "\u202e", "\r", "\x9b2J"])
def test_what_could_move_the_cursor_is_escaped(text):
    assert printable(text).isprintable()
    assert printable(text).encode().decode("unicode_escape") == text


def test_letters_symbols_and_backslashes_are_shown_unchanged():
    assert printable(r"\frac{1}{2} naïve 数学 🙂") == r"\frac{1}{2} naïve 数学 🙂"
