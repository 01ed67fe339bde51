"""The bundled models and problems."""

import json

import pytest
from conftest import slow

from internal_policy.__main__ import main
from internal_policy.bundle import DATA
from internal_policy.tasks.problems import read_problems

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.parametrize("name", ["demo-qwen3", *slow("demo-llama")])
def test_the_bundled_models_solve_some_of_their_problems(name, here, capsys):
    words = ["--model", name, "--limit", "8", "--dtype", "float32", "--max-new-tokens", "80", "--json"]
    assert main(["generate", *words, "--output", "r.jsonl"]) == 0
    generated = json.loads(capsys.readouterr().out)
    assert generated["reward"] > 0
    assert main(["scan", "--model", name, "--rollouts", "r.jsonl", "--dtype", "float32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == generated["tokens"]


def test_no_held_out_problem_is_in_the_training_problems():
    train, heldout = (
        {problem.text for problem in read_problems(str(DATA / "problems" / f"{name}.jsonl"))}
        for name in ("train", "heldout")
    )
    assert (len(train), len(heldout)) == (2000, 500)
    assert not train & heldout
