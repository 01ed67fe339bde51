"""A YAML file of fields is read as intended, or rejected with the name of the field."""

import json
import re
from pathlib import Path

import pytest

from internal_policy.errors import InputError
from internal_policy.train import fields


def given(folder: Path, **fields) -> str:
    """A configuration file."""
    path = folder / "given.yaml"
    path.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in fields.items()))
    return str(path)


def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path):
    assert fields.read(given(tmp_path, learning_rate="1e-6")) == {"learning_rate": 1e-6}


def test_a_large_file_is_rejected_without_reading_all_of_it():
    with pytest.raises(InputError, match="larger than 64 KiB"):
        fields.read("/dev/zero")


@pytest.mark.parametrize("word", ["no", "'no'"])
def test_an_unquoted_no_is_text_for_strategies(word, tmp_path):
    path = tmp_path / "given.yaml"
    path.write_text(f"logging_strategy: {word}\neval_strategy: {word}\n")
    assert fields.read(str(path)) == {"logging_strategy": "no", "eval_strategy": "no"}


def test_a_mapping_may_be_written_as_json(tmp_path):
    file = given(tmp_path, chat_template_kwargs='{"enable_thinking": false}')
    assert fields.read(file) == {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rat: 1e-6", "has learning_rat, which isn't a field of BuPOConfig. Did you mean learning_rate?"),
        ("1: 2", "has 1, which isn't a field"),
        ("- 1", "contains list, not fields"),
        ("", "contains nothing"),
        ("a: [", "can't be read"),
        ("seed: 1\n---\nseed: 2", "can't be read"),
        ("seed: !!python/object:os.system {}", "can't be read"),
        ("run_name: 2026-99-99", "can't be read"),
        ("seed: !!timestamp x", "can't be read"),
        ("seed: " + "9" * 5000, "can't be read"),
        ("seed: 1\nseed: 2", "has seed twice"),
        ("a: &a [1]\nb: *a", "uses the alias *a"),
        ("report_to: " + "[" * 100 + "]" * 100, "nested more than 8 levels"),
        ("report_to: " + "[" * 30000, "nested more than 8 levels"),
        ("#" * 70000, "larger than 64 KiB"),
        ('run_name: "\\0"', "has run_name"),
        ("learning_rate: fast", "has learning_rate: fast; expected float"),
        ("learning_rate: .nan", "has learning_rate: nan; expected a number above 0"),
        ("learning_rate: .inf", "has learning_rate: inf"),
        ("learning_rate: 1e400", "has learning_rate: inf"),
        ("learning_rate: 0", "has learning_rate: 0; expected a number above 0"),
        ("learning_rate: {a: 1}", "has learning_rate: {'a': 1}; expected float"),
        ("learning_rate: [1, 2]", "has learning_rate: [1, 2]; expected float"),
        ("learning_rate: 2026-11-25", "has learning_rate: datetime.date(2026, 11, 25); expected float"),
        ("learning_rate: null", "has learning_rate: None; expected float"),
        ("adam_beta2: 1.0", "has adam_beta2: 1.0; expected 0 or more, less than 1"),
        ("top_p: 1.5", "has top_p: 1.5"),
        ("max_steps: 1.5", "has max_steps: 1.5; expected int"),
        ("max_steps: 99999999999999999999", "has max_steps: 99999999999999999999"),
        ("seed: true", "has seed: True; expected int"),
        ("seed: -1", "has seed: -1; expected 0 or more, at most 4294967295"),
        ("num_generations: 0", "has num_generations: 0; expected 1 or more"),
        ("num_generations: null", "has num_generations: null. Give a number"),
        ("max_completion_length: null", "has max_completion_length: null. Give a number"),
        ("per_device_train_batch_size: 0", "has per_device_train_batch_size: 0"),
        ("run_name: 2026-11-25", "has run_name: datetime.date(2026, 11, 25); expected str or null"),
        ("schedule: 5.resid_post:3", "has schedule: 5.resid_post:3; expected a list of str, such as [5.resid_post:3]."),
        ("schedule: [5]", "has schedule: [5]; expected a list of str"),
        ("loss_type: gppo", "has loss_type: gppo; expected one of grpo, dapo"),
        ("chat_template_kwargs: hello", "has chat_template_kwargs: hello; expected a mapping"),
        ("chat_template_kwargs: '{bad'", "has chat_template_kwargs: {bad; expected a mapping"),
        ("chat_template_kwargs: {1: 2}", "has chat_template_kwargs: {1: 2}; expected a mapping"),
        ("lr_scheduler_kwargs: {a: 2026-11-25}", "has lr_scheduler_kwargs"),
        ("output_dir: [a]", "has output_dir: ['a']"),
        ("eval_strategy: steps", "has eval_strategy: steps, but train doesn't evaluate"),
        ("load_best_model_at_end: true", "has load_best_model_at_end: True, but train doesn't evaluate"),
        ("resume_from_checkpoint: x", "has resume_from_checkpoint: x, but --resume continues a run"),
    ],
    ids=lambda text: text[:40],
)
def test_an_invalid_file_gets_a_one_sentence_error(text, said, tmp_path):
    path = tmp_path / "given.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(said)) as error:
        fields.read(str(path))
    assert str(error.value).startswith(f"{path} ")
    assert "\n" not in str(error.value)
