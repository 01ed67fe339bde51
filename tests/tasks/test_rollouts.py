"""Responses are kept as the token ids that were sampled."""

import copy
from dataclasses import replace
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_templates import THINKS
from conftest import conversation, jsonl

from internal_policy.errors import InputError
from internal_policy.scans import store
from internal_policy.scans.export import export_table, write
from internal_policy.tasks.generate import generate
from internal_policy.tasks.problems import Problem
from internal_policy.tasks.prompts import split_messages
from internal_policy.tasks.rollouts import (
    ROLLOUT_SCHEMA,
    Rollout,
    from_table,
    of_ids,
    read_rollouts,
    to_table,
    write_rollouts,
)

END = 2
ROLLOUT = Rollout("3 + 4?", "7", 1, (3, 8), (9, 310, END), r"\boxed{7}", 1.0, True)


def test_an_end_of_turn_among_the_added_tokens_finishes_a_response(tokenizer, tmp_path):
    unnamed = copy.deepcopy(tokenizer)
    unnamed.eos_token = unnamed.pad_token = "<|bos|>"
    assert END not in unnamed.all_special_ids
    assert unnamed.added_tokens_decoder[END].special
    (read,) = read_rollouts(jsonl(tmp_path / "r.jsonl", ROWS["prompt"]), unnamed, {})
    (given,) = of_ids(unnamed, [[3, 8, END]])
    assert (read.finished, given.finished) == (True, True)


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_written_rollouts_are_read_back(llama, either, tmp_path, ending):
    problems = [Problem(conversation(text, "")[:1], None) for text in ("What is 3 + 4?", "Say: naïve 🙂")]
    sampled = chain.from_iterable(generate(llama, either, problems, samples=2, max_new_tokens=6))
    rollouts = [*sampled, replace(ROLLOUT, answer=r"\text{x #### y}", reward=0.5, finished=False)]
    write_rollouts(tmp_path / f"r.{ending}", rollouts)
    assert read_rollouts(tmp_path / f"r.{ending}", either, {}) == rollouts


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_token_ids_are_never_retokenised(tokenizer, tmp_path, ending):
    letters = tuple(chain(*(tokenizer(letter)["input_ids"] for letter in "apples")))
    assert tuple(tokenizer("apples")["input_ids"]) != letters
    write_rollouts(tmp_path / f"r.{ending}", [replace(ROLLOUT, response_ids=letters, response="apples")])
    assert read_rollouts(tmp_path / f"r.{ending}", tokenizer, {})[0].response_ids == letters


@pytest.mark.parametrize("ending", ["parquet", "csv", "json"])
def test_exported_rollouts_are_read_back(tokenizer, tmp_path, ending):
    folder = store.find("demo-qwen3")
    export_table(folder, "rollouts", ending, tmp_path / f"r.{ending}")
    expected = [rollout for path in store.parts(folder, "rollouts") for rollout in from_table(store.read_part(path))]
    assert read_rollouts(tmp_path / f"r.{ending}", tokenizer, {}) == expected


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_missing_values_stay_missing_in_an_export(either, tmp_path, ending):
    rollout = replace(ROLLOUT, problem="", answer=None, reward=None, finished=False)
    frame = to_table([rollout]).to_pandas()
    frame["prompt_ids"], frame["response_ids"] = [list(rollout.prompt_ids)], [list(rollout.response_ids)]
    path = tmp_path / f"r.{ending}"
    frame.to_csv(path, index=False) if ending == "csv" else frame.to_json(path, orient="records")
    assert read_rollouts(path, either, {}) == [rollout]


ENGINE = replace(ROLLOUT, engine_logprob=(-0.5, -2.25, 0.0))
"""A response of an engine, with the log probability of each token."""


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_log_probabilities_of_an_engine_are_read_back(tokenizer, tmp_path, ending):
    write_rollouts(tmp_path / f"r.{ending}", [ENGINE, ENGINE])
    assert read_rollouts(tmp_path / f"r.{ending}", tokenizer, {}) == [ENGINE, ENGINE]


@pytest.mark.parametrize("ending", ["parquet", "csv", "json"])
def test_log_probabilities_of_an_engine_are_exported_and_read_back(tokenizer, tmp_path, ending):
    write([to_table([ENGINE])], ending, tmp_path / f"r.{ending}", quoted=True)
    assert read_rollouts(tmp_path / f"r.{ending}", tokenizer, {}) == [ENGINE]


def test_rollouts_keep_log_probabilities_only_if_all_have_them(tokenizer, tmp_path):
    write_rollouts(tmp_path / "r.jsonl", [ENGINE, ROLLOUT])
    assert read_rollouts(tmp_path / "r.jsonl", tokenizer, {}) == [ROLLOUT, ROLLOUT]
    assert from_table(to_table([ENGINE, ROLLOUT])) == [ENGINE, ROLLOUT]


def test_log_probabilities_that_do_not_match_the_tokens_are_refused(tokenizer, tmp_path):
    path = jsonl(tmp_path / "r.jsonl", {"prompt_ids": [3], "response_ids": [8, 2], "engine_logprob": [-0.5]})
    with pytest.raises(
        InputError, match=r"'engine_logprob' holds \[-0.5\]; expected a list of 2 numbers, one for each"
    ):
        read_rollouts(path, tokenizer, {})


def test_a_carriage_return_in_a_csv_cell_is_text(tokenizer, tmp_path):
    (tmp_path / "r.csv").write_bytes(b'prompt_ids,response_ids,response\n"[3]","[8, 2]","a\rb"\n"[3]","[8, 2]",c\n')
    assert [rollout.response for rollout in read_rollouts(tmp_path / "r.csv", tokenizer, {})] == ["a\rb", "c"]


def test_a_table_keeps_every_column_and_ignores_extra_ones():
    rollouts = [ROLLOUT, replace(ROLLOUT, answer=None, reward=None, finished=False), replace(ROLLOUT, response="")]
    table = to_table(rollouts)
    assert table.schema.equals(ROLLOUT_SCHEMA)
    assert from_table(table.append_column("more", pa.array([1, 2, 3]))) == rollouts


def test_ids_are_those_of_the_prompt_and_the_response():
    assert ROLLOUT.ids == (3, 8, 9, 310, END)


def test_token_ids_alone_are_enough(tokenizer, tmp_path):
    path = jsonl(
        tmp_path / "r.jsonl", {"prompt_ids": [3, 4], "response_ids": [*tokenizer("It is 7")["input_ids"], END]}
    )
    (rollout,) = read_rollouts(path, tokenizer, {})
    assert (rollout.response, rollout.finished, rollout.reward) == ("It is 7", True, None)


ROWS = {
    "prompt": {"prompt": "3 + 4?", "response": r"\boxed{7}", "answer": "7"},
    "chat": {"prompt": [{"role": "user", "content": "3 + 4?"}], "response": r"\boxed{7}", "answer": "7"},
    "no reward": {"prompt": "3 + 4?", "response": r"\boxed{7}", "answer": 7, "reward": float("nan")},
    "messages": {"messages": [dict(message) for message in conversation("3 + 4?", r"\boxed{7}")], "answer": "7"},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_texts_are_split_and_marked(either, tmp_path, row):
    split = split_messages(either, conversation("3 + 4?", r"\boxed{7}"), {})
    expected = Rollout("3 + 4?", "7", 0, *split, r"\boxed{7}", 1.0, True)
    jsonl(tmp_path / "r.jsonl", row)
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "r.parquet")
    for name in ("r.jsonl", "r.parquet"):
        assert read_rollouts(tmp_path / name, either, {}) == [expected]


def test_prompts_and_responses_can_be_csv(tokenizer, tmp_path):
    (tmp_path / "r.csv").write_text('prompt,response,answer,reward\n3 + 4?,"7, or\n8",7,0.5\n3 + 4?,\\boxed{7},7,\n')
    first, second = read_rollouts(tmp_path / "r.csv", tokenizer, None)
    assert (first.response, first.reward, first.sample, first.finished) == ("7, or\n8", 0.5, 0, False)
    assert (second.reward, second.sample) == (1.0, 1)


def test_a_plain_text_has_no_problem(tokenizer, tmp_path):
    (rollout,) = read_rollouts(jsonl(tmp_path / "r.jsonl", {"text": "7 + 5 = 12"}), tokenizer, {})
    assert (rollout.problem, rollout.answer, rollout.response) == ("", None, " + 5 = 12")


def test_responses_to_one_problem_are_counted(either, tmp_path):
    rows = [{"prompt": prompt, "response": "7"} for prompt in ("a", "b", "a", "a")]
    rollouts = read_rollouts(jsonl(tmp_path / "r.jsonl", *rows), either, {})
    assert [rollout.sample for rollout in rollouts] == [0, 0, 1, 2]


def test_a_prompt_column_without_a_response_is_ignored_beside_messages(either, tmp_path):
    path = jsonl(tmp_path / "r.jsonl", {**ROWS["messages"], "prompt": "other"})
    assert read_rollouts(path, either, {})[0].problem == "3 + 4?"


@pytest.mark.parametrize("part", [{"reasoning_content": "3, 4"}, {"tool_calls": [{"function": {"name": "add"}}]}])
def test_a_response_part_in_its_own_column_equals_one_in_messages(tokenizer, tmp_path, part):
    case = copy.deepcopy(tokenizer)
    case.chat_template = THINKS
    asked, answered = map(dict, conversation("3 + 4?", "7"))
    path = jsonl(
        tmp_path / "r.jsonl", {"prompt": "3 + 4?", "response": "7", **part}, {"messages": [asked, {**answered, **part}]}
    )
    beside, within = read_rollouts(path, case, {})
    assert (beside.ids, beside.response) == (within.ids, within.response)


def test_empty_columns_add_no_part_to_the_response(tokenizer, tmp_path):
    rows = [{**ROWS["prompt"], "system": "", "reasoning_content": None, "tool_calls": None}, ROWS["messages"]]
    beside, within = read_rollouts(jsonl(tmp_path / "r.jsonl", *rows), tokenizer, {})
    assert beside.ids == within.ids


def test_limit_keeps_the_first_rollouts(either, tmp_path):
    path = jsonl(tmp_path / "r.jsonl", ROWS["prompt"], {"nothing": "here"})
    assert len(read_rollouts(path, either, {}, limit=1)) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "a", "response": "b"},
            "columns are question, response; expected prompt_ids and response_ids",
        ),
        ({"prompt": "a", "response": None}, "The last message must be the assistant's response"),
        ({"prompt": "", "response": "b"}, "'prompt' is empty"),
        (
            {"prompt": "a", "response": "b", "system": "c"},
            "'system' can't be combined with prompt and response. Use messages",
        ),
        ({"prompt": "a", "response": "b", "reasoning_content": "c"}, "template drops 'reasoning_content'"),
        ({"prompt": "a", "response": "b", "reasoning_content": 5}, "'reasoning_content' holds 5; expected text"),
        ({"text": 7}, "'text' holds 7; expected text"),
        ({"text": None}, "columns are text; expected prompt_ids and response_ids"),
        ({"messages": [{"role": "user", "content": "a"}]}, "must be the assistant's"),
        ({"prompt_ids": [], "response_ids": [1]}, r"'prompt_ids' holds \[\]"),
        ({"prompt_ids": [1], "response_ids": "1, 2"}, "'response_ids' holds '1, 2'; expected a list"),
        ({"prompt_ids": [1], "response_ids": [-1]}, r"'response_ids' holds \[-1\]"),
        ({**ROWS["prompt"], "reward": "good"}, "the reward is 'good'; expected a number"),
    ],
)
def test_an_error_names_the_invalid_row(tokenizer, tmp_path, row, message):
    with pytest.raises(InputError, match=r"r\.jsonl, line 2: .*" + message):
        read_rollouts(jsonl(tmp_path / "r.jsonl", ROWS["prompt"], row), tokenizer, {})


WRONG = {
    "problem": (["a list"], r"'problem' holds \['a list'\]; expected text"),
    "response": (7, "'response' holds 7; expected text"),
    "answer": ([1, 2], r"the answer is \[1, 2\]; expected text or a number"),
    "sample": (10**12, "'sample' holds 1000000000000; expected a whole number from 0 to 2147483647"),
    "reward": (10**400, "the reward is 1000.*; expected a number"),
    "finished": ("perhaps", "'finished' holds 'perhaps'; expected true or false"),
    "prompt_ids": ([5, 2**40], r"'prompt_ids' holds \[5, 1099511627776\]; .* and 1099511627776 isn't one"),
    "response_ids": ([[5]], r"'response_ids' holds \[\[5\]\]; .* and \[5\] isn't one"),
}


@pytest.mark.parametrize("column", WRONG)
def test_an_error_names_the_row_of_a_cell_with_the_wrong_type(tokenizer, tmp_path, column):
    cell, message = WRONG[column]
    path = jsonl(tmp_path / "r.jsonl", vars(ROLLOUT), {**vars(ROLLOUT), column: cell})
    with pytest.raises(InputError, match=r"r\.jsonl, line 2: .*" + message):
        read_rollouts(path, tokenizer, {})


@pytest.mark.parametrize("sample", [-1, 1.5, "one", [0], float("inf"), 2**70])
def test_a_sample_must_be_a_whole_number(tokenizer, tmp_path, sample):
    path = jsonl(tmp_path / "r.jsonl", {**vars(ROLLOUT), "sample": sample})
    with pytest.raises(InputError, match=r"line 1: 'sample' holds .* expected a whole number"):
        read_rollouts(path, tokenizer, {})


@pytest.mark.parametrize("reward", [float("inf"), "-inf", "1e400", [1.0], {"score": 1}, "good"])
def test_a_reward_must_be_finite(tokenizer, tmp_path, reward):
    path = jsonl(tmp_path / "r.jsonl", {**vars(ROLLOUT), "reward": reward})
    with pytest.raises(InputError, match=r"line 1: the reward is .* expected a number"):
        read_rollouts(path, tokenizer, {})


@pytest.mark.parametrize("token", [5.0, "5", True, None, -1, 2**31, 2**70])
@pytest.mark.parametrize("column", ["prompt_ids", "response_ids"])
def test_an_invalid_token_id_is_rejected(tokenizer, tmp_path, column, token):
    path = jsonl(tmp_path / "r.jsonl", {**vars(ROLLOUT), column: [3, token]})
    with pytest.raises(InputError, match=f"line 1: '{column}' holds .* expected a list of token ids"):
        read_rollouts(path, tokenizer, {})


WRONG_COLUMNS = {
    "problem": pa.array([b"ok", b"\xff"], pa.binary()).view(pa.string()),
    "response": pa.array([None, 10**8], pa.timestamp("s")),
    "reward": pa.array([None, 9], pa.date32()),
    "sample": pa.array([0, 2**63], pa.uint64()),
    "finished": pa.array([None, 9], pa.date32()),
    "response_ids": pa.array([[1], [2**40]], pa.list_(pa.int64())),
    "answer": pa.array([None, b"7"], pa.binary()),
}


@pytest.mark.parametrize("column", WRONG_COLUMNS)
def test_an_error_names_the_row_of_a_parquet_column_with_the_wrong_type(tokenizer, tmp_path, column):
    table = to_table([ROLLOUT, ROLLOUT])
    table = table.set_column(table.schema.get_field_index(column), column, WRONG_COLUMNS[column])
    pq.write_table(table, tmp_path / "r.parquet")
    with pytest.raises(InputError, match=r"r\.parquet, row 2: .*" + column):
        read_rollouts(tmp_path / "r.parquet", tokenizer, {})


@pytest.mark.parametrize(
    ("cell", "finished"),
    [("False", False), ("false", False), ("True", True), (0, False), (1, True), (1.0, True), (True, True)],
)
def test_finished_is_read_in_any_notation(tokenizer, tmp_path, cell, finished):
    path = jsonl(tmp_path / "r.jsonl", {**vars(ROLLOUT), "finished": cell})
    assert read_rollouts(path, tokenizer, {})[0].finished is finished


@pytest.mark.parametrize("cell", ["", None, float("nan"), "nan"])
@pytest.mark.parametrize(("last", "finished"), [(END, True), (310, False)])
def test_an_empty_cell_leaves_finished_to_the_last_token(tokenizer, tmp_path, cell, last, finished):
    path = jsonl(tmp_path / "r.jsonl", {**vars(ROLLOUT), "response_ids": [9, last], "finished": cell})
    assert read_rollouts(path, tokenizer, {})[0].finished is finished


@pytest.mark.parametrize("cell", ["", None, float("nan"), "nan", "NaN"])
def test_an_empty_reward_is_computed_from_the_answer(tokenizer, tmp_path, cell):
    row = {**vars(ROLLOUT), "reward": cell}
    path = jsonl(tmp_path / "r.jsonl", row, {**row, "answer": None})
    assert [rollout.reward for rollout in read_rollouts(path, tokenizer, {})] == [1.0, None]


@pytest.mark.parametrize(("cell", "sample"), [("3", 3), (3.0, 3), (3, 3), ("", 0), (float("nan"), 0), (None, 0)])
def test_a_sample_number_is_read_in_any_notation(tokenizer, tmp_path, cell, sample):
    path = jsonl(tmp_path / "r.jsonl", {**vars(ROLLOUT), "sample": cell})
    assert read_rollouts(path, tokenizer, {})[0].sample == sample


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ('{"text": "7 + 5"}\n{', "line 2 isn't JSON")])
def test_an_empty_or_broken_file_is_rejected(tokenizer, tmp_path, text, message):
    (tmp_path / "r.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        read_rollouts(tmp_path / "r.jsonl", tokenizer, {})


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, ending):
    path = tmp_path / f"r.{ending}"
    write_rollouts(path, [ROLLOUT])
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write_rollouts(path, [ROLLOUT] * 1000 + [replace(ROLLOUT, problem="\ud800")])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "message"), [("r.csv", r"ends in \.parquet or \.jsonl"), ("no/r.jsonl", "no folder")])
def test_an_unknown_file_format_or_folder_is_rejected(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        write_rollouts(tmp_path / name, [ROLLOUT])
