"""What is asked, and how an answer is marked."""

import json
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from internal_policy.errors import InputError
from internal_policy.rows import read_rows
from internal_policy.tasks import answer_of, boxed, normalised, read_problems, reward


def written(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def verl_row(text, answer):
    return {
        "data_source": "sums",
        "prompt": [{"content": "Box the answer.", "role": "system"}, {"content": text, "role": "user"}],
        "reward_model": {"ground_truth": answer, "style": "rule"},
    }


@pytest.mark.parametrize("column", ["problem", "question", "prompt"])
@pytest.mark.parametrize("marked", ["answer", "final_answer", "solution"])
def test_columns_are_found_by_name(tmp_path, column, marked):
    (problem,) = read_problems(written(tmp_path / "p.jsonl", {column: "What is 3 + 4?", marked: "7"}))
    assert (problem.text, problem.answer) == ("What is 3 + 4?", "7")


def test_problem_is_preferred_to_prompt(tmp_path):
    path = written(tmp_path / "p.jsonl", {"prompt": "Solve: 3 + 4", "problem": "3 + 4"})
    assert read_problems(path)[0].text == "3 + 4"


def test_given_columns_win(tmp_path):
    path = written(tmp_path / "p.jsonl", {"problem": "no", "answer": "no", "task": "yes", "mark": 1})
    (problem,) = read_problems(path, problem_column="task", answer_column="mark")
    assert (problem.text, problem.answer) == ("yes", "1")


def test_verl_rows_keep_the_conversation_and_its_ground_truth(tmp_path):
    pq.write_table(pa.Table.from_pylist([verl_row("What is 3 + 4?", "7")]), tmp_path / "p.parquet")
    (problem,) = read_problems(str(tmp_path / "p.parquet"))
    assert [message["role"] for message in problem.messages] == ["system", "user"]
    assert (problem.text, problem.answer) == ("What is 3 + 4?", "7")


def test_the_ground_truth_is_preferred_to_a_worked_solution(tmp_path):
    path = written(tmp_path / "p.jsonl", {**verl_row("3 + 4", "7"), "solution": "It is seven."})
    assert read_problems(path)[0].answer == "7"


def test_csv_may_hold_commas_quotes_and_lines(tmp_path):
    path = written(tmp_path / "p.csv", "problem,answer", '"If x, ""y""', 'and z?","1,000"', "next,")
    first, second = read_problems(path)
    assert (first.text, first.answer) == ('If x, "y"\nand z?', "1,000")
    assert second.answer is None


def test_csv_cells_may_be_long(tmp_path):
    path = written(tmp_path / "p.csv", "problem", "x" * 200_000)
    assert len(read_problems(path)[0].text) == 200_000


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = written(tmp_path / "p.csv", "\ufeffproblem", "3 + 4")
    assert read_problems(path)[0].text == "3 + 4"


def test_a_data_set_is_named_with_its_split(tmp_path, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "sums").mkdir()
    written(tmp_path / "sums" / "test.jsonl", {"problem": "3 + 4", "answer": "7"}, {"problem": "4 + 4", "answer": "8"})
    problems = read_problems(f"{tmp_path / 'sums'}@test", limit=1)
    assert [(problem.text, problem.answer) for problem in problems] == [("3 + 4", "7")]


def test_a_data_set_that_cannot_be_loaded_is_one_sentence_with_a_remedy():
    with pytest.raises(InputError, match=r"^The data set nobody/nothing:main@test could not be loaded .*hf auth login"):
        read_problems("nobody/nothing:main@test")


def test_a_data_set_without_its_split_is_told_so():
    with pytest.raises(InputError, match=r"no file openai/gsm8k; .*NAME\[:CONFIG\]@SPLIT"):
        read_problems("openai/gsm8k")


def test_limit_does_not_parse_the_rest(tmp_path):
    path = written(tmp_path / "p.jsonl", {"problem": "a"}, {"problem": "b"}, "not JSON")
    assert [problem.text for problem in read_problems(path, limit=2)] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("p.txt", ["a"], r"ends in '\.txt'; the files that can be read are \.jsonl, \.csv, \.parquet"),
        ("p.jsonl", [], r"p\.jsonl is empty"),
        ("p.csv", ["problem"], r"p\.csv is empty"),
        ("p.parquet", ["PAR1"], r"p\.parquet is not a whole Parquet file"),
        ("p.jsonl", [{"problem": "a"}, "", '{"problem": '], r"p\.jsonl, line 3 is not JSON"),
        ("p.jsonl", ["[" * 100_000], r"p\.jsonl, line 1 is not JSON"),
        ("p.jsonl", ['{"problem": "\\ud800"}'], r"p\.jsonl, line 1 is not JSON in UTF-8"),
        ("p.jsonl", ["[1]"], r"line 1 holds \[1\]; expected is one JSON object a line"),
        ("p.csv", ["problem", "a", "b,c"], r"p\.csv, line 3 is not CSV in UTF-8 \(more cells"),
        ("p.jsonl", [{"problem": "a"}, {"problem": " "}], r"p\.jsonl, line 2: 'problem' is empty"),
        ("p.jsonl", [{"problem": "a"}, {"question": "b"}], r"p\.jsonl, line 2: 'problem' holds nothing"),
        ("p.jsonl", [{"problem": 7}], r"p\.jsonl, line 1: 'problem' holds 7; expected is text"),
        ("p.jsonl", [{"problem": []}], r"p\.jsonl, line 1: 'problem' is empty"),
        ("p.jsonl", [{"problem": [{"role": "user", "content": None}]}], "a text role and content"),
        (
            "p.jsonl",
            [{"problem": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
            "ends with",
        ),
        (
            "p.jsonl",
            [{"problem": "a", "answer": [1, 2]}],
            r"line 1: the answer is \[1, 2\]; expected is text or a number",
        ),
        (
            "p.jsonl",
            [{"task": "a", "key": "b"}],
            r"no column problem, question or prompt, but task, key; .*--problem-column",
        ),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path, name, lines, message):
    with pytest.raises(InputError, match=message):
        read_problems(written(tmp_path / name, *lines))


@pytest.mark.parametrize("columns", [("task", None), (None, "task")])
def test_a_given_column_that_is_missing_names_those_there(tmp_path, columns):
    path = written(tmp_path / "p.jsonl", {"problem": "a", "answer": "b"})
    with pytest.raises(InputError, match="no column 'task'; choose one of those there: problem, answer"):
        read_problems(path, problem_column=columns[0], answer_column=columns[1])


def test_bytes_that_are_no_text_are_refused(tmp_path):
    for name in ("p.jsonl", "p.csv"):
        (tmp_path / name).write_bytes(b'{"problem": "\xff"}\n')
        with pytest.raises(InputError, match="UTF-8"):
            read_rows(tmp_path / name)


def test_a_limit_below_one_is_refused(tmp_path):
    with pytest.raises(InputError, match="limit is 0"):
        read_problems(written(tmp_path / "p.jsonl", {"problem": "a"}), limit=0)


@pytest.mark.parametrize(
    ("cell", "answer"),
    [
        ("6 x 7 = 42, hence \n#### 42", "42"),
        (r"Hence \boxed{41}, or \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ({"ground_truth": "42", "style": "rule"}, "42"),
        (["42"], "42"),
        (42, "42"),
        (float("nan"), None),
        (" ", None),
        (None, None),
        ({"style": "rule"}, None),
    ],
)
def test_the_answer_is_taken_out_of_its_cell(cell, answer):
    assert answer_of(cell) == answer


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
        (r"\boxed 5, \fbox{5}, boxed{5}", None),
        ("", None),
    ],
)
def test_the_last_complete_box_counts(text, content):
    assert boxed(text) == content


@pytest.mark.parametrize(
    "text",
    [r"\boxed{", r"\boxed{}", "{", "}", "\\", r"\boxed", r"\boxed ", r"\text{", "1,000", "$", "9", r"\boxed{\text{"],
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
def test_writings_of_one_value_are_equal(one, other):
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1,2", "12"), ("1,20", "120"), ("42", "-42"), ("1e3", "1000"), ("9^9^9^9", "9"), ("12", "1 2"), ("0x10", "16")],
)
def test_different_values_stay_different(one, other):
    assert normalised(one) != normalised(other)


def test_the_reward_is_for_the_last_box():
    assert reward(r"First \boxed{7}, but no: \boxed{8}.", "8") == 1.0
    assert reward(r"First \boxed{7}, but no: \boxed{8}.", "7") == 0.0


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
def test_fractions_of_whole_numbers_are_equal_however_they_are_written(written):
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
    ],
)
def test_another_writing_of_the_answer_is_right(content, answer):
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
    ],
)
def test_another_value_is_wrong(content, answer):
    assert reward(rf"Hence \boxed{{{content}}}.", answer) == 0.0


@pytest.mark.parametrize(
    "undone", ["47 + 385", "47 385", "47+385=432", r"(216)(2)", r"144 \cdot 3", r"\frac{47+385}{1}"]
)
def test_a_calculation_that_is_not_done_is_no_number(undone):
    assert reward(rf"\boxed{{{undone}}}", "432") == 0.0


def test_plain_numbers_are_never_given_to_the_verifier(monkeypatch):
    monkeypatch.setattr("internal_policy.verify.equal", None)
    assert [reward(rf"\boxed{{{box}}}", "432") for box in ("432", "433", "-1,000.5", "")] == [1.0, 0.0, 0.0, 0.0]
    assert reward(r"No box, but \boxed{", r"\frac12") == 0.0
    assert reward(r"\boxed{\frac12}", r"\frac{1}{2}") == 1.0  # nor what is equal as it is written


@pytest.mark.parametrize(
    "response",
    [r"\boxed{\frac24} but \boxed{3}", r"\boxed{\frac24", r"\boxed{\boxed{5}}", r"\boxed{} \frac24", r"\frac24"],
)
def test_only_the_last_complete_box_is_verified(response):
    assert reward(response, r"\frac12") == 0.0


def test_a_solution_without_an_answer_marks_nothing(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"problem": "1 + 1?", "solution": "We add one to one, " * 9}))
    assert read_problems(str(path))[0].answer is None
