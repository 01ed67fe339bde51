"""A response is marked by the answer in its last box."""

import time

import pytest

from internal_policy.tasks.marking import boxed, is_prose, mark, normalised, reward


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"It is \boxed{432}.", "432"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{ \boxed{5}", "5"),
        (r"\boxed{\text{so } \boxed{5}}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{x \} y}", r"x \} y"),
        (r"\boxed{a \\}", r"a \\"),
        (r"x \\\boxed{5}", "5"),
        (r"x \\boxed{5}", "5"),
        (r"}} \boxed {5} }", "5"),
        (r"\boxed{}", ""),
        (r"\fbox{5}", "5"),
        (r"\fbox{\boxed{5} so}", "5"),
        (r"\boxed{1} then \fbox{2}", "2"),
        (r"$\boxed 5$", "5"),
        (r"\boxed 1,432.", "1,432"),
        (r"\boxed -3.5\)", "-3.5"),
        (r"\boxed\frac{1}{2}$", r"\frac{1}{2}"),
        (r"\boxed \dfrac12, so", r"\dfrac12"),
        (r"\boxed{1} then \boxed 2", "2"),
        (r"\boxed 1 then \boxed{2}", "2"),
        (r"\boxed{5}, as asked in a \boxed form", "5"),
        (r"\boxed{5}, in \boxed.", "5"),
        (r"\boxed 5x, \boxed 2^{10}, \boxed 12\pi", None),
        (r"boxed{5}, \box{5}, \fbox 5", None),
        ("", None),
    ],
)
def test_the_last_complete_box_counts(text, content):
    assert boxed(text) == content


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{",
        r"\fbox{",
        r"\boxed 1,",
        r"\boxed\frac{",
        "=",
        "1=",
        r"\text{ cm}^2",
        r"\text{a^",
        r"\boxed{}",
        "{",
        "}",
        "\\",
        r"\boxed",
        r"\boxed ",
        r"\text{",
        "1,000",
        "$",
        "9",
        r"\boxed{\text{",
    ],
)
def test_marking_hostile_text_takes_linear_time(text):
    start = time.process_time()
    reward(text * 100_000, "7")
    reward(r"\boxed{" + text * 100_000 + "}" * 100_001, text * 100_000)
    assert time.process_time() - start < 5  # quadratic time would be minutes


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("42", " $42$. "),
        ("1,000", "1000"),
        (r"10{,}000", r"10,\! 000"),
        ("+42", "42"),
        ("42.0", "42"),
        ("0.50", ".5"),
        ("-0.0", "0"),
        ("007", "7"),
        ("9" * 10_000 + ".0", "9" * 10_000),
        (r"\dfrac{1}{2}", r"\tfrac{1}{2}"),
        (r"\text{Evelyn}", "Evelyn"),
        (r"5\,\text{cm}", r"5\text{cm}"),
        (r"\$18.90", "18.9"),
        ("p  - q", "p - q"),
    ],
)
def test_spellings_of_one_value_are_equal(one, other):
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1,2", "12"), ("1,20", "120"), ("42", "-42"), ("1e3", "1000"), ("9^9^9^9", "9"), ("12", "1 2"), ("0x10", "16")],
)
def test_different_values_stay_different(one, other):
    assert normalised(one) != normalised(other)


def test_the_last_box_earns_the_reward():
    assert reward(r"First \boxed{7}, but no: \boxed{8}.", "8") == 1.0
    assert reward(r"First \boxed{7}, but no: \boxed{8}.", "7") == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "The capital of France is Paris.",
        "Because of Rayleigh scattering!",
        "short waves scatter more than long waves do here",
    ],
)
def test_sentences_are_prose_and_mark_nothing(answer):
    assert is_prose(answer)
    assert mark(rf"\boxed{{{answer}}}", answer) is None


@pytest.mark.parametrize(
    "answer",
    [
        "432",
        "Paris",
        "Bob and Alice.",
        r"\text{Precinct 3, Precinct 1, Precinct 2}",
        r"\text{Navin will win.}",
        r"x = 2 \text{ or } x = 3 \text{ and } y = 4",
        "ab + bc + cd + de + ef = 0",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        "",
    ],
)
def test_values_names_and_formulas_are_not_prose(answer):
    assert not is_prose(answer)


def test_a_response_to_a_problem_without_an_answer_gets_no_mark():
    assert mark(r"\boxed{7}", None) is None
    assert mark(r"\boxed{7}", "7") == 1.0
    assert mark("It is 7.", "7") == 0.0


def test_no_box_and_an_empty_box_earn_nothing():
    assert [reward(text, answer) for text, answer in [("7", "7"), (r"\boxed{}", ""), (r"\boxed{}", "$")]] == [
        0.0,
        0.0,
        0.0,
    ]


def test_answers_are_never_evaluated():
    assert reward(r"\boxed{9^9^9^9}", "9^9^9^9") == 1.0
    assert reward(r"\boxed{__import__('os').getpid()}", "0") == 0.0


@pytest.mark.parametrize("written", [r"\frac{3}{4}", r"\dfrac34", r"\frac{3} {4}", "3/4"])
def test_fractions_of_whole_numbers_are_equal_in_any_notation(written):
    assert reward(rf"so \boxed{{{written}}}", "3/4") == 1.0


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (r"\frac{864}{2}", "432"),
        ("x = 432", "432"),
        (r"4.32 \times 10^2", "432"),
        ("1,080 apples", "1080"),
        (r"90^\circ", "90"),
        (r"1\frac12", "1.5"),
        ("0.5", r"\frac12"),
        (r"\frac{\sqrt3}{2}", r"\frac{\sqrt{3}}{2}"),
        (r"\text{(A)}", "A"),
        ("-q + p", "p - q"),
        ("x_1 = 5", "5"),
        ("f(2)=7", "7"),
        ("a_{10} = 55", "55"),
        (r"S_{10} = \frac{10}{2}(2 + 9) = 55", "55"),
        (r"12\text{ cm}^2", "12"),
        (r"12\,\mathrm{cm}^{2}", "12"),
        (r"12\text{ cm$^2$}", "12"),
        (r"12\ \text{cm}^2", "12"),
        (r"12~\text{cm}^2", "12"),
        (r"\text{Area} = 12\text{ cm}^2", "12"),
        (r"9.8\text{ m/s}^{2}", "9.8"),
        ("47+385=432", "432"),
        ("x^2 + 1 = 5", "5"),
        (r"x = 10,\!080", "10080"),
        (r"P(2) = 1/2", "0.5"),
        (r"10^{-5}", "0.00001"),
        (r"10^{-8}", "0.00000001"),
    ],
)
def test_an_equivalent_answer_is_correct(content, answer):
    assert reward(rf"Hence \boxed{{{content}}}.", answer) == 1.0


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("433", "432"),
        (r"\frac{866}{2}", "432"),
        (r"10,\!081", r"10,\!080"),
        ("11/2", r"1\frac12"),
        ("431, 432", "432"),
        ("q - p", "p - q"),
        (r"\text{(B)}", "A"),
        ("x_1 = 2, x_2 = 3", "3"),
        (r"x_1 = 4\quad x_2 = 32", "32"),
        (r"x_1 = 4 \\ x_2 = 32", "32"),
        (r"x = 2\text{ or }x = 3", "3"),
        ("f(7) = 2", "7"),
        ("3 = 432", "432"),
        ("432 = 433 = 432", "432"),
        (r"x = \{10,080\}", "10080"),
        (r"12\text{ cm}^2", "144"),
        (r"10^{-8}", "0.0000001"),
        (r"2 \times 10^{-7}", "0.0000001"),
        (r"2 \times 10^{-7}", r"10^{-7}"),
        (r"10^{-7}", "0"),
    ],
)
def test_a_different_value_is_incorrect(content, answer):
    assert reward(rf"Hence \boxed{{{content}}}.", answer) == 0.0


@pytest.mark.parametrize(
    "undone",
    [
        "47 + 385",
        "47 385",
        "432=47+385",
        "x = 47 + 385",
        "f(2) = (216)(2)",
        r"47\text{ cm}^2 + 385\text{ cm}^2",
        r"(216)(2)",
        r"144 \cdot 3",
        r"\frac{47+385}{1}",
        r"\sum_{k=1}^{1} 432",
        r"\int_{0}^{432} dx",
    ],
)
def test_an_undone_calculation_is_not_a_number(undone):
    assert reward(rf"\boxed{{{undone}}}", "432") == 0.0


def test_plain_numbers_are_never_given_to_the_verifier(monkeypatch):
    monkeypatch.setattr("internal_policy.tasks.equality.equal", None)
    assert [reward(rf"\boxed{{{box}}}", "432") for box in ("432", "433", "-1,000.5", "")] == [1.0, 0.0, 0.0, 0.0]
    assert reward(r"No box, but \boxed{", r"\frac12") == 0.0
    assert reward(r"\boxed{\frac12}", r"\frac{1}{2}") == 1.0  # nor are identical texts


@pytest.mark.parametrize(
    "response",
    [r"\boxed{\frac24} but \boxed{3}", r"\boxed{\frac24", r"\boxed{\boxed{5}}", r"\boxed{} \frac24", r"\frac24"],
)
def test_only_the_last_complete_box_is_verified(response):
    assert reward(response, r"\frac12") == 0.0
