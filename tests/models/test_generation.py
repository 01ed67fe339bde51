"""How a model generates is known without loading its weights."""

from typing import Any

import pytest
from conftest import saved, tiny_model

from internal_policy.models.checkpoint import Checkpoint
from internal_policy.models.generation import generation_config
from internal_policy.models.loading import load_config, load_model
from internal_policy.tasks.generate import end_ids, ends_of


@pytest.mark.parametrize(("ends", "expected"), [([2, 7], {1, 2, 7}), (7, {1, 2, 7}), (None, {1, 2})], ids=str)
def test_the_ends_of_a_response_are_those_of_the_loaded_model(ends, expected, tokenizer, tmp_path):
    model = tiny_model("qwen3")
    model.config.eos_token_id = 1
    assert model.generation_config is not None
    model.generation_config.eos_token_id = ends
    saved(model, tokenizer, tmp_path)
    if ends is None:
        (tmp_path / "generation_config.json").unlink()
    checkpoint = Checkpoint(str(tmp_path))
    loaded: Any = load_model(checkpoint)
    found = ends_of(load_config(checkpoint), generation_config(checkpoint), tokenizer)
    assert found == end_ids(loaded, tokenizer) == expected
