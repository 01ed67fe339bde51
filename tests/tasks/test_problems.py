"""Problems and their answers."""

import json
from datetime import date
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import jsonl

from internal_policy.errors import InputError
from internal_policy.tasks.marking import normalised
from internal_policy.tasks.problems import Message, Problem, answer_of, mixed, read_problems
from internal_policy.tasks.rows import read_rows


def written(path, *rows):
    return str(jsonl(path, *rows))


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


def test_the_column_problem_is_preferred_to_prompt(tmp_path):
    path = written(tmp_path / "p.jsonl", {"prompt": "Solve: 3 + 4", "problem": "3 + 4"})
    assert read_problems(path)[0].text == "3 + 4"


def test_given_columns_win_over_default_names(tmp_path):
    path = written(tmp_path / "p.jsonl", {"problem": "no", "answer": "no", "task": "yes", "mark": 1})
    (problem,) = read_problems(path, problem_column="task", answer_column="mark")
    assert (problem.text, problem.answer) == ("yes", "1")


def test_verl_rows_keep_the_conversation_and_its_ground_truth(tmp_path):
    pq.write_table(pa.Table.from_pylist([verl_row("What is 3 + 4?", "7")]), tmp_path / "p.parquet")
    (problem,) = read_problems(str(tmp_path / "p.parquet"))
    assert [message["role"] for message in problem.messages] == ["system", "user"]
    assert (problem.text, problem.answer) == ("What is 3 + 4?", "7")


def test_chat_messages_are_preferred_to_a_plain_question(tmp_path):
    """The paper's deepmath-5k.parquet has both."""
    rows = [{**verl_row(text, "7"), "question": text} for text in ("What is 3 + 4?", "What is 4 + 3?")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    for problem in read_problems(str(tmp_path / "p.parquet")):
        assert [message["role"] for message in problem.messages] == ["system", "user"]
    (first, _) = read_problems(str(tmp_path / "p.parquet"), problem_column="question")
    assert len(first.messages) == 1


def test_a_system_prompt_replaces_the_problems_own(tmp_path):
    path = written(tmp_path / "p.jsonl", verl_row("3 + 4", "7"), {"prompt": "4 + 3", "answer": "7"})
    for problem in read_problems(path, system_prompt="Think."):
        assert [message["role"] for message in problem.messages] == ["system", "user"]
        assert problem.messages[0]["content"] == "Think."


def test_a_suffix_is_a_line_after_the_problem(tmp_path):
    path = written(tmp_path / "p.jsonl", {"problem": "3 + 4", "answer": "7"})
    (problem,) = read_problems(path, prompt_suffix="Box it.")
    assert (problem.text, problem.answer) == ("3 + 4\nBox it.", "7")


def test_the_ground_truth_is_preferred_to_a_worked_solution(tmp_path):
    path = written(tmp_path / "p.jsonl", {**verl_row("3 + 4", "7"), "solution": "It is seven."})
    assert read_problems(path)[0].answer == "7"


def test_csv_cells_may_contain_commas_quotes_and_newlines(tmp_path):
    path = written(tmp_path / "p.csv", "problem,answer", '"If x, ""y""', 'and z?","1,000"', "next,")
    first, second = read_problems(path)
    assert (first.text, first.answer) == ('If x, "y"\nand z?', "1,000")
    assert second.answer is None


def test_csv_cells_may_be_long(tmp_path):
    path = written(tmp_path / "p.csv", "problem", "x" * 200_000)
    assert len(read_problems(path)[0].text) == 200_000


def test_a_byte_order_mark_is_not_part_of_a_name(tmp_path):
    path = written(tmp_path / "p.csv", "\ufeffproblem", "3 + 4")
    assert read_problems(path)[0].text == "3 + 4"


def test_a_data_set_is_named_with_its_split(tmp_path, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "sums").mkdir()
    written(tmp_path / "sums" / "test.jsonl", {"problem": "3 + 4", "answer": "7"}, {"problem": "4 + 4", "answer": "8"})
    problems = read_problems(f"{tmp_path / 'sums'}@test", limit=1)
    assert [(problem.text, problem.answer) for problem in problems] == [("3 + 4", "7")]


def stand_in(monkeypatch, rows, *, features=None):
    """Replaces the hub with `rows`; returns the requests, and the number of rows that were read."""
    import datasets

    taken = []

    def source():
        for row in rows:
            taken.append(row)
            if isinstance(row, Exception):
                raise row
            yield row

    def load_dataset(path, config=None, *, split, streaming=False):
        taken.append((path, config, split, streaming))
        if streaming:
            return datasets.IterableDataset.from_generator(source, features=features)
        return datasets.Dataset.from_list(list(source()), features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return taken


def test_a_limit_streams_a_data_set_and_reads_no_further_rows(monkeypatch):
    taken = stand_in(monkeypatch, [{"problem": f"{n} + 1", "answer": str(n + 1)} for n in range(1000)])
    problems = read_problems("org/sums:main@train", limit=10)
    assert [problem.answer for problem in problems] == [str(n + 1) for n in range(10)]
    assert taken[0] == ("org/sums", "main", "train", True)
    assert len(taken) - 1 <= 10


def test_a_data_set_without_a_limit_is_loaded_whole(monkeypatch):
    taken = stand_in(monkeypatch, [{"problem": "1 + 1", "answer": "2"}] * 3)
    assert len(read_problems("org/sums@train")) == 3
    assert taken[0] == ("org/sums", None, "train", False)


def test_a_sliced_split_is_loaded_because_it_cannot_be_streamed(monkeypatch):
    taken = stand_in(monkeypatch, [{"problem": "1 + 1", "answer": "2"}] * 3)
    assert len(read_problems("org/sums@train[:50%]", limit=2)) == 2
    assert taken[0] == ("org/sums", None, "train[:50%]", False)


@pytest.mark.parametrize("limit", [1, None])
def test_numbers_of_a_data_set_keep_their_written_precision(monkeypatch, limit):
    import datasets

    features = datasets.Features({"problem": datasets.Value("string"), "answer": datasets.Value("float32")})
    stand_in(monkeypatch, [{"problem": "a", "answer": 3.3}], features=features)
    assert read_problems("org/sums@train", limit=limit)[0].answer == "3.3"


def test_a_broken_data_set_stream_gets_a_one_sentence_error(monkeypatch):
    stand_in(monkeypatch, [{"problem": "1 + 1", "answer": "2"}, ConnectionError("the line is cut")])
    with pytest.raises(InputError, match=r"^Can't load the data set org/sums@train \(the line is cut\)"):
        read_problems("org/sums@train", limit=2)


def test_a_data_set_that_cannot_be_loaded_gets_a_one_sentence_error():
    with pytest.raises(InputError, match=r"^Can't load the data set nobody/nothing:main@test .*hf auth login"):
        read_problems("nobody/nothing:main@test")


@pytest.mark.parametrize("source", ["me@home/sums", "me@home/sums.jsonl", "sums@home.jsonl", "sums"])
def test_a_missing_path_is_not_mistaken_for_a_data_set(source):
    with pytest.raises(InputError, match=f"There is no file {source}"):
        read_problems(source)


def test_a_data_set_without_a_split_is_rejected():
    with pytest.raises(InputError, match=r"no file openai/gsm8k\. .*NAME\[:CONFIG\]@SPLIT"):
        read_problems("openai/gsm8k")


def test_rows_after_the_limit_are_not_parsed(tmp_path):
    path = written(tmp_path / "p.jsonl", {"problem": "a"}, {"problem": "b"}, "not JSON")
    assert [problem.text for problem in read_problems(path, limit=2)] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("p.md", ["a"], r"Can't read .*p\.md\. Use a file that ends in \.jsonl, \.json, \.csv, \.parquet, \.txt\."),
        ("p.jsonl", [], r"p\.jsonl is empty"),
        ("p.csv", ["problem"], r"p\.csv is empty"),
        ("p.parquet", ["PAR1"], r"p\.parquet isn't a complete Parquet file"),
        ("p.jsonl", [{"problem": "a"}, "", '{"problem": '], r"p\.jsonl, line 3 isn't JSON"),
        ("p.jsonl", ["[" * 100_000], r"p\.jsonl, line 1 isn't JSON"),
        ("p.jsonl", ['{"problem": "\\ud800"}'], r"p\.jsonl, line 1 isn't JSON in UTF-8"),
        ("p.jsonl", ["[1]"], r"line 1 holds \[1\]; expected one JSON object per line"),
        ("p.csv", ["problem", "a", "b,c"], r"p\.csv, line 3 isn't CSV in UTF-8 \(more cells"),
        ("p.jsonl", [{"problem": "a"}, {"problem": " "}], r"p\.jsonl, line 2: 'problem' is empty"),
        ("p.jsonl", [{"problem": "a"}, {"question": "b"}], r"p\.jsonl, line 2: 'problem' holds nothing"),
        ("p.jsonl", [{"problem": 7}], r"p\.jsonl, line 1: 'problem' holds 7; expected text"),
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
            r"line 1: the answer is \[1, 2\]; expected text or a number",
        ),
        (
            "p.jsonl",
            [{"task": "a", "key": "b"}],
            r"no column called problem, question or prompt\. Its columns are task, key\. .*--problem-column",
        ),
    ],
)
def test_an_error_names_the_line_of_an_unreadable_row(tmp_path, name, lines, message):
    with pytest.raises(InputError, match=message):
        read_problems(written(tmp_path / name, *lines))


@pytest.mark.parametrize("columns", [("task", None), (None, "task")])
def test_a_missing_column_lists_the_existing_ones(tmp_path, columns):
    path = written(tmp_path / "p.jsonl", {"problem": "a", "answer": "b"})
    with pytest.raises(InputError, match=r"no column 'task'\. Its columns are problem, answer"):
        read_problems(path, problem_column=columns[0], answer_column=columns[1])


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv"])
def test_an_error_names_the_line_of_invalid_utf8(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"problem": "a"}\n{"problem": "b"}\n{"problem": "\xff"}\n')
    with pytest.raises(InputError, match=rf"{name}, line 3 isn't .* in UTF-8"):
        read_rows(tmp_path / name)


def test_a_limit_below_one_is_rejected(tmp_path):
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
        (0.00001, "0.00001"),
        (-1e16, "-10000000000000000"),
        (3.3, "3.3"),
        (Decimal("12.50"), "12.50"),
        (Decimal("1E+3"), "1000"),
        (2**70, "1180591620717411303424"),
        ("1e-05", "0.00001"),
        ("1e+16", "10000000000000000"),
        ("2.5e-07", "0.00000025"),
        ("e-5", "e-5"),
        ("2e3", "2e3"),
        (float("nan"), None),
        (" ", None),
        (None, None),
        ({"style": "rule"}, None),
    ],
)
def test_the_answer_is_extracted_from_its_cell(cell, answer):
    assert answer_of(cell) == answer


@pytest.mark.parametrize("cell", [float("inf"), Decimal("-Infinity"), date(2026, 1, 2), b"7", {1: 2}, [[7]], object()])
def test_a_cell_without_an_answer_is_rejected(cell):
    with pytest.raises(InputError, match=r"the answer is .* expected text or a number"):
        answer_of({"ground_truth": cell})


@pytest.mark.parametrize(("written", "text"), [("0.00001", "0.00001"), ("1e16", "10000000000000000"), ("3.3", "3.3")])
def test_answers_of_a_numeric_csv_column_are_decimals(tmp_path, written, text):
    pd.DataFrame({"problem": ["a"], "answer": [float(written)]}).to_csv(tmp_path / "p.csv", index=False)
    assert normalised(read_problems(str(tmp_path / "p.csv"))[0].answer or "") == text


SINGLE = {
    "number": pa.float32(),
    "half": pa.float16(),
    "list": pa.list_(pa.float32()),
    "struct": pa.struct({"ground_truth": pa.float32()}),
    "double": pa.float64(),
    "decimal": pa.decimal128(5, 1),
}


@pytest.mark.parametrize("name", SINGLE)
def test_numbers_in_parquet_keep_their_written_precision(tmp_path, name):
    cell = {"list": [3.3], "struct": {"ground_truth": 3.3}, "decimal": Decimal("3.3")}.get(name, 3.3)
    table = pa.table({"problem": ["a"], "answer": pa.array([cell], SINGLE[name])})
    pq.write_table(table, tmp_path / "p.parquet")
    assert read_problems(str(tmp_path / "p.parquet"))[0].answer == "3.3"


NO_TEXT = pa.array([b"ok", b"\xff"], pa.binary()).view(pa.string())
FAR = pa.array([0, 10**14], pa.timestamp("s"))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("problem", NO_TEXT, r"row 2: 'problem' .*utf-8"),
        ("answer", NO_TEXT, r"row 2: 'answer' .*utf-8"),
        ("answer", FAR, r"row 2: 'answer' .*can't be read as timestamp"),
        (
            "answer",
            pa.array([None, 7], pa.date32()),
            r"row 2: the answer is datetime.date\(1970, 1, 8\); expected text",
        ),
        ("answer", pa.array([None, b"7"], pa.binary()), r"row 2: the answer is b'7'; expected text"),
        ("answer", pa.array([None, [7, 8]]), r"row 2: the answer is \[7, 8\]; expected text"),
        ("problem", pa.array(["a", None]), r"row 2: 'problem' holds nothing; expected text"),
    ],
)
def test_an_error_names_the_row_of_an_unreadable_parquet_cell(tmp_path, column, values, message):
    columns = {"problem": pa.array(["a", "b"]), "answer": pa.array(["1", "2"]), column: values}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    with pytest.raises(InputError, match=r"p\.parquet, " + message):
        read_problems(str(tmp_path / "p.parquet"))


def test_numbers_instead_of_problems_are_rejected_in_parquet(tmp_path):
    pq.write_table(pa.table({"problem": [1.5], "answer": ["7"]}), tmp_path / "p.parquet")
    with pytest.raises(InputError, match=r"row 1: 'problem' holds 1\.5; expected text"):
        read_problems(str(tmp_path / "p.parquet"))


def test_a_solution_without_an_answer_marks_nothing(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"problem": "1 + 1?", "solution": "We add one to one, " * 9}))
    assert read_problems(str(path))[0].answer is None


def test_messages_keep_keys_for_the_template(tmp_path):
    calls = [{"type": "function", "function": {"name": "add", "arguments": given}} for given in ({"a": 3}, {"b": 4})]
    turns = [
        {"role": "user", "content": "3 + 4?", "name": "Mia"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "user", "content": "Go on"},
    ]
    pq.write_table(pa.Table.from_pylist([{"prompt": turns}]), tmp_path / "p.parquet")
    for path in (written(tmp_path / "p.jsonl", {"prompt": turns}), str(tmp_path / "p.parquet")):
        (problem,) = read_problems(path)
        assert list(problem.messages) == [turns[0], {**turns[1], "content": ""}, turns[2]]


@pytest.mark.parametrize("as_text", [False, True])
def test_the_tools_of_a_row_are_kept_in_the_problem(tmp_path, as_text):
    tools = [{"type": "function", "function": {"name": "add"}}]
    row = {"prompt": "3 + 4?", "tools": json.dumps(tools) if as_text else tools}
    (problem,) = read_problems(written(tmp_path / "p.jsonl", row))
    assert problem.tools == tuple(tools)


@pytest.mark.parametrize("tools", ["a hammer", 3, ["add"]])
def test_tools_must_be_schemas(tmp_path, tools):
    with pytest.raises(InputError, match=r"line 1: 'tools' holds .* expected a list of JSON schemas"):
        read_problems(written(tmp_path / "p.jsonl", {"prompt": "3 + 4?", "tools": tools}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"problem": "a"}', "expected a list of JSON objects"),
        ('[{"problem": "a"}, 3]', r"p\.json, row 2 holds 3; expected a JSON object"),
        ('[{"problem": "a"}', "isn't JSON in UTF-8"),
        ('[{"problem": "\\ud800"}]', "isn't JSON in UTF-8"),
    ],
)
def test_a_json_file_must_contain_a_list_of_rows(tmp_path, text, message):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_problems(str(tmp_path / "p.json"))


def test_any_stretch_of_mixed_problems_has_its_share_of_each_set():
    sizes = {"a": 6, "b": 3}
    sets = {
        name: [Problem((Message(role="user", content=f"{name}{n}"),), None) for n in range(size)]
        for name, size in sizes.items()
    }
    found = mixed(sets)
    assert [problem.text for problem in found] == ["a0", "b0", "a1", "a2", "b1", "a3", "a4", "b2", "a5"]
    assert [problem.columns["problems"] for problem in found[:3]] == ["a", "b", "a"]
    assert mixed({"a": sets["a"]}) == sets["a"]
