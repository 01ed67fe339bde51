"""Cosine and gain of gradients, and their jackknife, against the formulas written out."""

import numpy as np
import pytest
import torch
from scipy.stats import t

from internal_policy.train import alignment
from internal_policy.train.alignment import Estimate, compare, cosine, jackknife

SIZES = {"embed": (3, 2), "low": (7,), "high": (5,)}


def blocks(number: int = 5, seed: int = 0, names=tuple(SIZES)) -> dict[str, torch.Tensor]:
    """Random gradients with a part that all blocks share."""
    generator = torch.Generator().manual_seed(seed)
    new = {"generator": generator, "dtype": torch.float64}
    return {name: torch.randn(SIZES[name], **new) + torch.randn(number, *SIZES[name], **new) for name in names}


def flat(gradient: dict[str, torch.Tensor]) -> np.ndarray:
    """Gradients of blocks as rows, with 0 for parameters that they lack."""
    count = len(next(iter(gradient.values())))
    parts = [gradient.get(name, torch.zeros(count, *size)).reshape(count, -1) for name, size in SIZES.items()]
    return torch.cat(parts, 1).numpy()


def written_out(one: np.ndarray, other: np.ndarray) -> list[float]:
    """gain, cosine, gain_in_batch and cosine_in_batch, by loops over blocks."""
    a, b, n = one.sum(0), other.sum(0), range(len(one))
    mine = sum(np.sign(a - one[i]) @ other[i] for i in n)
    own = sum(np.sign(b - other[i]) @ other[i] for i in n)
    apart = [sum(x[i] @ y[j] for i in n for j in n if i != j) for x, y in ((one, other), (one, one), (other, other))]
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return [mine / own, apart[0] / np.sqrt(apart[1] * apart[2]), np.sign(a) @ b / np.abs(b).sum(), a @ b / lengths]


def estimates(one, other) -> list[Estimate]:
    found = compare(one, other)
    return [found.gain, found.cosine, found.gain_in_batch, found.cosine_in_batch]


def test_estimates_from_all_blocks_and_without_each_are_as_written_out():
    one, other = blocks(seed=1, names=("embed", "low")), blocks(seed=2)
    other = {name: other[name] + 2 * one.get(name, 0) for name in other}
    found = estimates(one, other)
    a, b = flat(one), flat(other)
    assert [each.value for each in found] == pytest.approx(written_out(a, b))
    for out in range(5):
        without = written_out(np.delete(a, out, 0), np.delete(b, out, 0))
        assert [each.left_out[out] for each in found] == pytest.approx(without, nan_ok=True)


def test_tiles_do_not_change_the_estimates(monkeypatch):
    one, other = blocks(seed=1), blocks(seed=2)
    whole = estimates(one, other)
    monkeypatch.setattr(alignment, "TILE", 2)
    for a, b in zip(estimates(one, other), whole, strict=True):
        assert [a.value, *a.left_out] == pytest.approx([b.value, *b.left_out], nan_ok=True)


def test_a_gradient_is_aligned_with_itself():
    for each in estimates(blocks(), blocks()):
        assert each.value == pytest.approx(1)
        assert each.interval == pytest.approx((1, 1))


def test_cosine_by_hand():
    one = {"low": torch.tensor([3.0, -1.0])}
    other = {"low": torch.tensor([1.0, 1.0]), "high": torch.tensor([-2.0])}
    assert cosine(one, other) == pytest.approx((3 - 1) / (10 * 6) ** 0.5)
    assert cosine({}, other) == 0


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.array([1.0, 4.0, 2.0, 7.0, 3.0])
    left_out = np.array([np.delete(values, out).mean() for out in range(5)])
    error = values.std(ddof=1) / 5**0.5
    assert jackknife(left_out) == pytest.approx(error)
    half = t.ppf(0.975, 4) * error
    assert Estimate(3.4, tuple(left_out)).interval == pytest.approx((3.4 - half, 3.4 + half))


def test_noise_that_two_gradients_share_only_counts_in_the_batch():
    noise = torch.randn(8, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    signal = torch.ones(4000, dtype=torch.float64)
    one, other = {"low": 0.3 * signal.neg() + noise}, {"low": 0.3 * signal + noise}
    found = compare(one, other)
    assert found.cosine_in_batch.value > 0.1
    assert found.gain.interval[1] < 0
    assert found.cosine.value == pytest.approx(-1, abs=0.2)
