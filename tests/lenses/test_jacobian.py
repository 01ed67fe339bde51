"""A Jacobian lens is the mean derivative of the last layer's output, however it is estimated, shared or interrupted."""

from typing import Any

import pytest
import torch
from conftest import hook_count, tiny_model
from hybrids import hybrid
from torch.func import jacfwd, jacrev

from internal_policy.errors import InputError
from internal_policy.lenses import jacobian, sums
from internal_policy.lenses.jacobian import Settings
from internal_policy.models.families import layer_sites
from internal_policy.models.hooks import HookPoint, hooked
from internal_policy.models.modules import backbone, decoder_layers
from internal_policy.models.rows import FAMILIES
from internal_policy.scans.shard import Shard

POST = HookPoint(0, "resid_post")
SKIP = 2


def texts(*lengths, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(5, 256, (length,), generator=draw).tolist()) for length in lengths]


fit: Any = jacobian.fit  # whose result is a lens, except for unfinished shards


def states(model, ids, points, change: Any = None):
    """The states at `points`, and the last layer's output, when `change` is added to the output of layer 0."""
    seen = {}
    last = HookPoint(len(layer_sites(model.config)) - 1, "resid_post")

    def shift(_, __, out):
        return out + change if isinstance(out, torch.Tensor) else (out[0] + change, *out[1:])

    handle = None if change is None else decoder_layers(model)[0].register_forward_hook(shift)
    with hooked(model, [*points, last], seen.__setitem__):
        backbone(model)(input_ids=torch.tensor([ids]), use_cache=False)
    if handle:
        handle.remove()
    return seen, seen[last]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of forward derivatives
@pytest.mark.parametrize("by", [jacfwd, jacrev])
def test_the_map_is_the_mean_of_the_derivatives_over_targets_and_sources(by):
    model: Any = tiny_model("gpt2", num_hidden_layers=2, attn_implementation="eager")  # its norms compute in float64
    given = texts(5, 9, 7)
    expected = torch.zeros(32, 32, dtype=torch.float64)
    for ids in given:

        def output(change, ids=ids):
            return states(model, ids, [], change)[1][0]

        whole = by(output)(torch.zeros(len(ids), 32, dtype=torch.float64))  # (target, i, source, j)
        used = slice(SKIP, len(ids) - 1)
        expected += whole[used, :, used].sum(0).mean(1) / len(given)
    found = fit(model, given, [POST], Settings(skip=SKIP))
    torch.testing.assert_close(found.lens.at[POST].jacobian, expected, rtol=0, atol=1e-12)


def all_points(model):
    return [HookPoint(layer, site) for layer, sites in layer_sites(model.config).items() for site in sites][:-1]


@pytest.mark.parametrize(
    "family",
    [name if name in ("llama", "gpt_neox", "opt") else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_what_a_module_adds_has_the_jacobian_of_the_stream_that_it_is_added_to(family, monkeypatch):
    model: Any = tiny_model(family)
    points = [point for point in all_points(model) if point.layer == 0 and point.site in ("attn_out", "mlp_out")]
    found = fit(model, texts(7, 9), points, Settings(skip=SKIP)).lens.at
    monkeypatch.setattr(jacobian, "source_of", lambda _, point: point)
    for point in points:
        try:
            own = fit(model, texts(7, 9), [point], Settings(skip=SKIP)).lens.at
        except InputError as error:  # the hook hands over a copy: a product or a sum, or what is changed in place later
            if not any(words in str(error) for words in ("doesn't depend on", "passes no gradient on")):
                raise
            continue
        torch.testing.assert_close(found[point].jacobian, own[point].jacobian, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "family",
    ["olmo2", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "olmo2")],
)
def test_every_family_has_a_jacobian_at_each_of_its_hook_points(family):
    model: Any = tiny_model(family)
    found = fit(model, texts(7, 6), all_points(model), Settings(skip=SKIP)).lens
    assert all(one.jacobian.isfinite().all() and one.jacobian.any() for one in found.at.values())


def test_the_last_layers_output_is_a_jacobian_of_ones(llama):
    last = HookPoint(2, "resid_post")
    (one,) = fit(llama, texts(5, 9), [last], Settings(skip=SKIP)).lens.at.values()
    assert torch.equal(one.jacobian, torch.eye(32, dtype=torch.float64))


def test_sequences_of_several_lengths_count_alike_and_the_halves_share_them(llama):
    given = texts(9, 5, 12, 7, 7)
    found = fit(llama, given, [POST], Settings(skip=SKIP))
    each = torch.stack([fit(llama, [one, one], [POST], Settings(skip=SKIP)).lens.at[POST].jacobian for one in given])
    torch.testing.assert_close(found.lens.at[POST].jacobian, each.mean(0), rtol=0, atol=1e-6)
    a, b = (half.at[POST].jacobian for half in found.halves)
    torch.testing.assert_close((3 * a + 2 * b) / 5, each.mean(0), rtol=0, atol=1e-6)
    assert not torch.equal(a, b)


# probes


def test_probes_share_the_dimensions_without_overlap():
    settings = Settings(probes=5)
    for half in (0, 1):  # 16 sequences of 5 are 80 entries: two permutations of 32, and half of a third
        stream = torch.cat([jacobian.dimensions(2 * place + half, 32, settings) for place in range(16)])
        assert torch.equal(stream[:32].sort().values, torch.arange(32))
        assert torch.equal(stream[32:64].sort().values, torch.arange(32))
        assert len(stream[64:].unique()) == 16
    assert torch.equal(jacobian.dimensions(3, 32, Settings()), torch.arange(32))


def test_probes_are_unbiased(llama, monkeypatch):
    given, settings = texts(8, 8, 8, 8, 8, 8), Settings(skip=SKIP)
    exact = fit(llama, given, [POST], settings).lens.at[POST].jacobian
    each = torch.stack([fit(llama, [one, one], [POST], settings).lens.at[POST].jacobian for one in given])
    monkeypatch.setattr(jacobian, "_gradients", lambda _, some, wanted, *__: rows_of(some, wanted))

    def rows_of(some, wanted):  # the same rows, without running the model again
        return torch.stack([each[given.index(text), dims] for text, dims in zip(some, wanted, strict=True)])[None]

    errors = torch.stack(
        [
            fit(llama, given, [POST], Settings(probes=13, skip=SKIP, seed=seed)).lens.at[POST].jacobian - exact
            for seed in range(100)
        ]
    )
    assert errors[0].abs().max() > 0.01
    spread = errors.std(0) / 100**0.5
    assert ((errors.mean(0) / spread) ** 2).mean().sqrt() < 1.15  # 1 if unbiased


def test_as_many_probes_as_dimensions_are_exact(llama):
    given = texts(6, 7, 8)
    one, other = (fit(llama, given, [POST], Settings(probes=n, skip=SKIP)).lens.at[POST].jacobian for n in (None, 99))
    assert torch.equal(one, other)


# interrupted, shared and merged


def test_an_interrupted_fit_continues_with_the_same_numbers(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(sums, "EVERY", 0.0)
    monkeypatch.setattr(sums, "SHARE", 0)
    monkeypatch.setattr(jacobian, "BATCH", 3)
    monkeypatch.setattr(jacobian, "BLOCK", 12)
    given, settings = texts(9, 5, 12, 7, 7), Settings(skip=SKIP, probes=20)
    whole = fit(llama, given, [POST], settings)
    told = []

    def stop(*step):
        told.append(step)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(llama, given, [POST], settings, folder=tmp_path, advance=stop)
    told.clear()
    found = fit(llama, given, [POST], settings, folder=tmp_path, advance=lambda *step: told.append(step))
    assert told == [(36, 0), (24, 0), (24, 0), (16, 12 * 8)]
    for one, same in zip((whole.lens, *whole.halves), (found.lens, *found.halves), strict=True):
        assert torch.equal(one.at[POST].jacobian, same.at[POST].jacobian)
    told.clear()
    fit(llama, given, [POST], Settings(skip=SKIP + 1, probes=20), folder=tmp_path, advance=lambda *_: told.append(_))
    assert told[0] == (36, 28 * 12)  # another fit starts anew


def test_shards_together_equal_a_single_process(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(jacobian, "BATCH", 2)
    given, settings = texts(9, 5, 12, 7, 7), Settings(skip=SKIP, probes=20)
    shards = [Shard(number, 4) for number in (2, 0, 3, 1)]  # shard 3 has nothing to do
    found = [fit(llama, given, [POST], settings, folder=tmp_path, shard=shard) for shard in shards]
    assert found[:3] == [2, 1, 1]
    whole = fit(llama, given, [POST], settings)
    torch.testing.assert_close(found[3].lens.at[POST].jacobian, whole.lens.at[POST].jacobian, rtol=0, atol=1e-12)


def test_a_batch_is_halved_when_memory_runs_out(llama, monkeypatch):
    given, settings = texts(9, 5, 12, 7), Settings(skip=SKIP)
    whole = fit(llama, given, [POST], settings)
    backward, told = jacobian._backward, []

    def failing(final, *rest):
        if len(final) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return backward(final, *rest)

    monkeypatch.setattr(jacobian, "_backward", failing)
    found = fit(llama, given, [POST], settings, smaller=told.append)
    assert told == [2]
    torch.testing.assert_close(found.lens.at[POST].jacobian, whole.lens.at[POST].jacobian, rtol=0, atol=1e-6)


# the model


def test_fitting_a_jacobian_does_not_change_the_model(llama):
    llama.train()
    before, hooks = {name: tensor.clone() for name, tensor in llama.state_dict().items()}, hook_count(llama)
    found = fit(llama, texts(5, 6), all_points(llama), Settings(skip=SKIP))
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in llama.parameters())
    assert hook_count(llama) == hooks
    assert llama.training
    assert not any(one.jacobian.requires_grad for one in found.lens.at.values())


def test_a_bfloat16_model_has_a_jacobian_in_float32():
    model: Any = tiny_model("qwen3")
    exact = fit(model, texts(7, 9), [POST], Settings(skip=SKIP)).lens.at[POST].jacobian
    found = fit(model.bfloat16(), texts(7, 9), [POST], Settings(skip=SKIP)).lens.at[POST].jacobian
    assert found.dtype == torch.float32
    assert (found - exact).norm() < 0.06 * exact.norm()  # the weights are rounded too


def test_a_hybrid_model_has_a_jacobian_at_the_sites_that_each_layer_has(monkeypatch):
    model: Any = hybrid(monkeypatch)
    found = fit(model, texts(7, 9), all_points(model), Settings(skip=SKIP)).lens
    assert {point.layer for point in found.at if point.site == "mlp_out"} == {1, 3}


# errors


@pytest.mark.parametrize(
    ("lengths", "settings", "said"),
    [
        ([9], {}, r"needs 2 sequences or more of at least 4 tokens to fit on, but there is one\. Give more or longer"),
        ([], {}, "but there are none"),
        ([3, 9], {}, "A sequence has 3 tokens, but needs 4 or more"),
        ([9, 9, 9], {"probes": 31}, r"3 sequences with 31 probes each don't reach all 32 dimensions twice\. Use --pro"),
        ([9, 9], {"probes": 0}, "probes is 0; it must be 1 or more"),
        ([9, 9], {"skip": -1}, "skip is -1; it must be 0 or more"),
    ],
)
def test_what_cannot_be_fitted_gets_a_one_sentence_error(llama, lengths, settings, said):
    with pytest.raises(InputError, match=said):
        fit(llama, texts(*lengths), [POST], Settings(**{"skip": SKIP, **settings}))


def test_a_jacobian_lens_without_hook_points_is_rejected(llama):
    with pytest.raises(InputError, match="There is no hook point to fit"):
        fit(llama, texts(9, 9), [], Settings(skip=SKIP))


def test_sums_too_large_for_memory_are_rejected(llama, monkeypatch):
    monkeypatch.setattr(sums.psutil, "virtual_memory", lambda: type("memory", (), {"available": 1000}))
    with pytest.raises(InputError, match=r"The Jacobians of 1 hook point need 0.0 GB, but only 0.0 GB is free"):
        fit(llama, texts(9, 9), [POST], Settings(skip=SKIP))


def test_a_layer_without_a_backward_pass_is_refused(llama):
    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(_, given):
            return given.clone()

        @staticmethod
        def backward(*_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            raise NotImplementedError("no backward kernel")

    llama.model.layers[1].mlp.register_forward_hook(lambda *given: Forward.apply(given[-1]))
    with pytest.raises(InputError, match=r"can't run backwards .no backward kernel., so it has no Jacobian"):
        fit(llama, texts(9, 9), [POST], Settings(skip=SKIP))


def test_a_module_that_passes_no_gradient_on_is_refused(llama):
    llama.model.layers[1].mlp.down_proj.register_forward_hook(lambda *given: given[-1].detach())
    with pytest.raises(InputError, match=r"1\.mlp_out passes no gradient on, so this model has no Jacobian"):
        fit(llama, texts(9, 9), [POST], Settings(skip=SKIP))


def test_a_model_whose_weights_are_offloaded_is_refused(llama, monkeypatch):
    monkeypatch.setattr(jacobian, "has_offloaded", lambda _: True)
    with pytest.raises(InputError, match="needs all layers at once for its gradients, but --device-map offloads some"):
        fit(llama, texts(9, 9), [POST], Settings(skip=SKIP))


def test_a_long_text_is_cut_into_sequences():
    assert jacobian.pieces(tuple(range(10)), 4, 1) == [(0, 1, 2, 3), (4, 5, 6, 7)]  # 8 and 9 are too few
    assert jacobian.pieces(tuple(range(7)), 4, 1) == [(0, 1, 2, 3), (4, 5, 6)]
    assert jacobian.pieces(tuple(range(8)), 4, 1, bos=0) == [(0, 1, 2, 3), (0, 4, 5, 6)]
    assert jacobian.pieces(tuple(range(8)), 4, 1, bos=9) == jacobian.pieces(tuple(range(8)), 4, 1)
    with pytest.raises(InputError, match=r"max-length is 4, .* the first 3 positions .* Use at least 5"):
        jacobian.pieces((0,), 4, 3)
