"""Choosing what samples responses or runs the model."""

import pytest
from conftest import one_sentence

from internal_policy.__main__ import main

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.parametrize("words", ["scan --engine vllm", "generate --engine server"])
def test_an_engine_that_does_not_exist_yet_is_refused(words, here, capsys):
    assert main(words.split()) == 2
    one_sentence(capsys, "can't be used yet", here)


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_ray_only_runs_scans(command, here, capsys):
    assert main([command, "--engine", "ray"]) == 2
    one_sentence(capsys, "--engine is 'ray'. Choose one of local, vllm, server.", here)
