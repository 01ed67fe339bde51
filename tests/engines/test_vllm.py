"""Sampling with vLLM, tested with a stand-in that has its calls."""

import numpy as np
import pandas as pd
import pytest
from conftest import numbers
from transformers import PreTrainedTokenizerFast

from internal_policy.__main__ import main
from internal_policy.engines import sampling as engine_sampling
from internal_policy.models import loading
from internal_policy.scans import store
from internal_policy.scans.scan import Scanner
from internal_policy.tasks.rollouts import read_rollouts

ENDS = {*range(2, 60)}
SMALL = ["--layers", "0", "--sites", "resid_post", "--readout", "raw", "--top-k", "0"]
pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def vllm_words(sampling_words) -> list[str]:
    return [*sampling_words, "--engine", "vllm"]


def test_vllm_samples_from_token_ids_to_token_ids(vllm, vllm_words, often, here):
    assert main(["generate", *vllm_words, "-o", "mine.jsonl"]) == 0
    assert vllm.CALLS == ["start float32, 1 GPU, 37 tokens", "generate 20", "shutdown"]
    rollouts = read_rollouts(here / "mine.jsonl", PreTrainedTokenizerFast.from_pretrained(often), {})
    assert [rollout.sample for rollout in rollouts] == [0, 1] * 10
    assert {rollout.finished for rollout in rollouts} == {True, False}
    for rollout in rollouts:
        *before, last = rollout.response_ids
        assert not ENDS & {*before}
        assert rollout.finished == (last in ENDS)
        assert rollout.finished or len(rollout.response_ids) == 8
        assert rollout.engine_logprob is not None
        assert len(rollout.engine_logprob) == len(rollout.response_ids)
    assert len({rollout.response_ids for rollout in rollouts}) > 15  # each has a seed of its own


def test_the_log_probabilities_of_vllm_are_those_that_a_scan_measures(vllm, vllm_words, here, capsys):
    assert main(["scan", *vllm_words, "--limit", "4", *SMALL, "-o", "mine"]) == 0
    assert vllm.CALLS[-1] == "shutdown"
    assert store.record(here / "mine")["versions"]["vllm"] == "0.33.0"
    rollouts = pd.concat(pd.read_parquet(path) for path in sorted((here / "mine").glob("rollouts-*.parquet")))
    policies = pd.concat(pd.read_parquet(path) for path in sorted((here / "mine").glob("policies-*.parquet")))
    final = policies.dropna(subset="final.logprob").drop_duplicates(["rollout", "position"])
    told = np.concatenate(rollouts["engine_logprob"].to_list())
    np.testing.assert_allclose(final["final.logprob"], told, atol=1e-4)


def test_vllm_is_closed_before_the_model_is_loaded(vllm, vllm_words, monkeypatch):
    load = loading.load_model

    def logged(*arguments, **options):
        vllm.CALLS.append("load")
        return load(*arguments, **options)

    monkeypatch.setattr(loading, "load_model", logged)
    assert main(["scan", *vllm_words, "--limit", "1", *SMALL]) == 0
    assert vllm.CALLS[1:] == ["generate 2", "shutdown", "load"]


def test_an_interrupted_run_samples_only_what_is_missing(vllm, vllm_words, here, monkeypatch):
    monkeypatch.setattr(engine_sampling, "TOGETHER", 8)
    assert main(["generate", *vllm_words, "-o", "whole.jsonl"]) == 0
    generate = vllm.LLM.generate

    def interrupted(llm, prompts, *rest, **options):
        if len(vllm.CALLS) == 2:
            raise KeyboardInterrupt
        return generate(llm, prompts, *rest, **options)

    vllm.CALLS.clear()
    monkeypatch.setattr(vllm.LLM, "generate", interrupted)
    assert main(["generate", *vllm_words, "-o", "mine.jsonl"]) == 130
    monkeypatch.setattr(vllm.LLM, "generate", generate)
    assert main(["generate", *vllm_words, "-o", "mine.jsonl"]) == 0
    assert vllm.CALLS[1:3] == ["generate 8", "shutdown"]
    assert vllm.CALLS[4:] == ["generate 8", "generate 4", "shutdown"]
    assert (here / "mine.jsonl").read_bytes() == (here / "whole.jsonl").read_bytes()


def test_a_scan_interrupted_while_measuring_goes_on_without_vllm(vllm, vllm_words, here, monkeypatch):
    words = ["scan", *vllm_words, "--limit", "2", "--batch-size", "2", *SMALL, "-o"]
    assert main([*words, "whole"]) == 0
    measure = Scanner.measured

    def interrupted(scanner, rollouts, first, *rest):
        if first == 2:
            raise KeyboardInterrupt
        return measure(scanner, rollouts, first, *rest)

    monkeypatch.setattr(Scanner, "measured", interrupted)
    assert main([*words, "mine"]) == 130
    monkeypatch.setattr(Scanner, "measured", measure)
    vllm.CALLS.clear()
    assert main([*words, "mine"]) == 0
    assert vllm.CALLS == []
    assert numbers(here / "mine") == numbers(here / "whole")
    assert not list((store.root() / "rollouts").iterdir())


def test_a_damaged_measurement_is_repeated_without_vllm(vllm, vllm_words, here):
    words = ["scan", *vllm_words, "--limit", "2", "--batch-size", "2", *SMALL, "-o", "mine"]
    assert main(words) == 0
    whole = numbers(here / "mine")
    (here / "mine" / "layers-00001.parquet").write_bytes(b"damaged")
    vllm.CALLS.clear()
    assert main(["verify", "mine", "--repair"]) == 0
    assert vllm.CALLS == []
    assert numbers(here / "mine") == whole


def test_damaged_responses_are_sampled_again_with_vllm(vllm, vllm_words, here):
    words = ["scan", *vllm_words, "--limit", "2", "--batch-size", "2", *SMALL, "-o", "mine"]
    assert main(words) == 0
    whole = {path.name: path.read_bytes() for path in (here / "mine").iterdir()}
    (here / "mine" / "rollouts-00000.parquet").write_bytes(b"damaged")
    vllm.CALLS.clear()
    assert main(["verify", "mine", "--repair"]) == 0
    assert "generate 2" in vllm.CALLS  # the other part is whole
    assert {path.name: path.read_bytes() for path in (here / "mine").iterdir()} == whole


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--dtype", "float64"], "vLLM can't start {} (1 validation error for ModelConfig)."),
        (["--tensor-parallel", "2"], "vLLM can't start {} (Engine core initialization failed. See root cause above)."),
        (["--temperature", "3"], "vLLM can't sample these responses (temperature must be in [0, 2], got 3.0)."),
    ],
)
def test_what_vllm_refuses_is_said_in_a_sentence(more, said, vllm, vllm_words, often, capsys):
    assert main(["generate", *vllm_words, *more]) == 2
    assert f"error: {said.format(often)}" in capsys.readouterr().err
