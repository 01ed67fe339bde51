"""Word problems for full-size models: everyday stories with numbers drawn at random, and their answers."""

from collections.abc import Callable
from random import Random

BOXED = "Give the final answer in \\boxed{}."
"""What follows every problem."""
Story = tuple[str, Callable[..., int], tuple[tuple[int, int], ...]]
STORIES: tuple[Story, ...] = (
    (
        "A notebook costs {} dollars. Lena buys {} of them and pays with a 100 dollar note. How much change does she "
        "get?",
        lambda price, number: 100 - price * number,
        ((2, 9), (3, 9)),
    ),
    (
        "A baker fills {} trays with {} rolls each and puts {} rolls more on a plate. How many rolls are there?",
        lambda trays, each, more: trays * each + more,
        ((3, 9), (6, 12), (2, 20)),
    ),
    (
        "A bus has {} passengers. At the first stop {} get off and {} get on. How many are on the bus now?",
        lambda start, off, on: start - off + on,
        ((25, 48), (3, 20), (2, 15)),
    ),
    (
        "Tom reads {} pages a day for {} days. The book has 400 pages. How many pages are left to read?",
        lambda pages, days: 400 - pages * days,
        ((12, 30), (3, 9)),
    ),
    (
        "A farmer has {} hens. Each hen lays {} eggs a week. How many eggs does he collect in {} weeks?",
        lambda hens, eggs, weeks: hens * eggs * weeks,
        ((4, 15), (3, 6), (2, 4)),
    ),
    (
        "{} children share {} sweets equally. How many sweets does each child get?",
        lambda children, sweets: sweets // children,
        ((3, 9), (4, 12)),
    ),
    (
        "Mia is {} years old. Her brother is {} years older, and her mother is 4 times as old as Mia. How old are all "
        "three of them together?",
        lambda mia, older: mia + mia + older + 4 * mia,
        ((6, 11), (2, 7)),
    ),
    (
        "A garden is {} metres long and {} metres wide. How many metres of fence go around it?",
        lambda length, width: 2 * (length + width),
        ((12, 40), (5, 11)),
    ),
    (
        "A cyclist rides {} kilometres an hour for {} hours, and then walks {} kilometres. How far has she come?",
        lambda speed, hours, walked: speed * hours + walked,
        ((12, 24), (2, 5), (2, 9)),
    ),
    (
        "A cinema has {} rows of {} seats. {} seats are empty. How many people are in the cinema?",
        lambda rows, seats, empty: rows * seats - empty,
        ((8, 16), (10, 18), (5, 60)),
    ),
    (
        "Eva saves {} dollars a week. After {} weeks she buys a coat for {} dollars. How much money does she have "
        "left?",
        lambda saved, weeks, coat: saved * weeks - coat,
        ((12, 25), (6, 10), (30, 70)),
    ),
    (
        "One box holds {} red and {} blue pencils. How many pencils are in {} such boxes?",
        lambda red, blue, boxes: (red + blue) * boxes,
        ((4, 12), (3, 9), (3, 8)),
    ),
)
"""Text with gaps, the answer from the numbers in them, and the range of each number."""


def word_problems(number: int, seed: int = 0) -> list[dict[str, str]]:
    """Problems with their answers, all different, one story after another."""
    draw, found = Random(seed), dict[str, str]()
    while len(found) < number:
        text, answer, ranges = STORIES[len(found) % len(STORIES)]
        numbers = [draw.randint(*ends) for ends in ranges]
        if text.startswith("{} children"):
            numbers[1] *= numbers[0]  # so that it divides
        found[f"{text.format(*numbers)} {BOXED}"] = str(answer(*numbers))
    return [{"problem": problem, "answer": answer} for problem, answer in found.items()]
