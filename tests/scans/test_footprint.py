"""How much memory a scan needs, before anything is loaded."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_model

from internal_policy.models.families import sites_of
from internal_policy.scans import footprint
from internal_policy.scans.footprint import Batch, Memory, cache_bytes, memory
from internal_policy.scans.positions import Positions
from internal_policy.scans.selection import Selection, plan

GIVEN = Batch(rollouts=4, prompt=10, response=30, sampled=False)
ALL = Selection((0, 1, 2))


def needed(
    batch: Batch, *, free: int = 2**30, gpu: bool = False, weights: int = 1000, selection: Selection = ALL
) -> Memory:
    """The memory of a scan of a tiny llama in float32, whose largest weight has 100 elements."""
    config = tiny_model("llama").config
    return memory(config, selection, plan(selection), batch, weights=weights, largest=100, size=4, free=free, gpu=gpu)


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral", "deepseek_v3", "granitemoehybrid"])
def test_keys_and_values_take_what_the_cache_of_the_model_does(name):
    model = tiny_model(name)
    ids = torch.ones(1, 7, dtype=torch.int64)
    with torch.inference_mode():
        cache = model(ids, use_cache=True).past_key_values
    held = [
        tensor for layer in cache.layers for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
    ]
    assert cache_bytes(model.config, 7, 8) == sum(tensor.nbytes for tensor in held if tensor is not None)


def test_a_window_of_attention_bounds_its_keys_and_values():
    config = tiny_model("gemma3").config  # two of three layers have a window of 6
    whole = cache_bytes(tiny_model("llama").config, 50, 2) // 3
    assert cache_bytes(config, 100, 2) - cache_bytes(config, 50, 2) == whole


def test_given_responses_need_nothing_for_sampling():
    assert needed(GIVEN).sampling == 0
    assert needed(replace(GIVEN, sampled=True)).sampling > 0


def test_a_smaller_batch_needs_less_and_the_weights_stay():
    large, small = needed(replace(GIVEN, sampled=True)), needed(replace(GIVEN, sampled=True, rollouts=2))
    assert (large.sampling, large.tables) == (2 * small.sampling, 2 * small.tables)
    assert large.weights == small.weights


def test_hidden_states_stop_growing_with_the_text():
    short, long = (needed(replace(GIVEN, prompt=1, response=n)) for n in (200_000, 400_000))
    assert (
        long.states - short.states
        < footprint.STATE_BYTES // 4 + cache_bytes(tiny_model("llama").config, 200_000, 4) * 4
    )
    assert long.kernel == short.kernel


def test_a_gpu_with_little_memory_left_holds_fewer_states_and_logits():
    batch = replace(GIVEN, rollouts=8, response=2000)
    roomy, tight = needed(batch, free=2**34, gpu=True), needed(batch, free=2**24, gpu=True)
    assert tight.states < roomy.states
    assert tight.kernel < roomy.kernel


def test_tables_hold_the_numbers_of_a_batch_in_a_few_copies():
    rows = ALL.disk_bytes(4 * 30)
    assert needed(GIVEN).tables == footprint.TABLES * rows


def test_tables_of_some_tokens_are_smaller():
    batch = replace(GIVEN, response=100)
    some = needed(batch, selection=replace(ALL, positions=Positions(20, 59, 4)))
    assert some.tables * 10 == needed(batch).tables
    assert some.kernel == needed(replace(GIVEN, response=10)).kernel


def test_the_peak_is_that_of_the_phase_that_needs_most():
    found = Memory(weights=100, checked=7, sampling=50, states=10, kernel=20, tables=6)
    assert found.peak == 150 + footprint.LIBRARIES
    assert replace(found, states=30).peak == 153 + footprint.LIBRARIES  # 30 + 20, and half of the tables
    assert replace(found, tables=70).peak == 170 + footprint.LIBRARIES


@pytest.mark.parametrize("name", ["gpt2", "mamba", "rwkv", "nemotron_h"])
def test_families_with_other_settings_are_sized_too(name):
    config = tiny_model(name).config
    selection = Selection((0,), sites_of(config))
    found = memory(config, selection, plan(selection), GIVEN, weights=0, largest=0, size=4, free=2**30, gpu=False)
    assert found.peak > 0
