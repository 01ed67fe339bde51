"""Sampling on a server, tested with a small one on this machine that answers as vLLM's does."""

import json
from pathlib import Path

import pytest
from engine_server import Served, of_folder, serving
from transformers import PreTrainedTokenizerFast

from internal_policy.__main__ import main
from internal_policy.cli import parsing, scan
from internal_policy.cli.commands import COMMANDS
from internal_policy.engines.sampling import seed_of
from internal_policy.look import summary, view
from internal_policy.scans import store
from internal_policy.tasks.rollouts import read_rollouts

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def served(often) -> Served:
    return of_folder(often)


@pytest.fixture
def url(served):
    with serving(served) as address:
        yield address


@pytest.fixture
def asking(sampling_words, url) -> list[str]:
    """Options of generate, evaluate and scan, for two problems."""
    return [*sampling_words, "--engine", "server", "--url", url, "--limit", "2"]


@pytest.fixture
def scanning(asking) -> list[str]:
    return ["scan", *asking, "--layers", "0", "--sites", "resid_post", "--readout", "raw"]


def test_a_server_samples_from_token_ids_to_token_ids(asking, served, often, here):
    assert main(["generate", *asking, "-o", "mine.jsonl", "--seed", "3"]) == 0
    rollouts = read_rollouts(here / "mine.jsonl", PreTrainedTokenizerFast.from_pretrained(often), {})
    assert sorted(body["prompt"] for body in served.asked) == sorted(list(one.prompt_ids) for one in rollouts)
    assert sorted(body["seed"] for body in served.asked) == sorted(seed_of(3, number) for number in range(4))
    for rollout in rollouts:
        assert rollout.engine_logprob is not None
        assert len(rollout.engine_logprob) == len(rollout.response_ids)
        assert rollout.finished == (rollout.response_ids[-1] in served.asked[0]["stop_token_ids"])


def test_a_server_and_vllm_sample_the_same_responses(asking, sampling_words, vllm, here):
    assert main(["generate", *asking, "-o", "server.jsonl"]) == 0
    assert main(["generate", *sampling_words, "--engine", "vllm", "--limit", "2", "-o", "vllm.jsonl"]) == 0
    assert (here / "server.jsonl").read_bytes() == (here / "vllm.jsonl").read_bytes()


def test_responses_of_an_engine_are_scanned_once_and_compared(scanning, served, here, capsys):
    assert main([*scanning, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["mismatch"]["tokens"] == first["tokens"]
    assert first["mismatch"]["mean"] < 1e-4
    assert main(scanning) == 0  # from the cache
    assert "The engine's log probabilities differ from the model's by" in capsys.readouterr().out
    assert len(served.asked) == 4
    told = summary.provenance(view.default(Path(first["scan"])))
    assert told["engine"] == "server"
    assert told["mismatch"].startswith("The engine's log probabilities differ")


def test_an_engine_and_another_model_there_are_another_question_but_not_an_address(sampling_words):
    def digest(*engine):
        options = parsing.parse(COMMANDS, ["scan", *sampling_words, *engine])
        return store.digest(scan.prepared(options).question)

    here, there = ("--engine", "server", "--url", "http://a"), ("--engine", "server", "--url", "http://b:8000/v1")
    assert digest(*here) == digest(*there)
    assert len({digest(), digest(*here), digest("--engine", "vllm"), digest(*here, "--served-model", "x")}) == 4


def test_the_responses_of_a_server_are_evaluated(asking, served, capsys):
    assert main(["evaluate", *asking, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluated"][0]["samples"] == 2
    assert len(served.asked) == 4


def test_a_key_comes_from_the_environment_and_is_not_stored(scanning, served, here, monkeypatch, capsys):
    served.key = "secret-of-mine"
    monkeypatch.setenv("INTERNAL_POLICY_API_KEY", served.key)
    assert main([*scanning, "-o", "mine"]) == 0
    written = b"".join(path.read_bytes() for path in (here / "mine").iterdir())
    out, err = capsys.readouterr()
    assert "secret-of-mine" not in f"{written}{out}{err}"


def without(name):
    return lambda choice: {key: value for key, value in choice.items() if key != name}


def last(token):
    return lambda choice: {**choice, "token_ids": [*choice["token_ids"][:-1], token], "finish_reason": "stop"}


CHANGES = {
    "returns text without token ids. Use one that knows return_token_ids": without("token_ids"),
    "but 0 log probabilities. Use an engine that returns one for each token": without("logprobs"),
    "read other token ids than those of the prompt": lambda choice: {**choice, "prompt_token_ids": [1]},
    "returned token id 999, but the model's are 0 to 319. Does it run another model?": last(999),
    "ended a response with token id 300, which isn't an end-of-text token of this model": last(300),
    "broke off a response after": lambda choice: {**choice, "finish_reason": "abort"},
    "cut a response after 1 token, but --max-new-tokens is 8": lambda choice: {
        **choice,
        "token_ids": [300],
        "logprobs": {"token_logprobs": [-1.0]},
        "finish_reason": "length",
    },
    "went on after an end-of-text token": lambda choice: {
        **choice,
        "token_ids": [2, 3],
        "logprobs": {"token_logprobs": [-1.0, -1.0]},
        "finish_reason": "stop",
    },
}


@pytest.mark.parametrize(("said", "changed"), CHANGES.items(), ids=[said[:30] for said in CHANGES])
def test_answers_that_are_not_what_was_asked_are_refused(said, changed, asking, served, here, capsys):
    served.changed = changed
    assert main(["generate", *asking]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith(f"error: The server at {asking[asking.index('--url') + 1]} ")
    assert said in err


def refused(words, capsys) -> str:
    assert main(words) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert err[-1].startswith("error: ")
    assert all(line.startswith(("error: ", "Read through", "For plain text")) for line in err)
    return err[-1]


def test_a_server_that_does_not_answer_is_refused(sampling_words, capsys):
    said = refused(["generate", *sampling_words, "--engine", "server", "--url", "http://127.0.0.1:9"], capsys)
    assert "No server answers at http://127.0.0.1:9. Start one, such as `vllm serve " in said


def test_a_server_without_the_model_is_refused(asking, often, capsys):
    said = refused(["generate", *asking, "--served-model", "other"], capsys)
    assert f"has no model 'other'. It has {often}. Name one with --served-model." in said


def test_what_a_server_says_of_an_error_is_shown(asking, capsys):
    said = refused(["generate", *asking, "--temperature", "3"], capsys)
    assert "answered 400 to /v1/completions (temperature must be in [0, 2], got 3.0)." in said


def test_a_wrong_key_is_refused(asking, served, monkeypatch, capsys):
    served.key = "another"
    monkeypatch.setenv("INTERNAL_POLICY_API_KEY", "wrong-key")
    said = refused(["generate", *asking], capsys)
    assert "refused the API key (401). Set the variable INTERNAL_POLICY_API_KEY to the right one." in said
    assert "wrong-key" not in said


def test_an_address_that_is_no_such_server_is_refused(asking, url, capsys):
    said = refused(["generate", *asking, "--url", f"{url}/elsewhere"], capsys)
    assert "answered 404 to /v1/models. Check it and --url." in said


URLS = {
    "http://localhost:70000": "Use an address such as http://localhost:8000.",
    "localhost:8000": "Use an address such as http://localhost:8000.",
    "http://me:pass@host": "which would be stored with the results",
    "http://host/v1?key=abc": "which would be stored with the results",
}


@pytest.mark.parametrize(("url", "said"), URLS.items())
def test_an_address_that_cannot_be_one_is_refused(url, said, capsys):
    assert said in refused(["scan", "--engine", "server", "--url", url], capsys)
