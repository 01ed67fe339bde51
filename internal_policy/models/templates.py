"""Render a chat template within limits of time, memory and length, with one date per run."""

import functools
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from types import SimpleNamespace
from typing import Any

from internal_policy.errors import InputError
from internal_policy.worker import Stopped, Worker, serve

TIME_LIMIT = 5.0
"""Seconds to render one text, which normally takes less than a millisecond."""
LONGEST = 10_000_000
"""Largest rendered text in characters."""
DATE = "strftime_now"
"""The function that templates call for today's date, and the argument that overrides it with a date."""
MARK = "\ue000"
"""A text that no template writes."""
HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which Python strings can hold but tokenizers can't read."""


class Template(str):
    """The text of a chat template, with the name of its file for error messages."""

    file: str

    def __new__(cls, text: str, file: str = "") -> "Template":
        """Create the text, as `str` does."""
        made = super().__new__(cls, text)
        made.file = file
        return made


@functools.cache
def today() -> str:
    """The date on which this process rendered its first template; it stays the same past midnight."""
    return date.today().isoformat()


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    arguments: Mapping[str, Any],
    *,
    name: str = "The chat template",
) -> str:
    """Render a chat template as transformers does, in a process that is stopped if it exceeds the limits.

    Templates come with models, and may run forever. Raises InputError, beginning with `name`, if the template raises
    or exceeds a limit.
    """
    others = {key: value for key, value in arguments.items() if key != DATE}
    day = _day(arguments.get(DATE) or today())
    try:
        text, why = _worker.call(template, list(messages), others, day.isoformat(), timeout=TIME_LIMIT)
    except Stopped as error:
        raise InputError(f"{name} takes more than {TIME_LIMIT:.0f} s or 1 GB of memory. Use another one.") from error
    except TypeError as error:
        raise InputError(
            f"{name} can't read the messages ({error}). Use only text, numbers, lists and objects in them."
        ) from error
    if text is None:
        raise InputError(f"{name} rejected the messages ({why}). Fix it or the messages, or use --chat-template none.")
    if (half := HALF.search(text)) is not None:
        raise InputError(
            f"{name} writes {half.group()!r}, half of a surrogate pair, which isn't text. Fix it or the messages."
        )
    return text


def start() -> None:
    """Start the process that renders templates, which takes a second that other work can use."""
    _worker.start()


@functools.cache
def reads_parts(template: str) -> bool:
    """Whether a chat template reads a content only as a list of parts, and loses or rejects it as a text.

    Templates of vision-language models such as LLaVA do.
    """

    def kept(content: Any) -> bool:
        try:
            return MARK in render(template, [{"role": "user", "content": content}], {"add_generation_prompt": False})
        except InputError:
            return False

    return "type" in template and not kept(MARK) and kept([{"type": "text", "text": MARK}])


def _day(day: Any) -> datetime:
    try:
        return datetime.fromisoformat(day)
    except (TypeError, ValueError) as error:
        raise InputError(f"'{DATE}' is {day!r:.40}; expected a date such as 2026-11-25.") from error


# what runs in the worker


def _prepare() -> None:
    import transformers.utils.chat_template_utils  # noqa: F401  # its import must not count as a template's time


def _render(
    template: str, messages: list[dict[str, Any]], arguments: Mapping[str, Any], day: str
) -> tuple[str | None, str]:
    """The text, or None and the reason."""
    from transformers.utils import chat_template_utils

    utils: Any = chat_template_utils
    utils.datetime = SimpleNamespace(now=lambda: datetime.fromisoformat(day))
    try:
        (text,), _ = utils.render_jinja_template([messages], chat_template=template, **arguments)
    except Exception as error:  # a template may raise anything
        line = getattr(error, "lineno", None)
        why = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        return None, f"line {line}: {why}" if line else why
    if len(text) > LONGEST:
        return None, f"it writes {len(text):,} characters, more than {LONGEST:,}"
    return text, ""


_worker = Worker("internal_policy.models.templates")

if __name__ == "__main__":
    serve(_render, _prepare)
