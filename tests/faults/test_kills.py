"""A command that is killed at any moment goes on and ends as if nothing had happened."""

import pytest
from faults.commands import COMMANDS
from faults.harness import moments, tried

KILLS = 3
"""How often each command is killed here; `python -m tests.faults --kills 50` does it more often."""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_goes_on_and_equals_an_undisturbed_one(name, references, tmp_path):
    reference = references(name)
    trials = [
        tried(COMMANDS[name], reference, tmp_path / str(number), moment)
        for number, moment in enumerate(moments(reference, KILLS, seed=1))
    ]
    assert [trial for trial in trials if trial.failure] == []
