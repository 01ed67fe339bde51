"""Turn problems into the token ids of prompts, and split texts into prompt and response by the chat template."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from internal_policy.errors import InputError, quoted
from internal_policy.models import templates
from internal_policy.tasks.problems import REASONING, Message, Problem

Ids = tuple[int, ...]
Chat = Mapping[str, Any] | None
"""Extra keyword arguments of the chat template; None for no template."""
Tools = Sequence[Mapping[str, Any]]
"""JSON schemas of the tools that the chat template describes to the model."""
CONTROL = r"<[|｜][^<>\s]*[|｜]>"
"""Pattern of control tokens, including those in templates made for another tokenizer."""
PROBE = "\ue000"
"""Placeholder for the content of a turn, to see what a template writes after it; no text contains this character."""


def encode_problem(tokenizer: PreTrainedTokenizerBase, problem: Problem, chat: Chat) -> Ids:
    """Token ids of the prompt for `problem`, with at most one BOS and no EOS.

    If `chat` is None, it is the problem's text unchanged. Raises InputError if the tokenizer has no chat template,
    the template rejects the messages, or the text is already a rendered prompt.
    """
    if chat is None:
        _need_no_template({"tools": problem.tools})
        return encode_text(tokenizer, problem.text)
    context = without_ends(tokenizer, problem.messages, chat, problem.tools)
    return encode(tokenizer, rendered_prompt(tokenizer, context, chat, problem.tools))


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> Ids:
    """Token ids of `text` without an EOS, but with the BOS that the tokenizer adds unless `text` begins with it.

    Raises InputError for a tokenizer that has no tokens for the text, or loses it when it adds special tokens.
    """
    ids = encode(tokenizer, text)
    sample = encode(tokenizer, "a")
    added = tuple(tokenizer("a", verbose=False)["input_ids"])
    start = next((n for n in range(len(added) + 1) if added[n : n + len(sample)] == sample), None)
    if start is None or (text and not ids):
        raise InputError(
            f"The tokenizer loses the text {text!r:.40} (see post_processor in its tokenizer.json). Get a complete "
            "copy of the tokenizer."
        )
    return ids if ids[:start] == added[:start] else added[:start] + ids


def continuation(tokenizer: PreTrainedTokenizerBase, prompt: Ids, text: str, more: str) -> Ids:
    """Token ids of `more` where it goes on from `text`, whose token ids are `prompt`.

    If the two are joined by one token, or `prompt` isn't `text` alone, they are those of `more` by itself. Raises
    InputError if it has none.
    """
    whole = encode_text(tokenizer, text + more)
    ids = whole[len(prompt) :] if whole[: len(prompt)] == prompt else encode(tokenizer, more)
    if not ids:
        raise InputError(f"The target {more!r} has no tokens. Give a word, such as ' Paris'.")
    return ids


def split_messages(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], chat: Chat, tools: Tools = ()
) -> tuple[Ids, Ids]:
    """Token ids of the prompt, and of the response: the last message, with the template's end of turn.

    The boundary is the end of the template's own prompt for the earlier messages; no marker is searched for. An
    assistant turn that already ends with an end of turn doesn't get another. Raises InputError if the template rewrites
    the response or leaves out a part of it, or if a token spans the boundary.
    """
    if not messages or messages[-1]["role"] != "assistant" or not _parts(messages[-1]):
        raise InputError("The last message must be the assistant's response, and not empty.")
    *context, response = messages
    if chat is None:
        _need_no_template({**_parts(response), "content": None, "tools": tools})
        prompt = Problem(tuple(context), None).text
        whole = prompt + _to_its_end(tokenizer, response["content"], chat)
        prompt_ids, ids = encode_text(tokenizer, prompt), encode_text(tokenizer, whole)
    else:
        context = without_ends(tokenizer, context, chat, tools)
        prompt = rendered_prompt(tokenizer, context, chat, tools)
        whole = _whole(tokenizer, context, response, chat, tools, prompt)
        prompt_ids, ids = encode(tokenizer, prompt), encode(tokenizer, whole)
    if not prompt_ids or ids[: len(prompt_ids)] != prompt_ids:
        raise InputError(
            f"One token spans the end of the prompt {prompt[-20:]!r} and the start of the response "
            f"{response['content'][:20]!r}. Move the white space between them, or give prompt_ids and response_ids."
        )
    if ids == prompt_ids:
        raise InputError(f"The response {response['content']!r:.40} has no tokens. Remove the row.")
    return prompt_ids, ids[len(prompt_ids) :]


def split_text(tokenizer: PreTrainedTokenizerBase, text: str, chat: Chat = None) -> tuple[Ids, Ids]:
    """Token ids of a text without a prompt: its first token, and the rest.

    The white space that a template, by default the tokenizer's own, writes after the last end of turn is left out, as
    `split_messages` does. Raises InputError for fewer than two tokens.
    """
    if not text:
        raise InputError(
            "The text is empty. Give a longer text, such as a sentence: the first token is never predicted."
        )
    ids = encode_text(tokenizer, _to_its_end(tokenizer, text, chat))
    if len(ids) < 2:
        raise InputError(
            f"The text {text!r:.40} has fewer than two tokens. Give a longer text, such as a sentence: the first token "
            "is never predicted."
        )
    return ids[:1], ids[1:]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of special tokens, including those that only tokenizer.json marks as special (Gemma's `<end_of_turn>`)."""
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(token for token, piece in added if piece.special)}


def _parts(response: Message) -> Mapping[str, Any]:
    """The non-empty parts of a response, by the key of its message."""
    message = cast(Mapping[str, Any], response)
    return {key: message[key] for key in (*REASONING, "content", "tool_calls") if message.get(key)}


def _need_no_template(parts: Mapping[str, Any]) -> None:
    for key, value in parts.items():
        if value:
            raise InputError(f"'{key}' needs a chat template. Leave out --chat-template none.")


def without_ends(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], chat: Chat, tools: Tools
) -> list[Message]:
    """The messages, without an end of turn that the template would write a second time after an assistant turn."""
    turns = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        return list(messages)
    ends = turn_ends(tokenizer, messages[: turns[0]], chat, tools)
    cleaned = list(messages)
    for n in turns:
        content = messages[n]["content"].rstrip()
        end = next((end for end in ends if content.endswith(end)), None)
        if end is not None:
            cleaned[n] = cast(Message, {**messages[n], "content": content.removesuffix(end)})
    return cleaned


def turn_ends(
    tokenizer: PreTrainedTokenizerBase, context: Sequence[Message], chat: Chat, tools: Tools = ()
) -> tuple[str, ...]:
    """What the template writes after the last assistant turn, and after an earlier one, which differs for gpt-oss."""
    probed = [*context, Message(role="assistant", content=PROBE)]
    longer = [*probed, Message(role="user", content=PROBE)]
    last = _templated(tokenizer, probed, chat, tools, prompt=False).partition(PROBE)[2].strip()
    earlier = _templated(tokenizer, longer, chat, tools, prompt=False).partition(PROBE)[2].lstrip()
    special = _special(tokenizer).match(earlier)
    return tuple(end for end in (last, special.group() if special else "") if end)


def _to_its_end(tokenizer: PreTrainedTokenizerBase, text: str, chat: Chat) -> str:
    """The text without white space after a final end of turn."""
    ended = text.rstrip()
    if ended == text or not re.search(rf"(?:{_special(tokenizer).pattern})\Z", ended):
        return text
    ends = [str(tokenizer.eos_token)] if tokenizer.eos_token else []
    with suppress(InputError):  # the text is already rendered, so a missing or failing template doesn't matter
        ends += turn_ends(tokenizer, [Message(role="user", content="a")], chat)
    return ended if ended.endswith(tuple(ends)) else text


def _special(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    pieces = tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))
    return re.compile("|".join([*map(re.escape, pieces), CONTROL]))


def rendered_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], chat: Chat, tools: Tools = ()
) -> str:
    """The template's text up to the response. Raises InputError for a question that is already a rendered prompt."""
    rendered = _templated(tokenizer, messages, chat, tools, prompt=True)
    questions = [message["content"].strip() for message in messages if message["role"] == "user"]
    if not questions or questions[-1] not in rendered:
        return rendered
    bos = str(tokenizer.bos_token or "")
    before, _, after = rendered.rpartition(questions[-1])
    before, question = before.removeprefix(bos), questions[-1].removeprefix(bos).lstrip()
    special = _special(tokenizer)
    marks = list(special.finditer(before))
    end = special.search(after)
    closes = after[: end.end()].strip() if end else after.strip()  # the template's first mark after the question
    if marks:  # its first mark of all, and its last before the question
        begins, opens = (marks[0].group(),), before[marks[-1].start() :].strip()
    else:  # plain text can't be told from an earlier message
        begins, opens = _openings(tokenizer, chat, tools, bos) if closes and closes in question else ((), "")
    opened = question.find(opens)
    if opens and closes and question.startswith(begins) and 0 <= opened < question.find(closes, opened + len(opens)):
        raise InputError(
            f"The text {question!r:.40} is already a rendered prompt: the chat template would be applied twice. Use "
            "--chat-template none, or give the question alone."
        )
    return rendered


def _openings(tokenizer: PreTrainedTokenizerBase, chat: Chat, tools: Tools, bos: str) -> tuple[tuple[str, ...], str]:
    """What a template writes before a first message from the user or the system, and before the user's."""
    user, system = Message(role="user", content=PROBE), Message(role="system", content=PROBE)
    openings = []
    for messages in ([user], [system, user]):
        with suppress(InputError):  # many templates refuse system messages
            text = _templated(tokenizer, messages, chat, tools, prompt=True)
            openings.append(text.partition(PROBE)[0].removeprefix(bos).strip())
    return tuple(filter(None, openings)), openings[0] if openings else ""


def _check_calls(calls: Any) -> None:
    """Raise InputError unless the `tool_calls` of a message have the form that transformers documents."""
    listed = calls if isinstance(calls, list | tuple) else [None]
    functions = [call.get("function", call) if isinstance(call, Mapping) else None for call in listed]
    named = all(isinstance(function, Mapping) and isinstance(function.get("name"), str) for function in functions)
    if calls and not named:
        raise InputError(
            f"'tool_calls' holds {quoted(calls)}; expected a list of objects with a 'function', which has a 'name' "
            "and 'arguments'."
        )


def _whole(
    tokenizer: PreTrainedTokenizerBase,
    context: Sequence[Message],
    response: Message,
    chat: Chat,
    tools: Tools,
    prompt: str,
) -> str:
    """Prompt, response and one end of turn, without the newline after it, which templates write but models don't."""
    whole = _templated(tokenizer, [*context, response], chat, tools, prompt=False)
    end = _check_verbatim(whole, prompt, response)
    turn_end, content = whole[end:].strip(), response["content"].rstrip()
    if turn_end and content.endswith(turn_end):
        response = cast(Message, {**response, "content": content.removesuffix(turn_end)})
        whole = _templated(tokenizer, [*context, response], chat, tools, prompt=False)
        end = _check_verbatim(whole, prompt, response)
    elif tokenizer.eos_token and content.endswith(str(tokenizer.eos_token)):
        return whole[:end].rstrip()
    return whole[:end] + whole[end:].rstrip()


def _templated(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], chat: Chat, tools: Tools, prompt: bool
) -> str:
    options = {**(chat or {}), "add_generation_prompt": prompt}
    options["tools"] = [dict(tool) for tool in tools] or options.get("tools")
    if tokenizer.chat_template is None and "chat_template" not in options:
        raise InputError(
            "The tokenizer has no chat template. Use --chat-template FILE to give one, or --chat-template none."
        )
    conversation = [{key: value for key, value in message.items() if value is not None} for message in messages]
    for message in conversation:
        _check_calls(message.get("tool_calls"))
    try:
        if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:  # Mistral's own
            return str(cast(Any, tokenizer).apply_chat_template(conversation, tokenize=False, **options))
        template = tokenizer.get_chat_template(options.pop("chat_template", None), options["tools"])
    except ValueError as error:
        raise InputError(f"The chat template rejected the messages ({error}). Try --chat-template FILE.") from error
    if tools and "tools" not in template:
        raise InputError("The chat template ignores 'tools'. Use --chat-template FILE with one that writes them.")
    if templates.reads_parts(template):
        conversation = [
            {**message, "content": [{"type": "text", "text": message["content"]}]} if "content" in message else message
            for message in conversation
        ]
    file = getattr(template, "file", "") or f"of {tokenizer.name_or_path or 'the tokenizer'}"
    arguments = {**tokenizer.special_tokens_map, **options}
    return templates.render(template, conversation, arguments, name=f"The chat template {file}")


def _check_verbatim(whole: str, prompt: str, response: Message) -> int:
    """Where the response ends in `whole`, which must be the prompt, then the response, then the end of turn.

    A template may add or trim white space around the response, as Mistral's and Llama's do, and around reasoning and
    tool calls it may add any markers. Raises InputError.
    """
    content, start = response["content"], _after_reasoning(whole, prompt, response)
    answer = whole[start:].lstrip()
    if start == len(prompt) and whole.startswith(prompt + content):
        return len(prompt + content)
    if start > len(prompt):  # what marks the end of the reasoning
        answer = answer[max(answer.find(content.strip()), 0) :]
    if whole.startswith(prompt) and content.strip() and answer.startswith(content.strip()):
        start = len(whole) - len(answer)
        return start + len(content if answer.startswith(content) else content.strip())
    if start > len(prompt) and not content.strip():
        return start
    expected = prompt + content
    same = next((end for end in range(len(expected)) if whole[end : end + 1] != expected[end]), len(expected))
    remedy = "to trim the response, or --chat-template none"
    if "<think>" in whole[same:] and "<think>" not in expected[same:]:
        remedy = """--chat-template-kwargs '{"enable_thinking": false}' (Qwen3), or --chat-template none"""
    elif any(tag in expected[same:] and tag not in whole[same:] for tag in ("<think>", "</think>")):
        remedy = "--chat-template FILE with one that keeps the reasoning, or prompt_ids and response_ids"
    raise InputError(
        f"The chat template writes {whole[same : same + 40]!r} instead of {expected[same : same + 40]!r}. Try {remedy}."
    )


def _after_reasoning(whole: str, prompt: str, response: Message) -> int:
    """Where the response's content may begin. Raises InputError if the template left out reasoning or tool calls."""
    parts, written = _parts(response), whole[len(prompt) :] if whole.startswith(prompt) else ""
    calls = parts.get("tool_calls", ())
    key, end = next(((key, str(parts[key]).strip()) for key in REASONING if key in parts), ("", ""))
    names = [str(call.get("function", call).get("name")) for call in calls]
    if end not in written or any(name not in written for name in names):
        raise InputError(
            f"The chat template drops '{key if end not in written else 'tool_calls'}' from the response. "
            "Use --chat-template FILE with one that writes it, or give prompt_ids and response_ids."
        )
    return len(prompt) + (written.index(end) + len(end) if end else 0)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Ids:
    """Token ids of `text` without adding special tokens, which the template has already written."""
    if (half := templates.HALF.search(text)) is not None:
        raise InputError(f"{text!r:.40} contains {half.group()!r}, half of a surrogate pair, which isn't text. Fix it.")
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
