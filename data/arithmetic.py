"""Arithmetic exercises: a problem in plain English, a written-out solution, and the answer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands")
NAMES = (("Mia", "she"), ("Ana", "she"), ("Eva", "she"), ("Tom", "he"), ("Leo", "he"), ("Sam", "he"))
THINGS = ("apples", "coins", "books", "cards", "eggs")


@dataclass(frozen=True)
class Exercise:
    """One problem and a correct response to it."""

    problem: str
    """The question."""
    answer: str
    """The answer: an integer in digits."""
    response: str
    """The expression, its steps, and the answer in \\boxed{}."""


def digits(number: int) -> list[int]:
    """The decimal digits of `number`, ones first."""
    return [int(digit) for digit in reversed(str(number))]


def add_by_columns(a: int, b: int) -> str:
    """Written addition: 47 and 385 give `ones 7+5=12 carry, tens 4+8+1=13 carry, hundreds 3+1=4`."""
    steps, carry, columns = [], 0, max(len(str(a)), len(str(b)))
    for column in range(columns):
        terms = [number[column] for number in (digits(a), digits(b)) if column < len(number)] + [1] * carry
        total = sum(terms)
        carry = int(total >= 10 and column < columns - 1)  # the last column's total is written out in full
        working = "+".join(map(str, terms)) + (f"={total}" if len(terms) > 1 else "")
        steps.append(f"{PLACES[column]} {working}" + " carry" * carry)
    return ", ".join(steps)


def subtract_by_columns(a: int, b: int) -> str:
    """Written subtraction: 385 less 47 gives `ones 15-7=8 borrow, tens 8-1-4=3, hundreds 3`."""
    steps, borrow = [], 0
    for column, top in enumerate(digits(a)):
        terms = [1] * borrow + [number[column] for number in (digits(b),) if column < len(number)]
        borrow = int(top < sum(terms))
        top += 10 * borrow
        working = "-".join(map(str, (top, *terms))) + (f"={top - sum(terms)}" if terms else "")
        steps.append(f"{PLACES[column]} {working}" + " borrow" * borrow)
    return ", ".join(steps)


def multiply_by_places(a: int, b: int) -> str:
    """Multiply each place of `b`, and add up: 7 and 48 give `7*8=56, 7*40=280, 56+280=336`."""
    products = [(digit * 10**place, a * digit * 10**place) for place, digit in enumerate(digits(b)) if digit]
    steps, total = [f"{a}*{part}={product}" for part, product in products], products[0][1]
    for _, product in products[1:]:
        steps.append(f"{total}+{product}={total + product}")
        total += product
    return ", ".join(steps)


def respond(expression: str, working: str, answer: int) -> str:
    """The full response."""
    return f"{expression}: {working}. Answer: \\boxed{{{answer}}}"


def number(random: Random, lengths: tuple[int, ...]) -> int:
    """A number of at least 2 with as many digits as one of `lengths`, each length equally likely."""
    length = random.choice(lengths)
    return random.randint(max(2, 10 ** (length - 1)), 10**length - 1)


def addition(random: Random) -> Exercise:
    """A sum of two numbers of one to four digits."""
    a, b = number(random, (1, 2, 2, 3, 3, 4)), number(random, (1, 2, 2, 3, 3, 4))
    (name, pronoun), things = random.choice(NAMES), random.choice(THINGS)
    wordings = (
        f"What is {a} + {b}?",
        f"Find the sum of {a} and {b}.",
        f"Add {b} to {a}.",
        f"{name} has {a} {things} and buys {b} more. How many {things} has {pronoun} now?",
        f"{name} finds {a} {things}, then {b} more. How many {things} is that?",
    )
    return Exercise(random.choice(wordings), str(a + b), respond(f"{a} + {b}", add_by_columns(a, b), a + b))


def subtraction(random: Random) -> Exercise:
    """A difference, never negative, of two numbers of one to four digits."""
    b, a = sorted((number(random, (1, 2, 2, 3, 3)), number(random, (2, 2, 3, 3, 4))))
    (name, pronoun), things = random.choice(NAMES), random.choice(THINGS)
    wordings = (
        f"What is {a} - {b}?",
        f"Find the difference of {a} and {b}.",
        f"Take {b} from {a}.",
        f"{name} has {a} {things} and sells {b}. How many {things} has {pronoun} left?",
        f"Of {a} {things}, {name} loses {b}. How many {things} are left?",
    )
    return Exercise(random.choice(wordings), str(a - b), respond(f"{a} - {b}", subtract_by_columns(a, b), a - b))


def two_steps(random: Random) -> Exercise:
    """A sum of two numbers with one or two digits, then a third number added or subtracted, without written columns."""
    a, b, gain = number(random, (1, 2)), number(random, (1, 2)), random.random() < 0.5
    c = number(random, (1, 2)) if gain else random.randint(2, min(99, a + b))
    sign, answer = ("+", a + b + c) if gain else ("-", a + b - c)
    (name, pronoun), things = random.choice(NAMES), random.choice(THINGS)
    then = f"finds {c} more" if gain else f"sells {c}"
    wordings = (
        f"What is {a} + {b} {sign} {c}?",
        f"{name} has {a} {things}, buys {b} more, then {then}. How many {things} has {pronoun} now?",
    )
    working = f"{a}+{b}={a + b}, {a + b}{sign}{c}={answer}"
    return Exercise(random.choice(wordings), str(answer), respond(f"{a} + {b} {sign} {c}", working, answer))


def product(random: Random) -> Exercise:
    """A product of a digit and a number of one to three digits."""
    a, b = random.randint(2, 9), number(random, (1, 2, 2, 3))
    (name, pronoun), things = random.choice(NAMES), random.choice(THINGS)
    wordings = (
        f"What is {a} * {b}?",
        f"Find the product of {a} and {b}.",
        f"{name} has {a} boxes with {b} {things} each. How many {things} has {pronoun}?",
    )
    return Exercise(random.choice(wordings), str(a * b), respond(f"{a} * {b}", multiply_by_places(a, b), a * b))


KINDS: dict[Callable[[Random], Exercise], int] = {addition: 4, subtraction: 3, two_steps: 2, product: 1}
"""Each kind of exercise and how often it is asked."""


def exercises(seed: int, without: frozenset[str] = frozenset()) -> Iterator[Exercise]:
    """An endless stream of exercises, the same for the same `seed`; problems whose text is in `without` are skipped."""
    random = Random(seed)
    while True:
        exercise = random.choices(list(KINDS), list(KINDS.values()))[0](random)
        if exercise.problem not in without:
            yield exercise
