"""The prompts of a model, and the token ids that it samples."""

import copy
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from conftest import FEW, tiny_model

from internal_policy.errors import InputError
from internal_policy.models.hooks import HookPoint
from internal_policy.models.policy import as_policy, policy_logits
from internal_policy.models.rows import FAMILIES
from internal_policy.tasks import generate as generate_module
from internal_policy.tasks import marking
from internal_policy.tasks.generate import end_ids, generate
from internal_policy.tasks.problems import Message, Problem
from internal_policy.tasks.prompts import encode_problem

END = 2
TEXTS = [
    "What is 3 + 4?",
    "Mia has 47 apples and buys 385 more. How many apples has she now?",
    "5",
    "Say: naïve 🙂",
    "7 + 5",
]
PROBLEMS = [Problem((Message(role="user", content=text),), None) for text in TEXTS]


def sampled(model, tokenizer, problems=PROBLEMS, **options):
    options = {"max_new_tokens": 6, "batch_size": 2, **options}
    return list(chain.from_iterable(generate(model, tokenizer, problems, **options)))


@pytest.mark.parametrize(
    ("generation", "config", "tokens", "ends"),
    [
        (7, None, None, {7}),
        ([7, 5], None, None, {7, 5}),
        (None, None, "<|im_end|>", {END}),
        (None, 1, None, {1}),
        (None, [1, 0], None, {1, 0}),
        (None, 9, None, set()),  # an ordinary token, which the class of the configuration fills in
        (None, None, None, set()),
        (0, 1, "<|im_end|>", {0, 1, END}),
    ],
)
def test_end_tokens_come_from_checkpoint_configuration_and_tokenizer(
    llama, tokenizer, generation, config, tokens, ends
):
    llama.generation_config.eos_token_id, llama.config.eos_token_id = generation, config
    changed = copy.deepcopy(tokenizer)
    changed.eos_token = tokens
    assert end_ids(llama, changed) == ends


def test_an_end_token_that_only_the_tokenizer_knows_ends_a_response(llama, tokenizer):
    llama.generation_config.eos_token_id = llama.config.eos_token_id = 0
    with torch.no_grad():
        llama.lm_head.weight[:] = torch.eye(320, 32)  # the first 32 tokens are more likely
    rollouts = sampled(llama, tokenizer, samples=20, max_new_tokens=40)
    assert not any(END in rollout.response_ids[:-1] for rollout in rollouts)
    assert any(rollout.finished for rollout in rollouts)


def test_batches_contain_the_samples_of_each_problem_in_order(llama, either):
    batches = list(generate(llama, either, PROBLEMS[:3], samples=2, batch_size=4, max_new_tokens=2))
    assert [len(batch) for batch in batches] == [4, 2]
    order = [(rollout.problem, rollout.sample) for rollout in chain(*batches)]
    assert order == [(text, sample) for text in TEXTS[:3] for sample in (0, 1)]


def test_greedy_responses_do_not_depend_on_the_batch(family, tokenizer):
    model: Any = tiny_model(family).float()
    alone = sampled(model, tokenizer, temperature=0.0, batch_size=1)
    assert sampled(model, tokenizer, temperature=0.0, batch_size=5) == alone


def samples_of_two(model, tokenizer):
    """Responses to a short and a long prompt, 5 of each in one batch."""
    return sampled(model, tokenizer, PROBLEMS[:2], samples=5, batch_size=10)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in (*FEW, "qwen2_vl") else pytest.mark.slow) for name in FAMILIES]
)
def test_reading_a_prompt_once_for_all_its_samples_changes_no_token(name, tokenizer, monkeypatch):
    model: Any = tiny_model(name).float()
    once = samples_of_two(model, tokenizer)
    monkeypatch.setattr(generate_module, "_read_once", lambda *_: {})
    assert samples_of_two(model, tokenizer) == once


def test_a_prompt_is_read_once_for_all_its_samples(llama, tokenizer):
    read = []
    llama.get_input_embeddings().register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape)))
    rollouts = samples_of_two(llama, tokenizer)
    width = max(len(rollout.prompt_ids) for rollout in rollouts)
    assert read == [(2, width - 1), *[(10, 1)] * 6]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_an_error_instead_of_token_0(tokenizer, temperature):
    model = tiny_model("gemma2")  # in float64 its attention gives NaN at padding
    sampled(model, tokenizer, temperature=temperature, batch_size=1)
    with pytest.raises(InputError, match=r"logits are NaN after \d+ tokens\. .* another --dtype or --batch-size 1"):
        sampled(model, tokenizer, temperature=temperature, batch_size=5)


def test_the_seed_determines_what_is_sampled(llama, tokenizer):
    first = sampled(llama, tokenizer, seed=3)
    torch.manual_seed(8)
    assert sampled(llama, tokenizer, seed=3) == first
    assert sampled(llama, tokenizer, seed=4) != first


def test_a_batch_of_one_does_not_depend_on_later_prompts(llama, tokenizer):
    assert sampled(llama, tokenizer, batch_size=1)[:2] == sampled(llama, tokenizer, PROBLEMS[:2], batch_size=1)


def test_batches_draw_different_random_numbers(llama, tokenizer):
    one, other = sampled(llama, tokenizer, PROBLEMS[:1], samples=2, batch_size=1)
    assert one.response_ids != other.response_ids


def test_a_run_that_skips_batches_gives_the_same_later_responses(llama, tokenizer):
    undisturbed = list(generate(llama, tokenizer, PROBLEMS, samples=3, batch_size=4, max_new_tokens=6))
    continued = list(generate(llama, tokenizer, PROBLEMS, samples=3, batch_size=4, max_new_tokens=6, first=8))
    assert continued == undisturbed[2:]


def test_generating_does_not_change_the_callers_random_numbers(llama, tokenizer):
    torch.manual_seed(8)
    expected = torch.rand(3)
    torch.manual_seed(8)
    for _ in generate(llama, tokenizer, PROBLEMS[:1], max_new_tokens=2):
        assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_checkpoints_generation_config_cannot_change_what_is_sampled(llama, tokenizer, temperature):
    expected = sampled(llama, tokenizer, temperature=temperature)
    llama.generation_config.update(
        do_sample=True, top_k=1, top_p=0.1, min_p=0.9, temperature=9.0, repetition_penalty=9.0, no_repeat_ngram_size=1,
        min_new_tokens=5, suppress_tokens=list(range(100, 200)), forced_eos_token_id=9, max_new_tokens=1, num_beams=2,
    )  # fmt: skip
    theirs = llama.generation_config
    assert sampled(llama, tokenizer, temperature=temperature) == expected
    assert llama.generation_config is theirs


def test_the_checkpoints_generation_config_is_restored_after_an_error(llama, tokenizer):
    theirs = llama.generation_config
    handle = llama.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sampled(llama, tokenizer)
    handle.remove()
    assert llama.generation_config is theirs


def test_no_token_is_excluded_by_default(llama, tokenizer):
    hot = sampled(llama, tokenizer, PROBLEMS[:1], samples=400, batch_size=400, temperature=50.0, max_new_tokens=1)
    assert len({rollout.response_ids for rollout in hot}) > 150  # transformers' own default keeps 50
    cut = sampled(llama, tokenizer, PROBLEMS[:1], samples=50, batch_size=50, top_p=1e-6, max_new_tokens=1)
    assert len({rollout.response_ids for rollout in cut}) == 1


def test_first_tokens_follow_the_models_distribution(llama, tokenizer):
    drawn = sampled(llama, tokenizer, PROBLEMS[:1], samples=2000, batch_size=2000, temperature=2.0, max_new_tokens=1)
    counts = torch.bincount(torch.tensor([rollout.response_ids[0] for rollout in drawn]), minlength=320)
    expected = (llama(torch.tensor([drawn[0].prompt_ids])).logits[0, -1] / 2).softmax(-1) * 2000
    assert ((counts - expected).abs() <= 5 * expected.sqrt() + 5).all()


def test_a_response_ends_with_its_first_end_token_or_at_the_limit(llama, tokenizer):
    llama.generation_config.eos_token_id = ends = [END, *range(7, 320, 7)]
    rollouts = sampled(llama, tokenizer, samples=6, batch_size=5, max_new_tokens=6)
    assert {rollout.finished for rollout in rollouts} == {True, False}
    for rollout in rollouts:
        assert not set(rollout.response_ids[:-1]) & set(ends)
        assert rollout.finished == (rollout.response_ids[-1] in ends)
        assert rollout.finished or len(rollout.response_ids) == 6


def test_without_end_or_padding_tokens_responses_reach_the_limit(llama, tokenizer):
    llama.generation_config.eos_token_id = None
    unpadded = copy.deepcopy(tokenizer)
    unpadded.pad_token = unpadded.eos_token = None
    assert {(len(rollout.response_ids), rollout.finished) for rollout in sampled(llama, unpadded)} == {(6, False)}


def test_a_padding_token_that_the_model_lacks_changes_nothing(llama, tokenizer):
    padded = copy.deepcopy(tokenizer)
    padded.add_tokens([f"<|{n}|>" for n in range(len(tokenizer), llama.config.vocab_size)])
    padded.add_special_tokens({"pad_token": "[PAD]"})  # without resizing the model
    assert padded.pad_token_id == llama.config.vocab_size
    ids = [[rollout.response_ids for rollout in sampled(llama, its)] for its in (padded, tokenizer)]
    assert ids[0] == ids[1]


def test_ids_unknown_to_the_tokenizer_stay_as_sampled(llama, either):
    with torch.no_grad():
        llama.lm_head.weight[:300] = 0  # nearly all sampled ids are above it
    rollouts = sampled(llama, either)
    assert max(chain(*(rollout.response_ids for rollout in rollouts))) >= len(either)
    for rollout in rollouts:
        known = [token for token in rollout.response_ids if token < len(either)]
        assert rollout.response == either.decode(known, skip_special_tokens=True)


@pytest.mark.parametrize(("answer", "mark"), [("7", 0.0), (None, None)])
def test_a_response_is_marked_if_the_problem_has_an_answer(llama, tokenizer, answer, mark):
    problem = replace(PROBLEMS[0], answer=answer)
    assert {rollout.reward for rollout in sampled(llama, tokenizer, [problem])} == {mark}


def test_a_boxed_response_is_rewarded(llama, tokenizer, monkeypatch):
    monkeypatch.setattr(marking, "reward", lambda response, answer: float(len(response) + len(answer)))
    (rollout,) = sampled(llama, tokenizer, [replace(PROBLEMS[0], answer="777")])
    assert rollout.reward == len(rollout.response) + 3


@pytest.mark.parametrize("site", ["resid_post", "attn_out", "mlp_out"])
def test_inside_as_policy_the_internal_policy_is_sampled(family, either, site):
    model: Any = tiny_model(family).float()
    point = HookPoint(1, site)
    with as_policy(model, point):
        rollouts = sampled(model, either, temperature=0.0)
    for rollout in rollouts:
        logits = policy_logits(model, point, input_ids=torch.tensor([rollout.ids]))[0]
        start = len(rollout.prompt_ids) - 1  # token t is predicted at position t - 1
        assert tuple(logits[start:-1].argmax(-1).tolist()) == rollout.response_ids


def test_a_prompt_too_long_for_the_model_names_both_numbers(llama, tokenizer):
    length = len(encode_problem(tokenizer, PROBLEMS[1], {}))
    with pytest.raises(InputError, match=f"Problem 2 has {length} tokens .* model has only 512 positions"):
        sampled(llama, tokenizer, max_new_tokens=512 - length + 1, problems=[PROBLEMS[2], PROBLEMS[1]])


def test_a_tokenizer_of_another_model_is_rejected(tokenizer):
    with pytest.raises(InputError, match=r"the model's ids end at 99\. Use the model's own tokenizer"):
        sampled(tiny_model("llama", vocab_size=100), tokenizer)


def test_a_prompt_without_tokens_is_rejected(llama, tokenizer):
    with pytest.raises(InputError, match="Problem 1 has no tokens"):
        sampled(llama, tokenizer, [Problem((Message(role="user", content=""),), None)], chat=None)


def test_a_prompt_that_just_fits_is_generated(either):
    length = len(encode_problem(either, PROBLEMS[0], {}))
    short = tiny_model("llama", max_position_embeddings=length + 6)
    assert len(sampled(short, either, PROBLEMS[:1])) == 1


@pytest.mark.parametrize(
    "option",
    [
        {"samples": 0},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"max_new_tokens": 0},
        {"batch_size": 0},
    ],
)
def test_options_out_of_range_are_rejected(llama, tokenizer, option):
    ((name, value),) = option.items()
    with pytest.raises(InputError, match=f"{name.replace('_', '-')} is {value}; it must be"):
        sampled(llama, tokenizer, **option)


def test_watching_responses_token_by_token_does_not_change_them(llama, tokenizer):
    told: list[list[tuple[int, ...]]] = []
    rollouts = sampled(llama, tokenizer, PROBLEMS[:2], on_token=lambda responses: told.append([*responses]))
    assert rollouts == sampled(llama, tokenizer, PROBLEMS[:2])
    final = [rollout.response_ids for rollout in rollouts]
    assert told == [[ids[:n] for ids in final] for n in range(1, max(map(len, final)) + 1)]


def test_an_exception_while_watching_stops_sampling(llama, tokenizer):
    def stop(responses):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        sampled(llama, tokenizer, PROBLEMS[:1], on_token=stop)
    assert llama.generation_config is not None
