"""Sampling responses to a file."""

import json

import pytest
from conftest import interrupt_the_second_batch

from internal_policy.__main__ import main

pytestmark = pytest.mark.usefixtures("here")


def test_an_internal_policy_writes_other_responses_than_the_model(folder, problems, here):
    options = ["--model", str(folder), "--problems", str(problems), "--max-new-tokens", "6", "--limit", "3"]
    for at in ("final", "1.attn_out", "0.resid_post"):
        assert main(["generate", *options, "--at", at, "--output", f"{at}.jsonl"]) == 0
    assert len({(here / f"{at}.jsonl").read_text() for at in ("final", "1.attn_out", "0.resid_post")}) == 3


def test_an_interrupted_generate_goes_on_and_equals_an_undisturbed_one(folder, problems, here, monkeypatch):
    options = ["--model", str(folder), "--problems", str(problems), "--max-new-tokens", "6", "--batch-size", "4"]
    assert main(["generate", *options, "--output", "whole.jsonl"]) == 0
    first_prompts = interrupt_the_second_batch(monkeypatch)
    assert main(["generate", *options, "--output", "mine.jsonl"]) == 130
    assert not (here / "mine.jsonl").exists()
    assert main(["generate", *options, "--output", "mine.jsonl"]) == 0
    assert first_prompts == [0, 4, 4, 8]
    assert (here / "mine.jsonl").read_bytes() == (here / "whole.jsonl").read_bytes()


def test_generating_gives_the_mean_reward_where_rewards_are_not_0_or_1(folder, problems, here, capsys, monkeypatch):
    monkeypatch.setattr("internal_policy.tasks.marking.reward", lambda *_: -0.5)
    assert main(["generate", "--model", str(folder), "--problems", str(problems), "--max-new-tokens", "2"]) == 0
    assert ", mean reward -0.5, " in capsys.readouterr().out


def test_json_has_no_reward_where_no_response_could_be_marked(folder, problems, here, capsys):
    words = ["generate", "--model", str(folder), "--problems", str(problems), "--max-new-tokens", "2", "--json"]
    assert main([*words, "-o", "mine.jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["reward"] is None


def test_generate_says_that_no_response_has_a_box(folder, problems, here, capsys):
    words = ["generate", "--model", str(folder), "--problems", str(problems), "--max-new-tokens", "2"]
    assert main([*words, "-o", "mine.jsonl"]) == 0
    assert r"No response has an answer in \boxed{}, so none was marked." in capsys.readouterr().out
