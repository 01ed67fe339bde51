"""Show in one line how the first prompt was read, so that a wrong template is noticed in time."""

from transformers import PreTrainedTokenizerBase

from internal_policy.tasks.prompts import Chat, Ids

PLAIN = "Read as plain text: "
"""How a preview begins of a prompt that no chat template rendered."""
START, END = 50, 70
"""How many characters of a long prompt are shown, from its beginning and from its end."""


def preview(tokenizer: PreTrainedTokenizerBase, prompt: Ids, chat: Chat) -> str:
    r"""How a prompt was read, in one line: its text as the model reads it, with special tokens, \n for a line break.

    A long prompt is cut in the middle, because the end shows where the response begins.
    """
    text = printable(str(tokenizer.decode(list(prompt), skip_special_tokens=False, clean_up_tokenization_spaces=False)))
    if len(text) > START + END:
        text = f"{text[:START]} ... {text[-END:]}"
    return f"{PLAIN if chat is None else 'Read through the chat template as: '}{text}"


def printable(text: str) -> str:
    r"""The text in one line, with \n, \x1b and the like for everything that isn't printed."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
