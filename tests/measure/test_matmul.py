"""Every product on this machine is exact, and the fastest exact one is chosen."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from internal_policy.measure import matmul
from internal_policy.measure.matmul import candidates, choose, precision

CPU = torch.device("cpu")
ONEDNN: Any = torch.backends.mkldnn
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def factors(dtype, rows=70, d_model=96, tile=130):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, d_model, dtype=torch.float64, generator=generator) for n in (rows, tile))
    return hidden.to(dtype), weight.to(dtype)


def worth(dtype=torch.float32):
    """A matrix large enough to be measured, but without its memory."""
    return torch.empty(1, dtype=dtype).expand(matmul.WORTH_MEASURING // 64, 64)


@pytest.fixture(autouse=True)
def forgetful():
    matmul.exact.cache_clear()
    yield
    matmul.exact.cache_clear()


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for dtype in DTYPES for name in candidates(dtype, dtype, CPU)], ids=str
)
@pytest.mark.parametrize("rows", [1, 70])
def test_every_candidate_agrees_with_float64(name, dtype, rows):
    hidden, weight = factors(dtype, rows)
    exact = hidden.double() @ weight.double().T
    found = matmul.MATMULS[name](weight, 512)(hidden)
    assert found.dtype == precision(dtype)
    assert (found.double() - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("name", candidates(torch.bfloat16, torch.bfloat16, CPU))
def test_products_of_bfloat16_factors_are_exact(name):
    # integers below 2^8 are exact in bfloat16, and sums below 2^24 in float32: nothing may be rounded
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randint(-200, 200, (n, 64), generator=generator).bfloat16() for n in (70, 130))
    found = matmul.MATMULS[name](weight, 512)(hidden)
    assert torch.equal(found.double(), hidden.double() @ weight.double().T)


@pytest.mark.parametrize("name", candidates(torch.float32, torch.bfloat16, CPU))
def test_float32_states_are_not_rounded_to_a_bfloat16_weight(name):
    hidden, weight = factors(torch.float32)[0], factors(torch.bfloat16)[1]
    exact = hidden.double() @ weight.double().T
    assert (matmul.MATMULS[name](weight, 512)(hidden).double() - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("name", sorted(matmul.MATMULS))
def test_the_caller_may_overwrite_the_result(name):
    hidden, weight = factors(torch.bfloat16)
    multiply = matmul.MATMULS[name](weight, 512)
    first = multiply(hidden)
    kept = first.clone()
    first.zero_()
    assert torch.equal(multiply(hidden), kept)


def test_the_bfloat16_product_restores_the_setting():
    hidden, weight = factors(torch.bfloat16)
    before = ONEDNN.matmul.fp32_precision
    matmul.bfloat16(weight, 512)(hidden)
    assert ONEDNN.matmul.fp32_precision == before


def test_the_bfloat16_product_restores_the_setting_after_an_exception():
    hidden, weight = factors(torch.bfloat16)
    before = ONEDNN.matmul.fp32_precision
    with pytest.raises(RuntimeError):
        matmul.bfloat16(weight, 512)(hidden[:, :-1])
    assert ONEDNN.matmul.fp32_precision == before


def test_precision_is_float32_or_better():
    found = [precision(dtype) for dtype in DTYPES]
    assert found == [torch.float64, torch.float32, torch.float32, torch.float32]


def test_the_bfloat16_product_is_only_for_bfloat16_factors():
    pairs = [
        (hidden, weight) for hidden in DTYPES for weight in DTYPES if "bfloat16" in candidates(hidden, weight, CPU)
    ]
    assert pairs == [(torch.bfloat16, torch.bfloat16)]


def test_float64_is_multiplied_in_float64():
    assert candidates(torch.float64, torch.float64, CPU) == ["plain"]


def test_other_devices_get_the_plain_product():
    assert candidates(torch.bfloat16, torch.bfloat16, torch.device("cuda")) == ["plain"]


def test_a_small_matrix_gets_the_plain_product_unmeasured(monkeypatch):
    monkeypatch.setattr(matmul, "MATMULS", {})  # nothing can be tried
    assert choose(worth()[1:], torch.float32) == "plain"


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_of_the_candidates_is_chosen(dtype):
    assert choose(worth(dtype), dtype) in candidates(dtype, dtype, CPU)


def test_the_choice_is_measured_only_once(monkeypatch):
    measured = []

    def counted(tile, rows):
        measured.append(len(tile))
        return matmul.plain(tile, rows)

    monkeypatch.setitem(matmul.MATMULS, "packed", counted)
    first = choose(worth(), torch.float32)
    again = choose(worth().clone()[1:].repeat(2, 1), torch.float32)  # another matrix of the same width
    assert (first == again, len(measured)) == (True, 1)


def slow(tile, rows):
    multiply = matmul.plain(tile, rows)

    def work(hidden):
        for _ in range(20):
            multiply(hidden)
        return multiply(hidden)

    return work


def test_the_fastest_product_is_chosen(monkeypatch):
    monkeypatch.setattr(matmul, "MATMULS", {"plain": slow, "packed": matmul.plain, "bfloat16": slow})
    assert choose(worth(torch.bfloat16), torch.bfloat16) == "packed"


def test_an_inexact_product_is_never_chosen(monkeypatch):
    def rounding(tile, rows):
        columns = tile.float().T
        return lambda hidden: torch.mm(hidden.float(), columns).bfloat16().float()

    monkeypatch.setattr(matmul, "MATMULS", {"plain": slow, "packed": rounding})
    assert choose(worth(), torch.float32) == "plain"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_product_that_gives_nan_is_never_chosen(monkeypatch, bad):
    def broken(tile, rows):
        return lambda hidden: torch.full((len(hidden), len(tile)), bad)

    monkeypatch.setattr(matmul, "MATMULS", {"plain": slow, "packed": broken})
    assert choose(worth(), torch.float32) == "plain"


def raising(tile, rows):
    raise RuntimeError("no such kernel")


def raising_late(tile, rows):
    return lambda _: raising(tile, rows)


@pytest.mark.parametrize("broken", [raising, raising_late])
def test_a_product_that_this_machine_lacks_is_never_chosen(monkeypatch, broken):
    monkeypatch.setattr(matmul, "MATMULS", {"plain": slow, "packed": broken})
    assert choose(worth(), torch.float32) == "plain"


def test_choosing_does_not_change_the_random_numbers():
    torch.manual_seed(0)
    alone = torch.rand(3)
    torch.manual_seed(0)
    choose(worth(), torch.float32)
    assert torch.equal(torch.rand(3), alone)


def test_the_plain_product_is_used_if_none_is_exact(monkeypatch):
    monkeypatch.setattr(matmul, "exact", lambda *_: {})
    monkeypatch.setattr(matmul, "WORTH_MEASURING", 0)
    assert matmul.choose(torch.zeros(64, 8), torch.float32) == "plain"


def test_threads_restore_the_precision_of_the_process():
    before = torch.backends.mkldnn.matmul.fp32_precision  # pyright: ignore[reportAttributeAccessIssue]
    multiply = matmul.bfloat16(torch.zeros(64, 8, dtype=torch.bfloat16), 4)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(multiply, [torch.zeros(4, 8, dtype=torch.bfloat16)] * 400))
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # pyright: ignore[reportAttributeAccessIssue]
