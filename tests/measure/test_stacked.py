"""What measures policies on a GPU agrees with float64 over all logits at once; here it runs on the CPU."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import SCALES, TRANSFORMS, assert_close, reference, states

from internal_policy.measure import choice, matmul, stacked
from internal_policy.measure.kernel import Kernel
from internal_policy.measure.metrics import MEASURES
from internal_policy.measure.transform import LogitTransform

CUBLAS: Any = torch.backends.cuda.matmul


def measure(hidden, weight, targets, scale=None, **fields):
    """The numbers of a kernel built for one block."""
    return Kernel(weight, matmul="stacked", **fields).measure(hidden, targets, scale)


def scales(rows=2, positions=5, dtype=torch.float64):
    return torch.rand(rows, positions, dtype=dtype, generator=torch.Generator().manual_seed(1)) * 2


@pytest.mark.parametrize("transform", [LogitTransform(), *TRANSFORMS], ids=str)
@pytest.mark.parametrize("std", SCALES)
def test_every_number_is_correct_at_every_scale(std, transform):
    hidden, weight, targets = states(std=std)
    found = measure(hidden, weight, targets, scales(), transform=transform)
    assert_close(found, reference(hidden, weight, targets, scales(), transform=transform), atol=1e-10, rtol=1e-12)


@pytest.mark.parametrize("d_vocab", [1, 2, 17, 63, 64, 65, 500, 640])
@pytest.mark.parametrize(("points", "positions"), [(1, 1), (2, 3), (7, 20)])
def test_every_shape_is_measured_correctly(points, positions, d_vocab):
    hidden, weight, targets = states(points, positions, d_vocab)
    top_k = min(5, d_vocab)
    found = measure(hidden, weight, targets, top_k=top_k)
    assert_close(found, reference(hidden, weight, targets, top_k=top_k), atol=1e-11)


@settings(max_examples=25)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(5, 400), st.floats(0.01, 1e4), st.integers(0, 2**32))
def test_random_policies_are_measured_correctly(points, positions, d_vocab, std, seed):
    hidden, weight, targets = states(points, positions, d_vocab, std, seed=seed)
    assert_close(measure(hidden, weight, targets), reference(hidden, weight, targets), atol=1e-9, rtol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_heavy_tails_with_logits_in_the_thousands_keep_the_error_below_5e_5(dtype):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, targets = states(points=8, positions=6, d_vocab=3000, d_model=64, dtype=torch.float32)
    hidden = (hidden * torch.randn(8, 6, 64, generator=generator).exp() * torch.logspace(-1, 2.5, 8)[:, None, None]).to(
        dtype
    )
    weight, scale = weight.to(dtype), scales(3, 6, torch.float32)
    assert (hidden.double() @ weight.double().T).abs().max() > 2000
    expected = reference(hidden, weight, targets, scale)
    found = measure(hidden, weight, targets, scale)
    assert found["entropy"].dtype == torch.float32
    names = ("topk_ids", "rank")  # two logits as close as their rounding may swap places
    assert_close(
        {name: found[name] for name in found if name not in names},
        {name: expected[name] for name in expected if name not in names},
        atol=5e-5,
        rtol=5e-5,
    )


def test_float32_states_are_not_rounded_to_a_bfloat16_weight():
    hidden, weight, targets = states(d_vocab=700, dtype=torch.float32)
    weight = weight.bfloat16()
    found = Kernel(weight, matmul="fused").measure(hidden, targets)  # the Triton kernels need states of one type
    assert_close(found, reference(hidden, weight, targets), atol=5e-5)


def test_positions_are_measured_as_many_at_a_time_as_memory_holds(monkeypatch):
    hidden, weight, targets = states(points=3, positions=7)
    whole = measure(hidden, weight, targets, scales(2, 7))
    rows = []

    def counted(wanted, states, *rest):
        rows.append(len(states))
        return stacked.fold(wanted, states, *rest)

    monkeypatch.setattr(stacked, "MOST", 2 * stacked.token_bytes(stacked.Wanted(weight, LogitTransform(), (), 0), 3))
    found = stacked.measure_stacked(
        counted,
        stacked.token_bytes,
        stacked.Wanted(weight, LogitTransform(), MEASURES, 5),
        hidden,
        targets,
        scales(2, 7),
    )
    assert rows == [2, 2, 2, 1]
    assert_close(found, whole, atol=1e-12)


@pytest.mark.parametrize("name", MEASURES)
def test_only_requested_measures_are_returned(name):
    hidden, weight, targets = states()
    found = measure(hidden, weight, targets, scale=scales(1), measures=[name])
    names = {"topk": {"topk_ids", "topk_probs"}, "norm": set(), "cosine": set()}
    assert found.keys() == names.get(name, {name})


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_state_gives_nan_only_in_its_own_row(bad):
    hidden, weight, targets = states(points=6)
    hidden[3, 2, 0] = bad
    weight[:, 0] = weight[:, 0].abs()
    found = measure(hidden, weight, targets)
    for name in ("entropy", "logprob", "kl", "rank"):
        assert found[name].isnan().nonzero().tolist() == [[3, 2]], name


def test_copies_of_a_token_do_not_lower_its_rank():
    hidden, weight, _ = states(points=4, positions=7, d_vocab=5000, d_model=48, std=30.0, dtype=torch.float32)
    weight[:] = weight[torch.arange(5000) % 50]
    targets = torch.arange(7) * 77
    expected = reference(hidden, weight[:50], targets % 50)["rank"]
    found = measure(hidden, weight, targets, measures=["rank"])["rank"]
    torch.testing.assert_close(found.double(), (expected.double() - 1) * 100 + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_infinite_scale_keeps_only_the_largest_logits(dtype):
    hidden, weight, targets = states(points=2, dtype=dtype)
    weight[1::2] = weight[0::2]  # every token has a twin
    found = measure(hidden, weight, targets, torch.full((1, 5), torch.inf, dtype=dtype))["entropy_at_input_norm"][1]
    torch.testing.assert_close(found, torch.full((5,), math.log(2), dtype=dtype))


def test_measuring_does_not_change_its_arguments():
    given_ = (*states(), scales())
    before = [tensor.clone() for tensor in given_]
    measure(*given_)
    assert all(torch.equal(a, b) for a, b in zip(given_, before, strict=True))


@pytest.mark.parametrize("error", [False, True])
def test_products_of_float32_are_exact_while_measuring_whatever_the_process_has_set(error):
    before, CUBLAS.fp32_precision = CUBLAS.fp32_precision, "tf32"
    seen = []

    def recording(wanted, hidden, *rest):
        seen.append(CUBLAS.fp32_precision)
        if error:
            raise RuntimeError("out of memory")
        return stacked.fold(wanted, hidden, *rest)

    hidden, weight, targets = states()
    wanted = stacked.Wanted(weight, LogitTransform(), ("entropy",), 0)
    try:
        stacked.measure_stacked(recording, stacked.token_bytes, wanted, hidden, targets, None)
    except RuntimeError:
        assert error
    finally:
        after, CUBLAS.fp32_precision = CUBLAS.fp32_precision, before
    assert (seen, after) == (["ieee"], "tf32")


# choice


def test_a_cpu_keeps_its_own_products():
    assert choice.choose(torch.zeros(300, 16), torch.float32) == "plain"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_scan_may_continue_with_each_way_of_its_device(dtype):
    names = ("plain", "packed", "bfloat16", "stacked", "fused", "native")
    on_gpu = [name for name in names if choice.works(name, dtype, torch.device("cuda"))]
    on_cpu = [name for name in names if choice.works(name, dtype, torch.device("cpu"))]
    assert on_gpu == ["stacked", "fused"]
    assert set(matmul.candidates(dtype, dtype, torch.device("cpu"))) <= {*on_cpu} <= {*matmul.MATMULS, "native"}
    assert dtype != torch.float64 or on_cpu == ["plain"]


@pytest.fixture
def small_choice(monkeypatch):
    monkeypatch.setattr(choice, "CPU_WEIGHTS", 700 * 32)
    monkeypatch.setattr(choice, "CPU_POINTS", 6)
    monkeypatch.setattr(choice, "CPU_POSITIONS", 3)
    choice.exact.cache_clear()
    yield
    choice.exact.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_plain_pytorch_passes_its_own_test(small_choice, dtype):
    assert choice.exact(("stacked",), dtype, dtype, torch.device("cpu"), 32)["stacked"] > 0


def test_a_way_that_rounds_logits_is_never_chosen(small_choice, monkeypatch):
    whole = stacked.product

    def rounding(hidden, weight):
        z = whole(hidden, weight)
        return z.bfloat16().float() if hidden.dtype == torch.bfloat16 else z

    monkeypatch.setattr(stacked, "product", rounding)
    assert "stacked" not in choice.exact(("stacked",), torch.bfloat16, torch.bfloat16, torch.device("cpu"), 32)
