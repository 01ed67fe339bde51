"""Responses are read from the files that other tools write."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import jsonl

from internal_policy.errors import InputError
from internal_policy.scans import schema
from internal_policy.tasks import sampled
from internal_policy.tasks.formats import response, table
from internal_policy.tasks.marks import MARK
from internal_policy.tasks.problems import Message, Problem
from internal_policy.tasks.prompts import encode_problem, encode_text, split_messages
from internal_policy.tasks.rollouts import Rollout, from_table, read_rollouts, to_table, write_rollouts

HERE = Path(__file__).parent / "formats"
"""Files written by the tools' own code, with responses of our own; docs/rollouts.md lists the versions."""
END = 2
USER = Message(role="user", content="What is 47 + 385?")
ASKED = [Message(role="system", content="Put the answer in a box."), USER]


def read(tokenizer, *names, chat={}):  # noqa: B006
    return read_rollouts([HERE / name for name in names], tokenizer, chat)


def marks(rollouts):
    return [dict(rollout.marks) for rollout in rollouts]


def test_logged_completions_of_trl_with_messages(tokenizer):
    first, second = read(tokenizer, "trl_chat.parquet")
    assert first.ids == sum(
        split_messages(tokenizer, [USER, Message(role="assistant", content=r" It is \boxed{432}")], {}), ()
    )
    assert (first.problem, first.response, first.reward, first.sample) == (
        USER["content"],
        r" It is \boxed{432}",
        1.0,
        0,
    )
    assert marks([first, second]) == [
        {"step": 3.0, "box_reward": 1.0, "format_reward": 1.0, "advantage": 0.7},
        {"step": 3.0, "box_reward": 0.0, "format_reward": None, "advantage": -0.7},
    ]
    assert (second.sample, second.reward, second.finished) == (1, 0.0, True)


def test_logged_completions_of_trl_with_text_are_read_as_they_are(tokenizer):
    first, second = read(tokenizer, "trl_text.parquet")
    assert first.ids == encode_text(tokenizer, "47 + 385 = 432")
    assert (second.problem, second.response, second.finished) == ("9 * 12 =", " 107", False)


def test_a_data_set_of_trl_has_an_answer_instead_of_rewards(tokenizer, tmp_path):
    row = {"prompt": [dict(USER)], "completion": [{"role": "assistant", "content": r"\boxed{432}"}], "answer": "432"}
    (rollout,) = read_rollouts(jsonl(tmp_path / "r.jsonl", row), tokenizer, {})
    assert (rollout.answer, rollout.reward, rollout.marks) == ("432", 1.0, {})


def test_prompts_of_verl_get_their_special_tokens_back(either):
    question = "What is 47 + 385?"
    prompt = encode_problem(either, Problem((Message(role="user", content=question),), None), {})
    bare = either.decode(list(prompt), skip_special_tokens=True)
    assert list(sampled.restored(either, bare, {})) == [Message(role="user", content=question)]


def test_dumps_of_verl(tokenizer):
    first, second = read(tokenizer, "verl.jsonl")
    assert first.prompt_ids == encode_problem(tokenizer, Problem((USER,), None), {})
    assert (first.problem, first.answer, first.reward) == (USER["content"], "432", 1.0)
    assert first.response == r" It is \boxed{432}"
    assert second.marks == {"score": 0.0, "step": 5.0, "acc": 0.0}


def test_a_prompt_of_verl_that_the_template_did_not_write_is_refused(tokenizer, tmp_path):
    path = jsonl(tmp_path / "r.jsonl", {"input": "Human: a\nAI:", "output": "b", "score": 1.0})
    with pytest.raises(InputError, match=r"r\.jsonl, line 1: the prompt 'Human.* has lost its special tokens"):
        read_rollouts(path, tokenizer, {})
    (rollout,) = read_rollouts(path, tokenizer, None)
    assert rollout.problem == "Human: a\nAI:"


def test_a_prompt_that_is_text_is_shown_as_plain_text(tokenizer):
    said: list[str] = []
    for name in ("lm_eval.jsonl", "trl_chat.parquet"):
        read_rollouts([HERE / name], tokenizer, {}, note=said.append)
    assert [words.partition(":")[0] for words in said] == ["Read as plain text", "Read through the chat template as"]


def test_samples_of_lm_eval_are_read_once_for_all_filters(tokenizer):
    first, second = read(tokenizer, "lm_eval.jsonl")
    text = "Question: What is 47 + 385?\nAnswer: 47 + 385 = 432. The answer is 432."
    assert first.ids == encode_text(tokenizer, text)
    assert (first.problem, first.answer, first.reward) == (USER["content"], "432", 0.0)
    assert marks([first, second]) == [
        {"exact_match,strict-match": 0.0, "exact_match,flexible-extract": 1.0},
        {"exact_match,strict-match": 0.0, "exact_match,flexible-extract": 0.0},
    ]


def test_messages_that_lm_eval_sent_to_an_api_are_rendered(tokenizer, tmp_path):
    row = json.loads((HERE / "lm_eval.jsonl").read_text().splitlines()[0])
    row["arguments"]["gen_args_0"]["arg_0"] = [json.dumps([dict(turn) for turn in ASKED])]
    (rollout,) = read_rollouts(jsonl(tmp_path / "r.jsonl", row), tokenizer, {})
    assert rollout.prompt_ids == encode_problem(tokenizer, Problem(tuple(ASKED), None), {})


@pytest.mark.parametrize("name", ["lm_eval_choices.jsonl", "lighteval_choices.parquet"])
def test_a_task_without_responses_is_refused(tokenizer, name):
    with pytest.raises(InputError, match=f"{name}, (line|row) 1: the task compares the likelihoods of given choices"):
        read(tokenizer, name)


def test_details_of_lighteval_with_token_ids(tokenizer):
    first, second = read(tokenizer, "lighteval_sums.parquet")
    assert (first.prompt_ids, first.response_ids, first.finished) == ((5, 6, 7), (8, 9, END), True)
    assert (first.problem, first.answer, first.reward) == (USER["content"], "432", 1.0)
    assert marks([first, second]) == [{"exact_match": 1.0, "f1": 0.5}, {"exact_match": 0.0, "f1": 0.25}]


def test_metrics_of_several_responses_are_marks_of_each_and_no_reward(tokenizer):
    first, second = read(tokenizer, "lighteval_texts.parquet")
    assert first.ids == encode_text(tokenizer, "Q: 9 * 12?\nA: \\boxed{108}")
    assert marks([first, second]) == [{"pass@2": 1.0}] * 2
    assert (first.reward, second.reward, second.sample) == (1.0, 0.0, 1)  # by the answer


def test_messages_that_lighteval_sent_to_an_api_are_rendered(tokenizer):
    (rollout,) = read(tokenizer, "lighteval_api.parquet")
    expected = encode_problem(tokenizer, Problem((Message(role="user", content="9 * 12?"),), None), {})
    assert (rollout.prompt_ids, rollout.response) == (expected, "108")


@pytest.mark.parametrize("name", ["inspect.eval", "inspect.json"])
def test_logs_of_inspect(tokenizer, name):
    rollouts = sorted(read(tokenizer, name), key=lambda rollout: (rollout.problem, rollout.sample))
    assert [rollout.reward for rollout in rollouts] == [1.0, 0.0, 0.0, 0.0]
    first = next(rollout for rollout in rollouts if rollout.problem == USER["content"] and rollout.sample == 0)
    assert first.prompt_ids == encode_problem(tokenizer, Problem(tuple(ASKED), None), {})
    assert (first.answer, first.response, first.finished) == ("432", r" 47 + 385 = 432, so \boxed{432}", True)
    assert dict(first.marks) == {"includes": 1.0, "form.length": 31.0, "form.boxed": 1.0}
    cut = next(rollout for rollout in rollouts if rollout.response == "It is 400.")
    assert not cut.finished


def test_an_archive_is_recognised_whatever_it_is_called(tokenizer, tmp_path):
    (tmp_path / "log.bin").write_bytes((HERE / "inspect.eval").read_bytes())
    assert read_rollouts(tmp_path / "log.bin", tokenizer, {}) == read(tokenizer, "inspect.eval")


def test_reasoning_and_tool_calls_of_inspect_reach_the_template(tmp_path):
    turns = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": "add", "arguments": {"a": 1}}]},
        {"role": "tool", "content": "3", "tool_call_id": "1", "function": "add"},
    ]
    last = {
        "role": "assistant",
        "content": [{"type": "reasoning", "reasoning": "3"}, {"type": "text", "text": "It is 3."}],
    }
    output = {"choices": [{"message": last, "stop_reason": "stop"}]}
    sample = {"id": 1, "epoch": 1, "input": "Add.", "target": "3", "messages": [*turns, last], "output": output}
    (found,) = table.read([jsonl(tmp_path / "r.jsonl", sample)])
    assert isinstance(found, response.Response)
    assert (found.text, found.parts) == ("It is 3.", {"reasoning_content": "3"})
    prompt: Any = found.prompt
    assert prompt[1]["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    assert prompt[2] == {"role": "tool", "content": "3", "tool_call_id": "1"}


@pytest.mark.parametrize(
    "names", [("batch_input.jsonl", "batch_output.jsonl"), ("batch_output.jsonl", "batch_input.jsonl")]
)
def test_responses_of_a_batch_find_their_prompts(tokenizer, names):
    other, first, second = read(tokenizer, *names)
    assert (other.problem, other.response) == ("What is 9 * 12?", "It is 108.")
    assert first.prompt_ids == encode_problem(tokenizer, Problem(tuple(ASKED), None), {})
    assert [(one.response, one.sample, one.finished) for one in (first, second)] == [
        (r" \boxed{432}", 0, True),
        ("It is 4", 1, False),
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "batch_output.jsonl",
            "line 1: the prompt of 'request-1' isn't in this file. Give the batch's input file as well",
        ),
        ("batch_input.jsonl", "this file has the requests of a batch. Give the file with its responses as well"),
    ],
)
def test_half_of_a_batch_is_refused(tokenizer, name, message):
    with pytest.raises(InputError, match=message):
        read(tokenizer, name)


def test_token_ids_and_log_probabilities_of_vllm_are_used_as_they_are(tokenizer):
    chat, text = read(tokenizer, "vllm_output.jsonl")
    assert (chat.prompt_ids, chat.response_ids, chat.engine_logprob) == ((5, 6, 7), (8, 9, END), (-0.25, -0.5, -0.75))
    assert (text.prompt_ids, text.response_ids, text.engine_logprob) == ((5, 6), (10, 11), (-0.5, -1.0))


LISTS = {
    "texts": {"responses": [r"\boxed{432}", "5"], "scores": [1, 0.5], "level": 2},
    "messages": {
        "completions": [{"role": "assistant", "content": r"\boxed{432}"}, {"text": "5"}],
        "scores": [1, 0.5],
        "level": 2,
    },
}


@pytest.mark.parametrize("lists", LISTS.values(), ids=LISTS)
def test_a_list_of_responses_is_a_rollout_each(tokenizer, tmp_path, lists):
    path = jsonl(tmp_path / "r.jsonl", {"prompt": USER["content"], "answer": "432", **lists})
    first, second = read_rollouts(path, tokenizer, {})
    assert (first.response, second.response, second.sample) == (r"\boxed{432}", "5", 1)
    assert [one.reward for one in (first, second)] == [1.0, 0.5]
    assert marks([first, second]) == [{"scores": 1.0, "level": 2.0}, {"scores": 0.5, "level": 2.0}]


def test_outputs_of_vllm_keep_their_token_ids(tokenizer, tmp_path):
    outputs = [{"index": 0, "text": "x", "token_ids": [8, 9], "finish_reason": "length"}]
    path = jsonl(tmp_path / "r.jsonl", {"prompt": "a", "prompt_token_ids": [5, 6], "outputs": outputs})
    (rollout,) = read_rollouts(path, tokenizer, {})
    assert (rollout.prompt_ids, rollout.response_ids, rollout.problem) == ((5, 6), (8, 9), "a")


def test_a_response_keeps_its_white_space_and_is_encoded_by_itself_at_the_boundary(tokenizer):
    prompt = encode_text(tokenizer, "A: ")
    assert sampled.encoded_response(tokenizer, prompt, "A: ", "  7 \n") in {
        encode_text(tokenizer, "A:   7 \n")[len(prompt) :],
        encode_text(tokenizer, "  7 \n"),
    }


def test_marks_are_columns_and_read_back(tokenizer, tmp_path):
    rollouts = read(tokenizer, "lm_eval.jsonl")
    assert to_table(rollouts).column_names[-2:] == [
        MARK + "exact_match,strict-match",
        MARK + "exact_match,flexible-extract",
    ]
    assert from_table(to_table(rollouts)) == rollouts
    for ending in ("jsonl", "parquet"):
        write_rollouts(tmp_path / f"r.{ending}", rollouts)
        assert read_rollouts(tmp_path / f"r.{ending}", tokenizer, {}) == rollouts


def test_empty_responses_are_left_out_and_counted(tokenizer, tmp_path):
    said = []
    path = jsonl(tmp_path / "r.jsonl", *({"prompt": "a", "completion": text} for text in ("", "b", "")))
    (rollout,) = read_rollouts(path, tokenizer, {}, warn=said.append)
    assert (rollout.response, said) == ("b", ["Left out 2 empty responses."])


def test_a_folder_is_its_files_with_responses_in_order(tokenizer, tmp_path):
    for number in (10, 9):
        jsonl(tmp_path / f"{number}.jsonl", {"prompt": "a", "completion": str(number)})
    (tmp_path / "results.json").write_text("{}")
    assert [one.response for one in read_rollouts(tmp_path, tokenizer, {})] == ["9", "10"]


def test_a_folder_without_responses_is_refused(tokenizer, tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match="has no file with responses among its 1 files"):
        read_rollouts(tmp_path, tokenizer, {})


def test_unknown_columns_are_refused_with_the_list_of_formats(tokenizer, tmp_path):
    with pytest.raises(InputError, match=r"line 1: the columns are a, b; expected .*verl, lm-eval, lighteval, Inspect"):
        read_rollouts(jsonl(tmp_path / "r.jsonl", {"a": 1, "b": 2}), tokenizer, {})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "a", "completion": [{"role": "user", "content": "b"}]},
            "'completion' holds .*; expected text, or a list",
        ),
        ({"input": 5, "output": "b", "score": 1}, "'input' holds 5; expected text"),
        ({"input": "a", "output": "b", "score": "good"}, "the score is 'good'; expected a number"),
        ({"doc": {}, "arguments": {}, "resps": [], "filtered_resps": [], "metrics": []}, "'arguments' has 0 requests"),
        ({"custom_id": 5, "response": {}}, "'custom_id' holds 5; expected text"),
        ({"custom_id": "a", "response": {"body": {}}}, "'body' holds {}; expected choices"),
        ({"prompt": "a", "responses": [5]}, "'responses' holds 5; expected texts, or objects"),
        ({"prompt": "a", "responses": ["b"], "x\ny": 1}, r"a mark is called 'x\\ny'; expected a printable name"),
        ({"id": 1, "epoch": 1, "input": "a", "target": "b", "output": 5}, "'output' holds 5; expected an object"),
        ({"doc": 5, "model_response": {}, "metric": {}}, "'doc' holds 5; expected an object"),
    ],
)
def test_a_cell_of_the_wrong_type_is_named_with_its_place(tokenizer, tmp_path, row, message):
    with pytest.raises(InputError, match=r"r\.jsonl, line 1: .*" + message):
        read_rollouts(jsonl(tmp_path / "r.jsonl", row), tokenizer, {})


def damaged(content: bytes, how: str) -> bytes:
    if how == "half":
        return content[: len(content) // 2]
    start = content.index(b"samples/1_epoch_1.json") + 40
    return content[:start] + bytes(64) + content[start + 64 :]


@pytest.mark.parametrize("how", ["half", "altered"])
def test_a_damaged_archive_is_refused(tokenizer, tmp_path, how):
    (tmp_path / "r.eval").write_bytes(damaged((HERE / "inspect.eval").read_bytes(), how))
    with pytest.raises(InputError, match=r"r\.eval.* isn't a complete Inspect log"):
        read_rollouts(tmp_path / "r.eval", tokenizer, {})


def test_any_other_archive_has_no_samples(tokenizer, tmp_path):
    with zipfile.ZipFile(tmp_path / "r.eval", "w") as archive:
        archive.writestr("a.txt", "b")
    with pytest.raises(InputError, match=r"r\.eval is empty"):
        read_rollouts(tmp_path / "r.eval", tokenizer, {})


def test_a_mark_of_a_scan_must_be_a_number():
    marked = to_table([Rollout("", None, 0, (5,), (6,), "", None, True, None, {"step": 1.0})])
    assert schema.complaint("rollouts", marked.schema) is None
    wrong = marked.append_column("mark.x", pa.array(["a"]))
    assert schema.complaint("rollouts", wrong.schema) == "its column mark.x is string"
