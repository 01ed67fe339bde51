"""Put a problem to a model, and tell the prompt of a text from the response: token ids, split by the chat template."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from internal_policy.errors import InputError
from internal_policy.tasks import Message, Problem

Ids = tuple[int, ...]
Chat = Mapping[str, Any] | None
"""Extra keyword arguments of the chat template; None for no template."""


def encode_problem(tokenizer: PreTrainedTokenizerBase, problem: Problem, chat: Chat) -> Ids:
    """Token ids of the prompt that asks `problem`.

    With `chat` None it is the problem's text as it is. Raises InputError if the tokenizer has no chat template
    or the template refuses the messages.
    """
    if chat is None:
        return _encode(tokenizer, problem.text, special=True)
    return _encode(tokenizer, _templated(tokenizer, problem.messages, chat, prompt=True))


def split_messages(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], chat: Chat) -> tuple[Ids, Ids]:
    """Token ids of the prompt, and of the response: the last message, with the template's end of turn.

    The boundary is the end of the template's own prompt for the messages before, never a word that is searched.
    Raises InputError where the template writes anything else in its place, or a token spans the boundary.
    """
    if not messages or messages[-1]["role"] != "assistant" or not messages[-1]["content"]:
        raise InputError("The last message is no response; it must be the assistant's, and text that is not empty.")
    *asked, answered = messages
    if chat is None:
        prompt = Problem(tuple(asked), None).text
        whole = prompt + answered["content"]
    else:
        prompt = _templated(tokenizer, asked, chat, prompt=True)
        whole = _templated(tokenizer, messages, chat, prompt=False)
        end = _check_verbatim(whole, prompt, answered["content"])
        whole = whole[:end] + whole[end:].rstrip()  # after the end of turn templates write a newline, models nothing
    prompt_ids = _encode(tokenizer, prompt, special=chat is None)
    ids = _encode(tokenizer, whole, special=chat is None)
    if not prompt_ids or ids[: len(prompt_ids)] != prompt_ids:
        raise InputError(
            f"A token spans the end of the prompt {prompt[-20:]!r} and the start of the response "
            f"{answered['content'][:20]!r}; move the white space between them, or give prompt_ids and response_ids."
        )
    if ids == prompt_ids:
        raise InputError(f"The response {answered['content']!r:.40} has no tokens; remove the row.")
    return prompt_ids, ids[len(prompt_ids) :]


def split_text(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[Ids, Ids]:
    """Token ids of a text without a prompt: its first token, and all others. Raises InputError if there is no other."""
    ids = _encode(tokenizer, text, special=True)
    if len(ids) < 2:
        raise InputError(f"The text {text!r:.40} is {len(ids)} token(s) long; 2 or more are needed to predict one.")
    return ids[:1], ids[1:]


def _templated(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], chat: Chat, prompt: bool) -> str:
    from jinja2 import TemplateError

    options = {**(chat or {}), "tokenize": False, "add_generation_prompt": prompt}
    if tokenizer.chat_template is None and "chat_template" not in options:
        raise InputError(
            "The tokenizer has no chat template; give one with --chat-template FILE, or --chat-template none."
        )
    conversation = [{"role": message["role"], "content": message["content"]} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(conversation, **options))
    except (TemplateError, ValueError) as error:
        raise InputError(
            f"The chat template refuses the messages ({error}); change their roles, or --chat-template none."
        ) from error


def _check_verbatim(whole: str, prompt: str, response: str) -> int:
    """Where the response ends in `whole`, which must be the prompt, then the response, then the end of turn.

    Around the response a template may add or trim white space, as Mistral's and Llama's do. Raises InputError.
    """
    answer = whole[len(prompt) :].lstrip()
    if whole.startswith(prompt + response):
        return len(prompt + response)
    if whole.startswith(prompt) and response.strip() and answer.startswith(response.strip()):
        start = len(whole) - len(answer)
        return start + len(response if answer.startswith(response) else response.strip())
    expected = prompt + response
    same = next((end for end in range(len(expected)) if whole[end : end + 1] != expected[end]), len(expected))
    remedy = "trim the response, or --chat-template none"
    if "<think>" in whole[same:] and "<think>" not in expected[same:]:
        remedy = """--chat-template-kwargs '{"enable_thinking": false}' (Qwen3), or --chat-template none"""
    elif any(tag in expected[same:] and tag not in whole[same:] for tag in ("<think>", "</think>")):
        remedy = "--chat-template FILE with one that keeps the reasoning, or give prompt_ids and response_ids"
    raise InputError(
        f"The chat template writes {whole[same : same + 40]!r} where {expected[same : same + 40]!r} was expected; try "
        f"{remedy}."
    )


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = False) -> Ids:
    """Token ids of `text`; one that a template wrote has its special tokens already, Llama's would get two BOS."""
    return tuple(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
