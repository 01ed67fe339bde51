"""Mark a response by the answer in its last box."""

import re

from internal_policy.tasks import equality


def reward(response: str, answer: str) -> float:
    r"""1.0 if the last complete box of `response` holds `answer`, else 0.0; nothing in it is ever executed.

    They match if they are equal after normalising, or if math-verify finds that they mean the same (`equality.equal`).
    Two plain numbers are never given to math-verify. If the answer is a number, the box must hold one value too, or an
    equation that ends with it: `47 + 385` doesn't answer what 47 + 385 is, but `47 + 385 = 432` does.
    """
    content = boxed(response) or ""
    given, expected = normalised(content), normalised(answer)
    if not given or given == expected:
        return float(given != "")
    if len(content) > equality.LONGEST:
        return 0.0
    if NUMBER.fullmatch(expected):
        content = UNIT.sub(" ", content)
        if NUMBER.fullmatch(given) or _calculates(normalised(content)):
            return 0.0
        sides = [normalised(side) for side in content.split("=")]
        if any(NUMBER.fullmatch(side) and side != expected for side in sides):  # 3 = 432
            return 0.0
        if sides[-1] == expected:  # math-verify reads x = 10,080 as two numbers
            content = "=".join([*content.split("=")[:-1], expected])
    return float(equality.equal(content, answer))


def mark(response: str, answer: str | None) -> float | None:
    """The `reward` of a response; None without an answer, or with one that `is_prose`."""
    return None if answer is None or is_prose(answer) else reward(response, answer)


WORD = re.compile(r"[(\"'“‘]*[^\W\d_]{2,}(?:['’-][^\W\d_]+)*[)\"'”’.,;:!?]*")
"""A word between spaces, with its punctuation; neither a formula nor a LaTeX command."""
SENTENCE, LONGEST_PHRASE = 4, 8
"""Words from which an answer is prose: with a full stop at its end, and without one."""


def is_prose(answer: str) -> bool:
    r"""Whether an answer is sentences, which no response repeats word by word, and no value, name or formula.

    Such as `The sky is blue because air scatters short waves most.`, but not `\text{Precinct 3, Precinct 1}`.
    """
    words = sum(WORD.fullmatch(word) is not None for word in answer.split())
    return words >= (SENTENCE if answer.rstrip(" \"'”’)").endswith((".", "!", "?")) else LONGEST_PHRASE)


POWER = r"\s*\^\s*(?:-?[0-9]|\{\s*-?[0-9]\s*\})"
UNIT = re.compile(rf"(?:\\[ ,;:]|~)*\s*\\(?:text|textrm|mbox|mathrm)\s*\{{[^{{}}0-9^]*(?:{POWER}\$?\s*\}}|\}}{POWER})")
r"""A unit with its power, whose digits don't belong to the value: \text{ cm}^2 or \mathrm{cm^2}."""
EQUALS = re.compile(r"=(?![^{}]*\})")
"""The sign between the sides of an equation, but not one in the index of a sum."""
SEVERAL = re.compile(r"\\q?quad|\\\\")
"""Separators of two equations, which math-verify overlooks."""
UNDONE = re.compile(r"\\(?:sum|prod|i*int|lim)(?![a-zA-Z])")
"""Operators that leave a calculation undone, whatever numbers they apply to."""
JOINED = re.compile(r"\.|[})\s]*[/^][{(\s]*-?|[}\]]\s*\{|\s*\\frac\s*\{?")
"""What may come between the digits of one value: a decimal point, a fraction, a power, a root, a mixed number."""
OF_ONE_NUMBER = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))|\s*\\(?:times|cdot)\s*10(?=\s*\^)")
"""Thousands commas and powers of ten, which join digits to one number."""


def _calculates(given: str) -> bool:
    """Whether `given` holds several values or an undone calculation: 47 + 385, (2)(3), x = 47 + 385, 1, 2."""
    *sides, value = EQUALS.split(given)
    between = re.split(r"[0-9]+", OF_ONE_NUMBER.sub("", value))[1:-1]
    several = any(map(SEVERAL.search, sides))
    return several or UNDONE.search(value) is not None or not all(map(JOINED.fullmatch, between))


BARE = r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?"
FRACTION = r"\\[dt]?frac\s*(?:[0-9]\s*[0-9]|\{[^{}]*\}\s*\{[^{}]*\})"
BRACES = re.compile(
    rf"""(\\(?:boxed|fbox)\s*\{{)
    | \\boxed\s*({BARE}|{FRACTION}) (?=[\s$,;:!?] | \.(?![0-9]) | \\[)\]] | \Z)
    | \\\\(?!boxed|fbox) | \\[{{}}]
    | ([{{}}])""",
    re.VERBOSE,
)
"""An opening box, a box without braces, an escape that opens no box, or a brace."""


def boxed(text: str) -> str | None:
    r"""Content of the last complete \boxed{...} or \fbox{...}, None if there is none; takes linear time.

    A number or a fraction needs no braces: \boxed 5. Of nested boxes the inner one is the last. Escaped braces (`\{`)
    and boxes that are never closed don't count.
    """
    unclosed: list[tuple[bool, int]] = []
    last, content = -1, None
    for match in BRACES.finditer(text):
        box, bare, brace = match.groups()
        if bare:
            last, content = match.start(2), bare
        elif box or brace == "{":
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
    r"""`answer` without $, \text, wide spaces, thousands commas, a leading + and trailing zeros: its value stays."""
    for pattern, replacement in REWRITES:
        answer = pattern.sub(replacement, answer)
    answer = answer.strip(" $").rstrip(" $.")
    number = NUMBER.fullmatch(answer)
    if number is None:
        return answer.removeprefix("+")
    sign, whole, decimals = number.groups("")  # as text, because Python's int() refuses very long numbers
    whole, decimals = whole.replace(",", "").lstrip("0"), decimals.rstrip("0")
    value = (whole or "0") + ("." + decimals if decimals else "")
    return "-" + value if sign == "-" and value != "0" else value
