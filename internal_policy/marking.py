"""How a response is marked: the answer in its last box, beside the right one."""

import re

from internal_policy import verify


def reward(response: str, answer: str) -> float:
    r"""1.0 if the last complete \boxed{} of `response` holds `answer`, else 0.0; nothing in it is ever executed.

    It holds it if both are equal once normalised, or if math-verify finds that they mean the same (`verify.equal`).
    Two plain numbers are never asked about. Where the answer is one, the box has to be one value too: `47 + 385` is no
    answer to what 47 + 385 is.
    """
    content = boxed(response) or ""
    given, expected = normalised(content), normalised(answer)
    if not given or given == expected:
        return float(given != "")
    if NUMBER.fullmatch(expected) and (NUMBER.fullmatch(given) or _calculates(given)):
        return 0.0
    return float(verify.equal(content, answer))


JOINED = re.compile(r"\.|[})\s]*[/^][{(\s]*-?|[}\]]\s*\{|\s*\\frac\s*\{?")
"""What stands between the digits of one value: a decimal point, a fraction, a power, a root, a mixed number."""
OF_ONE_NUMBER = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))|\s*\\(?:times|cdot)\s*10(?=\s*\^)")
"""Thousands commas and powers of ten, which join digits to one number."""


def _calculates(given: str) -> bool:
    """Whether numbers stand in `given` side by side or with an operator between: 47 + 385, (2)(3), 1, 2."""
    between = re.split(r"[0-9]+", OF_ONE_NUMBER.sub("", given))[1:-1]
    return not all(map(JOINED.fullmatch, between))


BRACES = re.compile(r"(\\boxed\s*\{)|\\\\(?!boxed)|\\[{}]|([{}])")


def boxed(text: str) -> str | None:
    r"""Content of the last complete \boxed{...}, None if there is none; time grows linearly with the text.

    Where boxes are nested the inner one is the last. Escaped braces (`\{`) do not count, nor do boxes never closed.
    """
    unclosed: list[tuple[bool, int]] = []
    last, content = -1, None
    for match in BRACES.finditer(text):
        box, brace = match.groups()
        if box or brace == "{":
            unclosed.append((box is not None, match.end()))
        elif brace and unclosed:
            is_box, start = unclosed.pop()
            if is_box and start > last:
                last, content = start, text[start : match.start()]
    return content


REWRITES = (
    (re.compile(r"\\!\s*|\\[,$]"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"(?<!\d)(?<!\d\s)\\frac\s*(?:\{(-?\d+)\}\s*\{(\d+)\}|(\d)\s*(\d))"), r"\1\3/\2\4"),
    (re.compile(r"\\text\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\s+"), " "),
)
NUMBER = re.compile(r"([+-]?)(?=\.?[0-9])([0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.([0-9]*))?")


def normalised(answer: str) -> str:
    r"""`answer` without what changes no value: $, \text, wide spaces, thousands commas, a leading +, final zeros."""
    for pattern, replacement in REWRITES:
        answer = pattern.sub(replacement, answer)
    answer = answer.strip(" $").rstrip(" $.")
    number = NUMBER.fullmatch(answer)
    if number is None:
        return answer.removeprefix("+")
    sign, whole, decimals = number.groups("")  # digits stay text: no answer is too long for it
    whole, decimals = whole.replace(",", "").lstrip("0"), decimals.rstrip("0")
    value = (whole or "0") + ("." + decimals if decimals else "")
    return "-" + value if sign == "-" and value != "0" else value
