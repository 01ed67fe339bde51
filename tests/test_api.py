"""The public API: what `import internal_policy` gives."""

import inspect
import json
import pickle
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import internal_policy as ip
from internal_policy import bundle
from internal_policy.cli.main import main
from internal_policy.look.scan import of
from internal_policy.scans import store, versions
from internal_policy.scans.scan import scan as measured
from internal_policy.tasks.generate import generate as batches
from internal_policy.tasks.problems import Message, Problem
from internal_policy.tasks.rollouts import read_rollouts, write_rollouts

ROOT = Path(__file__).parent.parent
TEXT = "The answer is 432."
SHORT: dict[str, Any] = {"max_new_tokens": 6}


def test_every_public_name_can_be_imported():
    assert all(getattr(ip, name) is not None for name in ip.__all__)


def test_tab_completion_offers_the_public_names():
    assert dir(ip) == sorted(ip.__all__)


@pytest.mark.parametrize("name", [name for name in ip.__all__ if name not in ("FINAL", "__version__")])
def test_every_public_name_has_a_docstring(name):
    assert len(inspect.getdoc(getattr(ip, name)) or "") > 80


@pytest.mark.parametrize("name", [name for name in ip.__all__ if name not in ("FINAL", "InputError", "__version__")])
def test_the_docstring_of_a_public_name_shows_a_call_and_its_errors(name):
    text = inspect.getdoc(getattr(ip, name)) or ""
    assert f"{name}(" in text
    assert "InputError" in text


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'scam'"):
        ip.scam  # noqa: B018


@pytest.mark.parametrize(("name", "missing", "extra"), [("scan", "torch", "models"), ("BuPOTrainer", "trl", "train")])
def test_an_import_error_names_the_extra_to_install(name, missing, extra):
    code = f"import sys; sys.modules['{missing}'] = None; import internal_policy as ip; ip.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        f"ImportError: {name} needs {missing}. Install it with `pip install 'internal-policy[{extra}]'`." in done.stderr
    )


def test_the_version_is_the_one_in_pyproject():
    assert ip.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_a_record_has_the_version_of_the_code_that_runs_not_of_an_older_installation(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: f"old {name}")
    assert versions.of(("internal-policy", "torch")) == {"internal-policy": ip.__version__, "torch": "old torch"}


def test_the_command_line_prints_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"internal-policy {ip.__version__}\n"


def test_a_scan_on_disk_is_drawn_without_torch():
    code = "import sys, internal_policy as ip; ip.open_scan('demo-qwen3').plot.flow(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_questions_are_answered_like_problems(llama, tokenizer):
    text = "What is 7 + 5?"
    asked = [Problem((Message(role="user", content=text),), None)]
    (expected,) = batches(llama, tokenizer, asked, **SHORT)
    assert ip.generate(llama, tokenizer, [text], **SHORT) == expected
    assert ip.generate(llama, tokenizer, asked, **SHORT) == expected


def test_a_row_with_an_answer_is_marked(llama, tokenizer):
    rows = [{"question": "What is 7 + 5?", "answer": 12}, {"problem": "What is 1 + 1?"}]
    rollouts = ip.generate(llama, tokenizer, rows, **SHORT)
    assert [(rollout.answer, rollout.reward) for rollout in rollouts] == [("12", 0.0), (None, None)]


def test_every_problem_gets_its_samples(llama, tokenizer):
    rollouts = ip.generate(llama, tokenizer, ["a", "b"], samples=3, batch_size=2, **SHORT)
    assert [(rollout.problem, rollout.sample) for rollout in rollouts] == [(p, n) for p in "ab" for n in range(3)]


@pytest.mark.parametrize("kind", [str, Path])
def test_problems_can_be_a_file(kind, llama, tokenizer):
    file = kind(bundle.DATA / "problems" / "heldout.jsonl")
    rollouts = ip.generate(llama, tokenizer, file, limit=2, max_new_tokens=1)
    lines = (bundle.DATA / "problems" / "heldout.jsonl").read_text().splitlines()[:2]
    assert [rollout.problem for rollout in rollouts] == [json.loads(line)["problem"] for line in lines]


def test_every_token_of_a_text_after_the_first_is_measured(llama, tokenizer):
    (row,) = ip.scan(llama, tokenizer, [TEXT]).rollouts.to_dict("records")
    ids = tokenizer(TEXT)["input_ids"]
    assert [list(row["prompt_ids"]), list(row["response_ids"])] == [ids[:1], ids[1:]]


def test_all_of_a_text_is_measured_if_its_first_token_is_a_bos(llama, sentencepiece):
    (row,) = ip.scan(llama, sentencepiece, ["the boat"]).rollouts.to_dict("records")
    ids = sentencepiece("the boat")["input_ids"]
    assert ids[0] == sentencepiece.bos_token_id
    assert list(row["response_ids"]) == ids[1:]


def test_a_text_is_measured_like_a_column_of_texts(llama, tokenizer, tmp_path):
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": TEXT}))
    rollouts = read_rollouts(tmp_path / "texts.jsonl", tokenizer, {})
    expected = of(measured(llama, tokenizer, rollouts))
    pd.testing.assert_frame_equal(ip.scan(llama, tokenizer, [TEXT]).policies(), expected.policies())


def test_rollouts_rows_and_texts_can_be_scanned_together(llama, tokenizer):
    rollouts = ip.generate(llama, tokenizer, ["What is 7 + 5?"], **SHORT)
    given = [TEXT, *rollouts, {"prompt": "What is 7 + 5?", "response": "12"}]
    found = ip.scan(llama, tokenizer, given).rollouts
    assert found["problem"].tolist() == ["", "What is 7 + 5?", "What is 7 + 5?"]
    assert found["response"].tolist()[1] == rollouts[0].response


def test_rollouts_can_be_a_file(llama, tokenizer, tmp_path):
    rollouts = ip.generate(llama, tokenizer, ["a", "b"], **SHORT)
    write_rollouts(tmp_path / "rollouts.jsonl", rollouts)
    found = ip.scan(llama, tokenizer, tmp_path / "rollouts.jsonl", limit=1)
    pd.testing.assert_frame_equal(found.policies(), ip.scan(llama, tokenizer, rollouts[:1]).policies())


def test_each_way_of_reading_prompts_is_reported_once(llama, tokenizer, capsys, monkeypatch):
    from internal_policy.tasks import given

    monkeypatch.setattr(given, "_said", set())
    rows = 2 * [{"prompt": "What is 7 + 5?", "response": "12"}]
    for chat in ({}, {}, None, None):
        ip.scan(llama, tokenizer, rows, chat=chat)
    assert capsys.readouterr().err.splitlines() == [
        r"Read through the chat template as: <|im_start|>user\nWhat is 7 + 5?<|im_end|>\n<|im_start|>assistant\n",
        "For plain text, pass chat=None.",
        "Read as plain text: What is 7 + 5?",
    ]


def test_a_txt_file_is_one_text_for_scan_and_one_problem_per_line_for_generate(llama, tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("What is 7 + 5?\nAnd 2 + 2?\n")
    pd.testing.assert_frame_equal(
        ip.scan(llama, tokenizer, path).policies(),
        ip.scan(llama, tokenizer, ["What is 7 + 5?\nAnd 2 + 2?"]).policies(),
    )
    asked = [rollout.problem for rollout in ip.generate(llama, tokenizer, str(path), **SHORT)]
    assert asked == ["What is 7 + 5?", "And 2 + 2?"]


@pytest.mark.parametrize("public", [ip.generate, ip.scan])
@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("What is 7 + 5?", r"is the string 'What is 7 \+ 5\?'. Put texts in a list"),
        ("missing.jsonl", "There is no file missing.jsonl"),
        ([], "is empty"),
        ([7], "Item 1 is an int"),
        (["a text", None], "Item 2 is None"),
        (pd.DataFrame({"problem": ["a"]}), "is a DataFrame. Give a list"),
        ([{"b": "c"}], "Item 1.* column"),
        ([""], "Item 1: .*empty|Item 1: .*token"),
    ],
)
def test_anything_but_a_list_of_texts_is_rejected(public, items, message, llama, tokenizer):
    with pytest.raises(ip.InputError, match=message):
        inspect.unwrap(public)(llama, tokenizer, items)


@pytest.mark.parametrize("public", [ip.generate, ip.scan])
@pytest.mark.parametrize("given", [["The capital of France"], None, "demo-qwen3"])
def test_an_error_names_a_missing_tokenizer(public, given, llama):
    with pytest.raises(ip.InputError, match=r"second argument is .*, not a tokenizer"):
        inspect.unwrap(public)(llama, given)


@pytest.mark.parametrize("public", [ip.generate, ip.scan])
@pytest.mark.parametrize("given", ["demo-qwen3", Path("model"), ("model", "tokenizer"), None])
def test_a_models_name_instead_of_a_model_is_rejected(public, given, tokenizer):
    with pytest.raises(ip.InputError, match=r"first argument is .*, not a model. Load it first"):
        inspect.unwrap(public)(given, tokenizer, [TEXT])


def test_a_layer_that_is_not_a_whole_number_is_rejected(llama, tokenizer):
    with pytest.raises(ip.InputError, match="layers has '1'"):
        inspect.unwrap(ip.scan)(llama, tokenizer, [TEXT], layers=["1"])


@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [("readouts", "norm", r"\['norm'\]"), ("sites", "resid_post", r"\['resid_post'\]"), ("layers", 5, r"\[5\]")],
)
def test_a_single_value_instead_of_a_list_is_rejected(option, value, remedy, llama, tokenizer):
    with pytest.raises(ip.InputError, match=f"{option} must be a list, not .* Use {remedy}"):
        inspect.unwrap(ip.scan)(llama, tokenizer, [TEXT], **{option: value})


def test_a_scan_in_memory_and_one_on_disk_are_the_same_kind_of_object(llama, tokenizer):
    assert type(ip.scan(llama, tokenizer, [TEXT])) is type(ip.open_scan("demo-qwen3"))


def test_a_scan_in_memory_is_named_after_the_folder_of_its_model(llama, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(llama.config, "name_or_path", str(tmp_path))
    assert repr(ip.scan(llama, tokenizer, [TEXT])).startswith(f"<Scan of {tmp_path.name}: 1 rollout, ")


def test_a_scan_is_opened_by_its_folder_too():
    folder = bundle.DATA / "scans" / "demo-qwen3"
    expected = ip.open_scan("demo-qwen3").means()
    pd.testing.assert_frame_equal(ip.open_scan(folder).means(), expected)
    pd.testing.assert_frame_equal(ip.open_scan(str(folder)).means(), expected)


def test_an_unknown_scan_lists_the_existing_ones(here):
    with pytest.raises(ip.InputError, match=r"There is no scan 'qwen'.*demo-llama, demo-qwen3"):
        ip.open_scan("qwen")


def test_an_unknown_run_lists_the_existing_ones(here):
    with pytest.raises(ip.InputError, match=r"There is no training run 'mine'.*experiments/bupo, experiments/grpo"):
        ip.open_run("mine")


@pytest.fixture(scope="module")
def demo():
    return ip.load("demo-qwen3")


def test_the_lens_says_what_each_layer_would_say_next(demo):
    model, tokenizer = demo
    table = ip.lens(model, tokenizer, "47 + 385 =", target=" 432")
    assert table["layer"].to_list() == list(range(9))
    assert table.attrs["text"] == "47 + 385 ="
    assert table["read"].unique().tolist() == ["="]


def test_the_lens_puts_a_question_through_the_chat_template(demo):
    model, tokenizer = demo
    table = ip.lens(model, tokenizer, "What is 2 + 2?", chat={}, all_positions=True)
    assert "".join(table.drop_duplicates("position")["read"]).endswith("<|im_start|>assistant\n")


@pytest.fixture
def shards(llama, tokenizer) -> list[Any]:
    return [ip.scan(llama, tokenizer, FIVE, batch_size=2, shard=(index, 2)) for index in range(2)]


FIVE = [f"{TEXT} {number}" for number in range(5)]


def test_merged_shards_equal_the_scan_of_a_single_process(shards, llama, tokenizer):
    whole = ip.scan(llama, tokenizer, FIVE, batch_size=2)
    assert [shard.rollouts["rollout"].tolist() for shard in shards] == [[0, 1, 4], [2, 3]]
    merged = ip.merge(pickle.loads(pickle.dumps(shards[::-1])))
    assert merged.record == whole.record
    for kind in (*store.KINDS, "vocabulary"):
        one, other = (store.read(scan.source, kind) for scan in (merged, whole))
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_a_shard_is_looked_at_like_any_scan(shards, llama, tokenizer):
    whole = ip.scan(llama, tokenizer, FIVE, batch_size=2)
    shard = shards[1]
    assert shard.about.rollouts == 2
    pd.testing.assert_frame_equal(shard.tokens(rollout=3), whole.tokens(rollout=3))
    assert not shard.means().empty
    with pytest.raises(ip.InputError, match=r"has no rollout 0, because it is only shard 1/2\. Merge all shards"):
        shard.tokens(rollout=0)


def test_shards_that_do_not_belong_together_are_rejected(shards, llama, tokenizer):
    other = ip.scan(llama, tokenizer, FIVE, batch_size=2, top_k=1, shard=(1, 2))
    for given, sentence in (
        ([], "merge takes scans in memory"),
        ([ip.scan(llama, tokenizer, FIVE)], "merge takes scans in memory"),
        (shards[:1], r"Rollout 2 is in none of the shards 0/2\. Give all"),
        ([*shards, shards[0]], r"Rollout 0 is in more than one of the shards\. Give each"),
        ([shards[0], other], r"differ in selection\. Make all with the same"),
    ):
        with pytest.raises(ip.InputError, match=sentence):
            ip.merge(given)


@pytest.mark.parametrize(
    ("shard", "sentence"),
    [((2, 2), r"There is no shard 2/2"), ((3, 4), r"Shard 3/4 has no rollouts: 5 of them make only 3 batches of 2")],
)
def test_a_shard_without_rollouts_is_rejected(shard, sentence, llama, tokenizer):
    with pytest.raises(ip.InputError, match=sentence):
        ip.scan(llama, tokenizer, FIVE, batch_size=2, shard=shard)
