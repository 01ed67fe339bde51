"""A YAML file of fields is read as it was meant, or refused."""

import json
from pathlib import Path

import pytest

from internal_policy.errors import InputError
from internal_policy.train import fields


def given(folder: Path, **fields) -> str:
    """A configuration file."""
    path = folder / "given.yaml"
    path.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in fields.items()))
    return str(path)


def test_a_number_in_the_file_may_be_written_as_yaml_does_not_read_it(tmp_path):
    assert fields.read(given(tmp_path, learning_rate="1e-6")) == {"learning_rate": 1e-6}


def test_a_large_file_is_not_read_to_its_end():
    with pytest.raises(InputError, match="larger than 64 KiB"):
        fields.read("/dev/zero")


@pytest.mark.parametrize("word", ["no", "'no'"])
def test_yaml_no_is_read_as_text_for_strategies(word, tmp_path):
    path = tmp_path / "given.yaml"
    path.write_text(f"logging_strategy: {word}\neval_strategy: {word}\n")
    assert fields.read(str(path)) == {"logging_strategy": "no", "eval_strategy": "no"}


def test_a_mapping_may_be_written_as_json(tmp_path):
    file = given(tmp_path, chat_template_kwargs='{"enable_thinking": false}')
    assert fields.read(file) == {"chat_template_kwargs": {"enable_thinking": False}}
