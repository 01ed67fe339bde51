"""The tiled numbers of a policy agree with torch.distributions over all logits at once in float64."""

import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import SCALES, TRANSFORMS, assert_close, reference, states
from torch.distributions import Categorical
from torch.utils._python_dispatch import TorchDispatchMode

from internal_policy.measure import kernel, matmul
from internal_policy.measure.kernel import Kernel
from internal_policy.measure.metrics import MEASURES, entropy, norm
from internal_policy.measure.transform import LogitTransform

POINTWISE = ("entropy", "logprob", "rank", "kl", "entropy_at_input_norm")


def measure(hidden, weight, targets, scale=None, **fields):
    """The numbers of a kernel built for one block."""
    return Kernel(weight, **fields).measure(hidden, targets, scale)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(kernel, "TILE_ROWS", 8)
    monkeypatch.setattr(kernel, "TILE_VOCAB", 128)


# measure: every number


@pytest.mark.parametrize("std", SCALES)
def test_every_number_is_correct_at_every_scale(small_tiles, std):
    hidden, weight, targets = states(std=std)
    scale = torch.rand(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2
    found = measure(hidden, weight, targets, scale=scale)
    assert_close(found, reference(hidden, weight, targets, scale), atol=1e-10, rtol=1e-12)


@pytest.mark.parametrize(("std", "bound"), [(1.0, 4e-6), (3.0, 4e-6), (30.0, 4e-5), (1_000.0, 1e-3), (10_000.0, 1e-3)])
def test_entropy_of_float32_states_is_exact_up_to_the_products_rounding(std, bound):
    # the entropy itself is right to 4e-6; logits of this size are rounded by std x 1e-7 or so, which moves it
    hidden, weight, targets = states(points=6, positions=40, d_vocab=3000, std=std, d_model=64, dtype=torch.float32)
    expected = reference(hidden, weight, targets)["entropy"]
    found = measure(hidden, weight, targets, measures=["entropy"])["entropy"]
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < bound


@pytest.mark.parametrize(("std", "bound"), [(1.0, 4e-6), (3.0, 4e-6), (30.0, 4e-6), (1_000.0, 1e-4), (10_000.0, 1e-5)])
def test_entropy_of_exact_float32_logits_keeps_the_bound_of_centred_sums(std, bound):
    logits = std * torch.randn(5, 8, 3000, generator=torch.Generator().manual_seed(0))
    found = measure(logits, torch.eye(3000), torch.arange(8), measures=["entropy"])[
        "entropy"
    ]  # a product without rounding
    assert (found - Categorical(logits=logits.double()).entropy()).abs().max() < bound


@pytest.mark.parametrize("std", [1.0, 30.0])
def test_every_number_from_float32_states_is_close(std):
    hidden, weight, targets = states(d_vocab=3000, std=std, dtype=torch.float32)
    scale = torch.rand(2, 5, generator=torch.Generator().manual_seed(1))
    expected = reference(hidden, weight, targets, scale)
    assert_close(measure(hidden, weight, targets, scale=scale), expected, atol=1e-4, rtol=1e-5)


def test_statistics_of_bfloat16_states_are_float32():
    hidden, weight, targets = states(d_vocab=3000, std=3.0, dtype=torch.bfloat16)
    found = measure(hidden, weight, targets)
    expected = reference(hidden, weight, targets)  # from the same bfloat16 numbers
    assert {found[name].dtype for name in ("entropy", "logprob", "kl")} == {torch.float32}
    assert (found["entropy"] - expected["entropy"]).abs().max() < 1e-5


@pytest.mark.parametrize("d_vocab", [1, 2, 127, 128, 129, 300, 640])
@pytest.mark.parametrize("positions", [1, 3, 20])
@pytest.mark.parametrize("points", [1, 2, 7])
def test_every_shape_is_measured_correctly(small_tiles, points, positions, d_vocab):
    hidden, weight, targets = states(points, positions, d_vocab)
    top_k = min(5, d_vocab)
    found = measure(hidden, weight, targets, top_k=top_k)
    assert {name: tuple(values.shape) for name, values in found.items()} == {
        **dict.fromkeys(POINTWISE, (points, positions)),
        "topk_ids": (points, positions, top_k),
        "topk_probs": (points, positions, top_k),
    }
    assert_close(found, reference(hidden, weight, targets, top_k=top_k), atol=1e-11)


@pytest.mark.parametrize("tile_vocab", [13, 64, 192, 299, 300, 301, 2048])
@pytest.mark.parametrize("tile_rows", [1, 5, 11, 512])
def test_the_tile_size_does_not_change_the_numbers(monkeypatch, tile_rows, tile_vocab):
    monkeypatch.setattr(kernel, "TILE_ROWS", tile_rows)
    monkeypatch.setattr(kernel, "TILE_VOCAB", tile_vocab)
    hidden, weight, targets = states(points=6)
    scale = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2
    found = measure(hidden, weight, targets, scale=scale, top_k=3)
    assert_close(found, reference(hidden, weight, targets, scale, top_k=3), atol=1e-11)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(5, 400), st.floats(0.01, 1e4), st.integers(0, 2**32))
def test_random_policies_are_measured_correctly(points, positions, d_vocab, std, seed):
    hidden, weight, targets = states(points, positions, d_vocab, std, seed=seed)
    assert_close(measure(hidden, weight, targets), reference(hidden, weight, targets), atol=1e-9, rtol=1e-11)


def test_every_vocabulary_entry_can_be_the_target(small_tiles):
    hidden, weight, _ = states(points=2, positions=300)
    targets = torch.arange(300)
    assert_close(measure(hidden, weight, targets), reference(hidden, weight, targets), atol=1e-11)


def test_rising_logits_move_the_maximum_in_every_tile(monkeypatch):
    monkeypatch.setattr(kernel, "TILE_VOCAB", 10)
    hidden, weight, targets = states(points=3, positions=2, d_model=1)
    weight = torch.arange(300, dtype=torch.float64).unsqueeze(1)
    for sign in (1, -1):  # falling logits only move it in the first tile
        states_ = sign * hidden.abs()
        scale = torch.full((1, 2), 0.5, dtype=torch.float64)
        found = measure(states_, weight, targets, scale=scale)
        assert_close(found, reference(states_, weight, targets, scale), atol=1e-10)


def test_uniform_policies_have_entropy_ln_v_and_no_divergence(small_tiles):
    _, weight, targets = states()
    found = measure(torch.zeros(3, 5, 16, dtype=torch.float64), weight, targets)
    torch.testing.assert_close(found["entropy"], torch.full((3, 5), math.log(300), dtype=torch.float64))
    torch.testing.assert_close(found["logprob"], torch.full((3, 5), -math.log(300), dtype=torch.float64))
    assert found["kl"].abs().max() < 1e-14
    assert found["rank"].eq(1).all()  # no token is more likely


def test_kl_matches_a_value_worked_by_hand():
    # p = (1/2, 1/2), q = (3/4, 1/4): KL(p || q) = 1/2 ln(2/3) + 1/2 ln 2 = ln 2 - 1/2 ln 3
    hidden = torch.tensor([[[0.0]], [[math.log(3)]]], dtype=torch.float64)
    weight = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    kl = measure(hidden, weight, torch.tensor([0]), measures=["kl"])["kl"]
    assert kl.flatten().tolist() == pytest.approx([0, math.log(2) - math.log(3) / 2], abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("std", SCALES)
def test_kl_of_the_final_policy_with_itself_is_0_and_never_negative(small_tiles, std, dtype):
    hidden, weight, targets = states(std=std, dtype=dtype)
    kl = measure(torch.cat([hidden[:1], hidden]), weight, targets, measures=["kl"])["kl"]
    assert kl.min() >= 0
    assert kl[:2].max() < (1e-5 if dtype == torch.float32 else 1e-13)


def test_rank_and_logprob_match_values_worked_by_hand():
    # logits 2, 1, 1, 0: the tokens 1 and 2 tie; two are likelier than token 3 or as likely as each other
    weight = torch.tensor([[2.0], [1.0], [1.0], [0.0]], dtype=torch.float64)
    found = measure(torch.ones(1, 4, 1, dtype=torch.float64), weight, torch.arange(4), measures=["rank", "logprob"])
    z = math.log(math.e**2 + 2 * math.e + 1)
    assert found["rank"].tolist() == [[1, 2, 2, 4]]
    assert found["logprob"][0].tolist() == pytest.approx([2 - z, 1 - z, 1 - z, -z], abs=1e-15)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
        for name in matmul.candidates(dtype, dtype, torch.device("cpu"))
    ],
    ids=str,
)
@pytest.mark.parametrize("positions", [1, 7, 64])
def test_copies_of_a_token_do_not_lower_its_rank(positions, name, dtype):
    hidden, weight, _ = states(points=4, positions=positions, d_vocab=5000, d_model=48, std=30.0, dtype=dtype)
    weight[:] = weight[torch.arange(5000) % 50]  # 100 exact copies of each of 50 tokens, in every tile
    targets = torch.arange(positions) * 77
    expected = reference(hidden, weight[:50], targets % 50)["rank"]  # among the 50, then each counts 100 times
    found = measure(hidden, weight, targets, measures=["rank"], matmul=name)["rank"]
    torch.testing.assert_close(found.double(), (expected.double() - 1) * 100 + 1)


@pytest.mark.parametrize("top_k", [1, 2, 5, 40, 300])
@pytest.mark.parametrize("tile", [64, 128, 192, 256, 2048])
def test_the_likeliest_tokens_are_found_in_any_tile(monkeypatch, top_k, tile):
    monkeypatch.setattr(kernel, "TILE_VOCAB", tile)
    hidden, weight, targets = states()
    found = measure(hidden, weight, targets, measures=["topk"], top_k=top_k)
    expected = reference(hidden, weight, targets, top_k=top_k)
    assert torch.equal(found["topk_ids"], expected["topk_ids"])
    torch.testing.assert_close(found["topk_probs"], expected["topk_probs"])


def test_the_likeliest_tokens_are_found_through_groups(monkeypatch):
    # five of the largest in one group of 64 (entries g, g + groups, ...), with more groups than the k that are kept
    monkeypatch.setattr(kernel, "TILE_VOCAB", 64 * 16)
    weight = torch.zeros(2 * 64 * 16, 1, dtype=torch.float64)
    best = [3, 3 + 16, 3 + 32, 1024 + 7, 3 + 48]
    weight[best, 0] = torch.tensor([9.0, 8, 7, 6, 5], dtype=torch.float64)
    found = measure(torch.ones(1, 1, 1, dtype=torch.float64), weight, torch.tensor([0]), measures=["topk"])
    assert found["topk_ids"].flatten().tolist() == best


@pytest.mark.parametrize("name", MEASURES)
def test_only_requested_measures_are_returned(name):
    hidden, weight, targets = states()
    found = measure(hidden, weight, targets, scale=torch.ones(1, 5, dtype=torch.float64), measures=[name])
    names = {
        "topk": {"topk_ids", "topk_probs"},
        "norm": set(),
        "cosine": set(),
    }  # the last two don't belong to a policy
    assert found.keys() == names.get(name, {name})


@pytest.mark.parametrize("name", POINTWISE)
def test_a_measure_does_not_depend_on_the_other_measures(small_tiles, name):
    hidden, weight, targets = states(points=6)
    scale = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    alone = measure(hidden, weight, targets, scale=scale, measures=[name])[name]
    together = measure(hidden, weight, targets, scale=scale)[name]
    torch.testing.assert_close(alone, together, atol=1e-12, rtol=0, equal_nan=True)


def test_measuring_does_not_change_its_arguments(small_tiles):
    given_ = states()
    before = [tensor.clone() for tensor in given_]
    measure(*given_, scale=torch.ones(2, 5, dtype=torch.float64))
    assert all(torch.equal(a, b) for a, b in zip(given_, before, strict=True))


# measure: a transform


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("std", SCALES)  # with the last cap, nearly every logit is beyond it
def test_every_number_is_correct_with_a_transform(small_tiles, std, transform):
    hidden, weight, targets = states(std=std)
    scale = torch.rand(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2
    found = measure(hidden, weight, targets, scale=scale, transform=transform)
    assert_close(found, reference(hidden, weight, targets, scale, transform=transform), atol=1e-10, rtol=1e-12)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("std", [1.0, 30.0])
def test_every_number_from_float32_states_is_close_with_a_transform(std, transform):
    hidden, weight, targets = states(d_vocab=3000, std=std, dtype=torch.float32)
    scale = torch.rand(2, 5, generator=torch.Generator().manual_seed(1))
    found = measure(hidden, weight, targets, scale=scale, transform=transform)
    assert found["entropy"].dtype == torch.float32
    assert_close(found, reference(hidden, weight, targets, scale, transform=transform), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("tile_vocab", [13, 192, 299, 2048])
@pytest.mark.parametrize("tile_rows", [1, 11, 512])
def test_the_tile_size_does_not_change_the_numbers_with_a_transform(monkeypatch, tile_rows, tile_vocab, transform):
    monkeypatch.setattr(kernel, "TILE_ROWS", tile_rows)
    monkeypatch.setattr(kernel, "TILE_VOCAB", tile_vocab)
    hidden, weight, targets = states(points=6)
    scale = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2
    found = measure(hidden, weight, targets, scale=scale, top_k=3, transform=transform)
    assert_close(found, reference(hidden, weight, targets, scale, top_k=3, transform=transform), atol=1e-11)


@settings(max_examples=25)
@given(st.floats(0.1, 100), st.none() | st.floats(0.1, 1e3), st.floats(0.01, 1e4), st.integers(0, 2**32))
def test_random_transforms_are_measured_correctly(divisor, cap, std, seed):
    hidden, weight, targets = states(std=std, seed=seed)
    transform = LogitTransform(divisor, cap)
    scale = torch.rand(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2
    found = measure(hidden, weight, targets, scale=scale, transform=transform)
    assert_close(found, reference(hidden, weight, targets, scale, transform=transform), atol=1e-9, rtol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("divisor", [1.0, 8.0])
def test_dividing_the_logits_equals_dividing_the_states_bit_for_bit(small_tiles, divisor, dtype):
    hidden, weight, targets = states(points=6, dtype=dtype)
    scale = torch.rand(3, 5, dtype=dtype, generator=torch.Generator().manual_seed(1)) * 2
    found = measure(hidden, weight, targets, scale=scale, transform=LogitTransform(divisor=divisor))
    expected = measure(hidden / divisor, weight, targets, scale=scale)  # exact: a power of two
    assert_close(found, expected, atol=0)


def test_a_cap_far_above_the_logits_changes_nothing(small_tiles):
    hidden, weight, targets = states(points=6)
    scale = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2
    found = measure(hidden, weight, targets, scale=scale, transform=LogitTransform(cap=1e9))
    assert_close(found, measure(hidden, weight, targets, scale=scale), atol=1e-11)


def test_policies_with_a_cap_match_values_worked_by_hand():
    # the logits 1e6 and -1e6 under a cap of (ln 3) / 2 are that and minus that: q = (3/4, 1/4), and p = (1/2, 1/2)
    hidden = torch.tensor([[[0.0]], [[1e6]]], dtype=torch.float64)
    weight = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    found = measure(hidden, weight, torch.tensor([1]), top_k=2, transform=LogitTransform(cap=math.log(3) / 2))
    assert found["entropy"][1].item() == pytest.approx(math.log(4) - 0.75 * math.log(3), abs=1e-15)
    assert found["logprob"][1].item() == pytest.approx(-math.log(4), abs=1e-15)
    assert found["kl"][1].item() == pytest.approx(math.log(2) - math.log(3) / 2, abs=1e-15)
    assert found["topk_probs"][1].flatten().tolist() == pytest.approx([0.75, 0.25], abs=1e-15)


def test_logits_that_a_cap_makes_equal_keep_their_order():
    weight = torch.tensor([[2e6], [3e6], [-1e6], [1e6]], dtype=torch.float64)
    ones = torch.ones(1, 4, 1, dtype=torch.float64)
    found = measure(
        ones, weight, torch.arange(4), measures=["rank", "topk"], top_k=4, transform=LogitTransform(cap=30.0)
    )
    assert found["rank"].tolist() == [[2, 1, 4, 3]]
    assert found["topk_ids"][0, 0].tolist() == [1, 0, 3, 2]
    assert found["topk_probs"][0, 0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=1e-15)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_copies_of_a_token_do_not_lower_its_rank_with_a_transform(dtype, transform):
    hidden, weight, _ = states(points=4, positions=64, d_vocab=5000, d_model=48, std=30.0, dtype=dtype)
    weight[:] = weight[torch.arange(5000) % 50]
    targets = torch.arange(64) * 77
    found = measure(hidden, weight, targets, measures=["rank"], transform=transform)["rank"]
    assert torch.equal(found, measure(hidden, weight, targets, measures=["rank"])["rank"])


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("std", SCALES)
def test_entropy_at_input_norm_is_the_entropy_of_scaled_states(small_tiles, std, transform):
    hidden, weight, targets = states(std=std)
    scale = torch.logspace(-3, 3, 15, dtype=torch.float64).view(3, 5)
    found = measure(hidden, weight, targets, scale=scale, transform=transform)["entropy_at_input_norm"]
    expected = entropy(transform((hidden[1:] * scale.unsqueeze(-1)) @ weight.T))
    torch.testing.assert_close(found[1:], expected, atol=1e-10, rtol=0)


def test_the_state_is_scaled_before_the_cap():
    hidden, weight, targets = states(std=30.0)
    scale, transform = torch.full((3, 5), 0.1, dtype=torch.float64), LogitTransform(cap=5.0)
    found = measure(hidden, weight, targets, scale=scale, transform=transform)["entropy_at_input_norm"][1:]
    other = entropy(transform(hidden[1:] @ weight.T) * scale.unsqueeze(-1))
    assert (found - other).abs().min() > 0.1


def test_with_a_cap_entropy_can_rise_with_the_norm():
    # logits 2 and 1 under a cap of 1 are 0.96 and 0.76; a million times as long they both are 1
    hidden, weight = torch.ones(2, 1, 1, dtype=torch.float64), torch.tensor([[2.0], [1.0]], dtype=torch.float64)
    found = measure(
        hidden,
        weight,
        torch.tensor([0]),
        scale=torch.full((1, 1), 1e6, dtype=torch.float64),
        top_k=1,
        transform=LogitTransform(cap=1.0),
    )
    assert found["entropy_at_input_norm"][1].item() == pytest.approx(math.log(2), abs=1e-15)
    assert found["entropy"][1].item() < math.log(2) - 1e-3


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_a_bad_state_gives_nan_only_in_its_own_row_with_a_transform(small_tiles, transform):
    hidden, weight, targets = states(points=6)
    hidden[3, 2, 0] = torch.nan
    found = measure(hidden, weight, targets, scale=torch.ones(5, 5, dtype=torch.float64), transform=transform)
    for name in ("entropy", "logprob", "rank", "kl"):
        assert found[name].isnan().nonzero().tolist() == [[3, 2]], name
    assert found["entropy_at_input_norm"][1:].isnan().nonzero().tolist() == [[2, 2]]


@pytest.mark.parametrize("transform", [LogitTransform(), *TRANSFORMS], ids=str)
def test_a_transform_allocates_no_tensor_as_large_as_a_tile(monkeypatch, transform):
    monkeypatch.setattr(kernel, "TILE_VOCAB", 64)
    made = set()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() >= 40 * 64 * 8:
                storages = [
                    a.untyped_storage() for a in [*args, *(kwargs or {}).values()] if isinstance(a, torch.Tensor)
                ]
                if not any(out.untyped_storage().data_ptr() == storage.data_ptr() for storage in storages):
                    made.add(func.__name__)
            return out

    hidden, weight, targets = states(points=20, positions=40, d_vocab=1000)
    scale = torch.ones(5, 40, dtype=torch.float64)
    with Recorder():
        measure(hidden, weight, targets, scale=scale, measures=POINTWISE, transform=transform)
    assert made == {"mm.default", "new_empty.default"}  # the logits of a tile and the scratch


# measure: NaN and infinity


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_state_gives_nan_only_in_its_own_row(small_tiles, bad):
    hidden, weight, targets = states(points=6)
    hidden[3, 2, 0] = bad
    weight[:, 0] = weight[:, 0].abs()  # +inf times these is +inf
    found = measure(hidden, weight, targets)
    for name in ("entropy", "logprob", "kl"):
        assert found[name].isnan().nonzero().tolist() == [[3, 2]], name


def test_a_bad_final_state_gives_nan_kl_only_at_its_own_position(small_tiles):
    hidden, weight, targets = states(points=6)
    hidden[0, 2] = torch.nan
    found = measure(hidden, weight, targets)
    assert found["kl"].isnan().nonzero().tolist() == [[point, 2] for point in range(6)]
    assert found["entropy"].isnan().nonzero().tolist() == [[0, 2]]


@pytest.mark.parametrize("token", [0, 150, 299])
def test_a_bad_row_of_the_unembedding_makes_every_entropy_nan(small_tiles, token):
    hidden, weight, targets = states()
    weight[token] = torch.nan
    found = measure(hidden, weight, targets, scale=torch.ones(1, 5, dtype=torch.float64))
    assert all(found[name].isnan().all() for name in ("entropy", "logprob", "kl", "entropy_at_input_norm"))


def test_a_nan_policy_has_no_rank(small_tiles):
    hidden, weight, targets = states()
    hidden[2] = torch.nan
    rank = measure(hidden, weight, targets, measures=["rank"])["rank"]
    assert not rank[2].eq(1).any()  # otherwise a broken model would rank every token first


# measure: memory


def test_logits_exist_one_tile_at_a_time(monkeypatch):
    monkeypatch.setattr(kernel, "TILE_ROWS", 32)
    monkeypatch.setattr(kernel, "TILE_VOCAB", 64)
    made, alive = [], set()

    def recording(tile, rows):
        def multiply(hidden):
            out = plain(hidden)
            made.append(out.numel())
            alive.add(len(made))
            weakref.finalize(out, alive.discard, len(made))
            most.append(len(alive))
            return out

        plain = matmul.plain(tile, rows)
        return multiply

    most = []
    monkeypatch.setitem(matmul.MATMULS, "plain", recording)
    hidden, weight, targets = states(points=40, positions=8, d_vocab=1000)
    measure(hidden, weight, targets)
    assert sum(made) >= 40 * 8 * 1000
    assert max(made) <= 32 * 64
    assert max(most) <= 3  # the final policy's, the last one and the one being made


def test_more_points_do_not_make_products_larger(monkeypatch):
    rows = []

    def recording(tile, _):
        multiply = matmul.plain(tile, _)
        return lambda hidden: (rows.append(len(hidden)), multiply(hidden))[1]

    monkeypatch.setitem(matmul.MATMULS, "plain", recording)
    hidden, weight, targets = states(points=100, positions=100)
    measure(hidden, weight, targets)
    assert max(rows) <= kernel.TILE_ROWS


# norm control


def test_an_output_parallel_to_its_input_has_no_direction_change(small_tiles):
    hidden, weight, targets = states(points=3)
    hidden[1] = hidden[2] * torch.tensor([0.01, 0.5, 1, 3, 200], dtype=torch.float64).unsqueeze(-1)
    norms = norm(hidden)
    found = measure(hidden, weight, targets, scale=norms[2:] / norms[1:2])
    direction = found["entropy_at_input_norm"][1] - found["entropy"][2]
    assert direction.abs().max() < 1e-12
    assert (found["entropy"][1] - found["entropy"][2]).abs().max() > 0.1  # all of the change comes from the norm


@pytest.mark.parametrize("std", SCALES)
def test_entropy_at_input_norm_is_the_entropy_of_scaled_logits(small_tiles, std):
    hidden, weight, targets = states(std=std)
    scale = torch.logspace(-3, 3, 15, dtype=torch.float64).view(3, 5)
    found = measure(hidden, weight, targets, scale=scale)["entropy_at_input_norm"]
    assert found[0].isnan().all()
    expected = entropy((hidden[1:] @ weight.T) * scale.unsqueeze(-1))
    torch.testing.assert_close(found[1:], expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("tiles", [128, 2048])
def test_entropy_never_rises_with_the_norm(monkeypatch, tiles):
    monkeypatch.setattr(kernel, "TILE_VOCAB", tiles)
    hidden, weight, targets = states(points=2)
    scales = torch.linspace(0, 20, 50, dtype=torch.float64)  # dH/dc = -c Var_p(z) <= 0
    curve = torch.stack(
        [
            measure(hidden, weight, targets, scale=c.expand(1, 5), measures=["entropy_at_input_norm"])[
                "entropy_at_input_norm"
            ][1]
            for c in scales
        ]
    )
    assert curve.diff(dim=0).max() <= 0
    torch.testing.assert_close(curve[0], torch.full((5,), math.log(300), dtype=torch.float64))


def test_entropy_falls_with_the_norm_by_the_variance_of_the_logits():
    hidden, weight, targets = states(points=2)
    z, c = hidden[1] @ weight.T, 0.3
    p = (c * z).softmax(-1)
    variance = (p * z.square()).sum(-1) - (p * z).sum(-1).square()

    def at(scale):
        aim = torch.full((1, 5), scale, dtype=torch.float64)
        return measure(hidden, weight, targets, scale=aim)["entropy_at_input_norm"][1]

    slope = (at(c + 1e-5) - at(c - 1e-5)) / 2e-5
    torch.testing.assert_close(slope, -c * variance, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    "transform",
    [LogitTransform(), LogitTransform(divisor=2.0), LogitTransform(cap=5.0)],
    ids=["plain", "divided", "capped"],
)
@pytest.mark.parametrize("size", [1e-8, 1e-12, 1e-25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tiny_output_is_scaled_to_the_norm_of_its_input(small_tiles, dtype, size, transform):
    hidden, weight, targets = states(points=3, std=2.0, dtype=dtype)
    whole = at_input_norm(hidden, weight, targets, transform)
    hidden[1] *= size
    torch.testing.assert_close(at_input_norm(hidden, weight, targets, transform), whole, atol=1e-4, rtol=1e-5)


def at_input_norm(hidden, weight, targets, transform=LogitTransform()):  # noqa: B008
    """Entropy of the second state at the norm of the third."""
    return Kernel(weight, transform, inputs=[2]).numbers(hidden, targets)["entropy_at_input_norm"][1]


@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(cap=5.0)], ids=["plain", "capped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_output_stays_zero_and_has_the_uniform_policy(small_tiles, dtype, transform):
    hidden, weight, targets = states(points=3, dtype=dtype)
    hidden[1] = 0
    found = at_input_norm(hidden, weight, targets, transform)
    torch.testing.assert_close(found, torch.full((5,), math.log(300), dtype=dtype))
    hidden[2] = 0
    assert torch.equal(at_input_norm(hidden, weight, targets, transform), found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_infinite_scale_keeps_only_the_largest_logits(small_tiles, dtype):
    hidden, weight, targets = states(points=2, dtype=dtype)
    weight[1::2] = weight[0::2]  # every token has a twin
    scale = torch.full((1, 5), torch.inf, dtype=dtype)
    found = measure(hidden, weight, targets, scale=scale)["entropy_at_input_norm"][1]
    torch.testing.assert_close(found, torch.full((5,), math.log(2), dtype=dtype))
