"""Encode prompts and responses that were sampled elsewhere, without changing a response's text."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from internal_policy.errors import InputError
from internal_policy.models import templates
from internal_policy.tasks import prompts
from internal_policy.tasks.problems import Message, Problem
from internal_policy.tasks.prompts import PROBE, Chat, Ids, Tools

SECOND = "\ue001"
"""Placeholder for a system message beside PROBE for the user's; no text contains this character."""


def prompt_text(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Message], chat: Chat, tools: Tools = ()
) -> str:
    """The text that a model reads before it answers: messages through the chat template, a text as it is.

    Without a template it is the last user message. Raises InputError.
    """
    if isinstance(prompt, str):
        return prompt
    if chat is None:
        return Problem(tuple(prompt), None).text
    return prompts.rendered_prompt(tokenizer, prompts.without_ends(tokenizer, prompt, chat, tools), chat, tools)


def encoded_prompt(tokenizer: PreTrainedTokenizerBase, text: str, *, is_rendered: bool) -> Ids:
    """Token ids of a prompt's text, with the BOS that the tokenizer adds unless the template wrote it.

    Raises InputError for a prompt without tokens.
    """
    ids = prompts.encode(tokenizer, text) if is_rendered else prompts.encode_text(tokenizer, text)
    if not ids:
        raise InputError("The prompt is empty. Remove the row.")
    return ids


def encoded_response(tokenizer: PreTrainedTokenizerBase, prompt: Ids, text: str | None, response: str) -> Ids:
    """Token ids of a response after its prompt, whose `text` is None if only its ids are known.

    They are those of the response by itself where one token would span both, because a prompt is encoded before the
    response exists. Raises InputError for a response without tokens.
    """
    if text is not None:
        ids = prompts.encode(tokenizer, text + response)
        start = prompt if ids[:1] == prompt[:1] else prompt[1:]  # encode adds no BOS
        if start and ids[: len(start)] == start and len(ids) > len(start):
            return ids[len(start) :]
    if ids := prompts.encode(tokenizer, response):
        return ids
    raise InputError(f"The response {response!r:.40} has no tokens. Remove the row.")


def ended(text: str, end: str) -> str:
    """A response with the end of its turn, unless it has one."""
    return text if not end or text.rstrip().endswith(end) else text + end


def end_of_turn(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> str:
    """What the chat template writes after the last response; empty without a template."""
    if chat is None:
        return ""
    return next(iter(prompts.turn_ends(tokenizer, [Message(role="user", content="a")], chat)), "")


def restored(tokenizer: PreTrainedTokenizerBase, text: str, chat: Chat) -> Sequence[Message]:
    """The messages whose prompt is `text` once its special tokens are removed: one question, maybe a system message.

    Raises InputError if the chat template writes no such prompt.
    """
    user, system = Message(role="user", content=PROBE), Message(role="system", content=SECOND)
    for probed in ([user], [system, user]):
        try:
            bare = _bare(tokenizer, prompts.rendered_prompt(tokenizer, probed, chat))
        except InputError:  # many templates refuse system messages
            if len(probed) == 1:
                raise
            continue
        found = _filled(probed, bare, text)
        if found and _bare(tokenizer, prompts.rendered_prompt(tokenizer, found, chat)) == text:
            return found
    raise InputError(
        f"the prompt {text!r:.40} has lost its special tokens, and the chat template can't restore them: expected one "
        "question, with or without a system message. Use --chat-template FILE with the template it was made with, or "
        "--chat-template none to read it as plain text."
    )


def _filled(probed: Sequence[Message], bare: str, text: str) -> list[Message]:
    """The messages with the parts of `text` that stand where `bare` has placeholders; none if they differ elsewhere."""
    found, rest = [], text
    before, _, after = bare.partition(probed[0]["content"])
    for number, message in enumerate(probed):
        if not rest.startswith(before):
            return []
        rest = rest.removeprefix(before)
        if number + 1 < len(probed):
            before, _, after = after.partition(probed[number + 1]["content"])
            content, mark, rest = rest.partition(before)
            if not mark:
                return []
            rest = before + rest
        else:
            if not rest.endswith(after):
                return []
            content = rest.removesuffix(after)
        found.append(Message(role=message["role"], content=content))
    return found


def _bare(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text without special tokens, as it is decoded."""
    if templates.HALF.search(text):
        return text
    ids = list(prompts.encode(tokenizer, text))
    return str(tokenizer.decode(ids, skip_special_tokens=True))
