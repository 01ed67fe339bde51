"""The C++ kernel agrees with float64 however it is compiled. Skipped where there is no compiler."""

import ctypes
import platform
import shutil
import stat
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import SCALES, TRANSFORMS, assert_close, reference, states

from internal_policy.measure import choice, matmul, native
from internal_policy.measure.kernel import Kernel
from internal_policy.measure.metrics import MEASURES, precision
from internal_policy.measure.stacked import Wanted
from internal_policy.measure.transform import LogitTransform

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
PROCESSORS = {
    "this processor": ["-march=native"],
    "without bfloat16": ["-march=native", "-mno-avx512bf16"],
    "AVX2": ["-march=native", "-mno-avx512f"],
    "any processor": [],
}
"""What the compiler may use."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def forget():
    native.library.cache_clear()
    native.is_built.cache_clear()
    native.multiplies_bfloat16.cache_clear()
    choice.exact.cache_clear()


@pytest.fixture(
    params=[
        name if name in ("this processor", "AVX2") else pytest.param(name, marks=pytest.mark.slow)
        for name in PROCESSORS
    ]
)
def compiled(request, monkeypatch):
    if request.param != "this processor" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the flags are those of x86")
    flags = [flag for flag in native.FLAGS if flag != "-march=native"]
    monkeypatch.setattr(native, "FLAGS", (*flags, *PROCESSORS[request.param]))
    forget()
    yield request.param
    forget()


def heavy(points=6, positions=5, d_vocab=300, std=3.0, d_model=64, dtype=torch.float32, seed=0):
    """Hidden states of very different sizes, with a scale for the first points after final."""
    hidden, weight, targets = states(points, positions, d_vocab, std, d_model, torch.float32, seed)
    hidden = hidden * torch.logspace(-1, 1, positions)[:, None]
    scale = torch.rand(points // 2, positions, generator=torch.Generator().manual_seed(1)) * 2
    return hidden.to(dtype), weight.to(dtype), targets, scale


def check(hidden, weight, targets, scale, transform=LogitTransform(), top_k=5, bound=5e-5):  # noqa: B008
    """Assert that every number is right, up to the rounding of float32 logits."""
    found = Kernel(weight, transform, top_k=top_k, matmul="native").measure(hidden, targets, scale)
    expected = reference(hidden, weight, targets, scale if len(scale) else None, top_k, transform)
    scaled = slice(1, 1 + len(scale))
    rank, ids = expected.pop("rank"), expected.pop("topk_ids")  # close logits may swap places
    assert ((found.pop("rank") - rank).abs() <= 1 + 1e-3 * rank).all()
    assert (found.pop("topk_ids") != ids).double().mean() < 0.02
    for numbers in (found, expected):
        numbers["entropy_at_input_norm"] = numbers["entropy_at_input_norm"][scaled]
    assert_close(found, expected, atol=bound, rtol=bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(factor=0.5), *TRANSFORMS], ids=str)
def test_every_number_is_correct(compiled, transform, dtype):
    check(*heavy(dtype=dtype), transform)


@pytest.mark.parametrize("std", SCALES)
def test_every_scale_is_as_right_as_plain_pytorch(compiled, std):
    hidden, weight, targets, scale = heavy(points=8, d_vocab=3000, std=std, dtype=torch.bfloat16)
    numbers = [
        Kernel(weight.to(dtype), matmul=name).measure(hidden.to(dtype), targets, scale.to(precision(dtype)))
        for name, dtype in (("native", torch.bfloat16), ("plain", torch.float32), ("plain", torch.float64))
    ]
    assert choice.agree(*numbers)


@settings(deadline=None, max_examples=40)
@given(
    points=st.integers(1, 7),
    positions=st.integers(1, 11),
    d_vocab=st.integers(1, 700),
    d_model=st.integers(1, 70),
    std=st.floats(0.01, 1e3),
    top_k=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
)
def test_every_shape_is_measured_correctly(points, positions, d_vocab, d_model, std, top_k, dtype, seed):
    hidden, weight, targets, scale = heavy(points, positions, d_vocab, std, d_model, dtype, seed)
    top_k = min(top_k, d_vocab)
    numbers = [
        Kernel(weight.to(dtype), matmul=name, top_k=top_k).measure(
            hidden.to(dtype), targets, scale.to(precision(dtype))
        )
        for name, dtype in (("native", dtype), ("plain", torch.float32), ("plain", torch.float64))
    ]
    found, plain, truth = numbers
    assert {name: values.shape for name, values in found.items()} == {n: values.shape for n, values in truth.items()}
    for name, values in truth.items():
        if name not in ("rank", "topk_ids", "entropy_at_input_norm"):
            assert choice.error(found[name], values) <= 4 * choice.error(plain[name], values) + 5e-5, name
    at_norm = slice(1, 1 + len(scale))
    if len(scale):
        values = truth["entropy_at_input_norm"][at_norm]
        assert choice.error(found["entropy_at_input_norm"][at_norm], values) <= 1e-3
    assert ((found["rank"] - truth["rank"]).abs() <= 1 + 1e-2 * truth["rank"]).all()
    assert found["topk_ids"].min() >= 0
    assert found["topk_ids"].max() < d_vocab


@pytest.mark.parametrize("d_vocab", [17, 47, 48, 49, pytest.param(248_320, marks=pytest.mark.slow)])
def test_every_vocabulary_is_measured_to_its_end(d_vocab):
    hidden, weight, targets, scale = heavy(points=2, positions=3, d_vocab=d_vocab, d_model=16)
    targets[-1] = d_vocab - 1
    check(hidden, weight, targets, scale)


@pytest.mark.parametrize("measure", sorted({*MEASURES} - {"norm", "cosine"}))
def test_each_measure_is_the_same_alone(measure):
    hidden, weight, targets, scale = heavy(dtype=torch.bfloat16)
    together = Kernel(weight, matmul="native").measure(hidden, targets, scale)
    alone = Kernel(weight, matmul="native", measures=[measure]).measure(hidden, targets, scale)
    assert alone
    for name, values in alone.items():
        assert torch.equal(values.nan_to_num(), together[name].nan_to_num()), name


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_do_not_change_the_numbers(threads):
    hidden, weight, targets, scale = heavy(dtype=torch.bfloat16, d_vocab=1000)
    kernel = Kernel(weight, matmul="native")
    one = kernel.measure(hidden, targets, scale)
    torch.set_num_threads(threads)
    many = kernel.measure(hidden, targets, scale)
    for name, values in one.items():
        assert torch.equal(values.nan_to_num(), many[name].nan_to_num()), name


def test_slices_do_not_change_the_numbers(monkeypatch):
    hidden, weight, targets, scale = heavy(dtype=torch.bfloat16, d_vocab=3000)
    whole = Kernel(weight, matmul="native").measure(hidden, targets, scale)
    monkeypatch.setattr(native, "SLICE", 1)
    check(hidden, weight, targets, scale)
    sliced = Kernel(weight, matmul="native").measure(hidden, targets, scale)
    assert (whole["entropy"] - sliced["entropy"]).abs().max() < 1e-6


# logits that no sum may mishandle


def biased(bias, positions=3):
    """Numbers of policies whose logits are the bias alone, for a final state and another; the first token is next."""
    hidden, weight = torch.zeros(2, positions, 8), torch.zeros(len(bias), 8)
    targets = torch.zeros(positions, dtype=torch.int64)
    return Kernel(weight, bias=bias, matmul="native", top_k=2).measure(hidden, targets)


def test_equal_logits_have_entropy_ln_v_and_rank_1():
    found = biased(torch.full((5001,), 2.5))
    assert (found["entropy"] - torch.tensor(5001.0).log()).abs().max() < 2e-6
    assert found["kl"].abs().max() < 1e-6
    assert found["rank"].eq(1).all()


def test_one_likely_token_has_entropy_0():
    bias = torch.zeros(5001)
    bias[4000] = 200
    found = biased(bias)
    assert found["entropy"].abs().max() < 1e-6
    assert found["rank"].eq(2).all()
    assert found["topk_ids"][..., 0].eq(4000).all()
    assert (found["logprob"] + 200).abs().max() < 1e-4


def test_a_logit_of_minus_infinity_has_probability_0():
    bias = torch.full((300,), -torch.inf)
    bias[[0, 7, 299]] = 1.0
    found = biased(bias)
    assert (found["entropy"] - torch.tensor(3.0).log()).abs().max() < 1e-6
    assert found["rank"].eq(1).all()
    assert (found["topk_probs"] - 1 / 3).abs().max() < 1e-6


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("token", [0, 150, 299])
def test_nan_and_infinite_logits_give_nan(bad, token):
    bias = torch.zeros(300)
    bias[token] = bad
    found = biased(bias)
    for name in ("entropy", "logprob", "kl", "rank"):
        assert found[name].isnan().all(), name
    assert found["topk_ids"].min() >= 0
    assert found["topk_ids"].max() < 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_nan_state_gives_nan_only_in_its_own_row(compiled, dtype):
    hidden, weight, targets, scale = heavy(dtype=dtype)
    hidden[3, 2, 0] = torch.nan
    found = Kernel(weight, matmul="native").measure(hidden, targets, scale)
    for name in ("entropy", "logprob", "kl", "rank"):
        assert found[name].isnan().nonzero().tolist() == [[3, 2]], name


def test_falling_and_rising_logits_move_the_maximum_in_every_tile():
    for sign in (1.0, -1.0):
        hidden = torch.linspace(0.1, 3, 6).view(3, 2, 1) * sign
        weight, targets = torch.arange(3000.0).unsqueeze(1) / 10, torch.tensor([0, 2999])
        check(hidden, weight, targets, torch.full((1, 2), 0.5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_copies_of_a_token_do_not_lower_its_rank(compiled, dtype):
    hidden, weight, _, _ = heavy(4, 7, 1000, std=30.0, dtype=dtype)
    weight[:] = weight[torch.arange(1000) % 50].clone()
    targets = torch.arange(7) * 77
    once = reference(hidden, weight[:50], targets % 50)["rank"]
    found = Kernel(weight, measures=["rank"], matmul="native").measure(hidden, targets)["rank"]
    torch.testing.assert_close(found.double(), (once.double() - 1) * 20 + 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_half_precision_number_is_read_exactly(compiled, dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16 if dtype == torch.float32 else dtype)
    weight = every.nan_to_num(0, 0, 0).to(dtype).view(256, 256)
    hidden = torch.eye(256, dtype=dtype).unsqueeze(1).expand(-1, 256, -1)  # each picks a column of the weight
    part = native.Part(Wanted(weight, LogitTransform(), ["logprob"], 0), hidden, torch.arange(256), None)
    part.add(0, 256)
    logits, expected = part.sums[:, native.TARGET].view(256, 256).T, weight.double()
    tiny = expected.abs() < torch.finfo(torch.float32).tiny  # products of bfloat16 count these as 0
    assert torch.equal(logits[~tiny], expected[~tiny])
    assert logits[tiny].abs().max() < torch.finfo(torch.float32).tiny


# building and choosing


def test_the_library_is_built_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = native.built(("-std=c++17", "-O0", "-shared", "-fPIC"))
    assert first.is_relative_to(tmp_path / "internal-policy" / "native")
    monkeypatch.setattr(subprocess, "run", None)
    assert native.built(("-std=c++17", "-O0", "-shared", "-fPIC")) == first
    assert {path.suffix for path in first.parent.iterdir()} == {".so", ".json"}


@pytest.mark.parametrize("damage", ["cut short", "empty", "a text", "missing", "no fingerprint"])
def test_a_damaged_library_is_built_again(monkeypatch, tmp_path, damage):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = ("-std=c++17", "-O0", "-shared", "-fPIC")
    path = native.built(flags)
    whole = path.read_bytes()
    changed = {"cut short": whole[:16000], "empty": b"", "a text": b"a library"}
    if damage in changed:
        path.write_bytes(changed[damage])
    else:
        (path if damage == "missing" else path.with_suffix(".json")).unlink()
    assert native.built(flags) == path
    ctypes.CDLL(str(path)).multiplies_bfloat16()


def test_code_from_a_folder_that_others_may_write_to_is_never_run(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.private_folder().chmod(0o777)
    with pytest.raises(OSError, match="Others may write to"):
        native.built(native.FLAGS)


def test_the_folder_of_the_library_is_private(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert stat.S_IMODE(native.private_folder().stat().st_mode) == 0o700


@pytest.mark.parametrize("broken", ["no compiler", "no permission", "wrong flags"])
def test_pytorch_measures_where_the_library_cannot_be_built(monkeypatch, tmp_path, broken):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" if broken == "no permission" else tmp_path))
    (tmp_path / "file").write_text("")
    if broken == "no compiler":
        monkeypatch.setattr(native.shutil, "which", lambda _: None)
    if broken == "wrong flags":
        monkeypatch.setattr(native, "FLAGS", ("--no-such-flag",))
    forget()
    weight = torch.empty(1).expand(matmul.WORTH_MEASURING // 64, 64)
    assert choice.choose(weight, torch.float32) in matmul.MATMULS
    assert not choice.works("native", torch.float32, torch.device("cpu"))
    forget()


def test_the_kernel_is_chosen_where_it_is_fastest(monkeypatch):
    forget()
    monkeypatch.setattr(choice, "_seconds", lambda kernel, *_: 1.0 if kernel.matmul == "native" else 2.0)
    weight = torch.empty(1, dtype=torch.bfloat16).expand(matmul.WORTH_MEASURING // 64, 64)
    assert choice.choose(weight, torch.bfloat16) == "native"
    forget()


def test_a_kernel_that_is_wrong_is_never_chosen(monkeypatch):
    forget()
    monkeypatch.setattr(choice, "_seconds", lambda kernel, *_: 1.0 if kernel.matmul == "native" else 2.0)
    whole = native.measure
    monkeypatch.setattr(
        native, "measure", lambda *given: {name: values * 1.01 for name, values in whole(*given).items()}
    )
    weight = torch.empty(1).expand(matmul.WORTH_MEASURING // 64, 64)
    assert choice.choose(weight, torch.float32) in matmul.MATMULS
    forget()


def test_float64_is_measured_by_pytorch():
    hidden, weight, targets = states()
    found = Kernel(weight, matmul="native").measure(hidden, targets)
    assert_close(found, reference(hidden, weight, targets), atol=1e-11)


def test_float32_states_are_not_rounded_to_a_bfloat16_weight():
    hidden, weight, targets, scale = heavy(d_vocab=500)
    check(hidden, weight.bfloat16(), targets, scale)


@pytest.mark.slow  # a process of its own
def test_ctrl_c_stops_measuring_at_the_next_slice():
    code = """
import os, signal, threading, time, torch
from internal_policy.measure import native
from internal_policy.measure.kernel import Kernel
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
hidden, weight = torch.randn(64, 32, 512), torch.randn(100_000, 512)
native.library()
threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    Kernel(weight, matmul="native").measure(hidden, torch.zeros(32, dtype=torch.int64))
except KeyboardInterrupt:
    print("stopped")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "stopped\n", done.stderr


@pytest.mark.parametrize("path", [native.SOURCE, native.HEADER], ids=lambda path: path.name)
def test_the_sources_are_short_files(path):
    assert len(path.read_text().splitlines()) <= 350
