"""Measure policies on a CPU in C++: products and statistics in one pass, built for this processor on first use."""

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internal_policy import files
from internal_policy.measure import spread, stacked
from internal_policy.measure.matmul import precision
from internal_policy.measure.metrics import EMPTY
from internal_policy.measure.spread import SPREAD
from internal_policy.measure.stacked import Wanted

SOURCE, HEADER = (Path(__file__).with_name(name) for name in ("native.cpp", "native_product.h"))
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC")
"""Arguments of the compiler; the library only runs on processors like this one."""
PATIENCE = 120
"""Seconds that the compiler may take."""
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Types of the unembedding, by their numbers in native.cpp."""
SHARE = 1 / 2
"""A tile of the unembedding fills this much of the processor's second cache, while all hidden states pass by."""
CACHE_BYTES = 2**20
"""Size of that cache where the system doesn't tell."""
SLICE = 5 * 10**10
"""Multiplications at a time: Ctrl-C waits for them."""
TILES = 768
"""A number of vocabulary entries that is a whole number of tiles on most processors."""
LARGEST, S, T, CROSS, ABOVE, TARGET, SCALED_LARGEST, SCALED_S, SCALED_T, HALF, TWO, MEAN, SQUARES, SUMS = range(14)
"""Columns of a policy's running sums."""
MARGIN = 64
"""Numbers that may be read behind the end of the bias."""


class Job(ctypes.Structure):
    """What the library reads and writes; native.cpp explains the fields, and has them in the same order."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "positions", "d_model", "d_vocab", "top_k", "scaled", "kl")),
        *((name, ctypes.c_int64) for name in ("weights_are", "exact16", "spread")),
        *((name, ctypes.c_void_p) for name in ("hidden", "weight", "bias", "target", "aim", "scale")),
        *((name, ctypes.c_void_p) for name in ("sums", "top", "ids", "filled")),
        *((name, ctypes.c_float) for name in ("factor", "divisor", "cap")),
    )


def measure(
    wanted: Wanted,
    hidden: Float[Tensor, "points pos d_model"],
    targets: Int[Tensor, " pos"],
    scale: Float[Tensor, "scaled pos"] | None,
) -> dict[str, Tensor]:
    """The numbers of `Kernel.measure`, with PyTorch's number of threads, each for some of the positions.

    Raises OSError if the library can't be built here.
    """
    workers = min(torch.get_num_threads(), hidden.shape[1])
    spans = [slice(n * hidden.shape[1] // workers, (n + 1) * hidden.shape[1] // workers) for n in range(workers)]
    parts = [Part(wanted, hidden[:, span], targets[span], None if scale is None else scale[:, span]) for span in spans]
    step = max(1, SLICE // hidden.numel() // TILES) * TILES
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(wanted.weight), step):
            list(pool.map(lambda part, start=start: part.add(start, start + step), parts))
    results = [part.result() for part in parts]
    return {name: torch.cat([result[name] for result in results], 1) for name in results[0]}


class Part:
    """The numbers of all hook points at a few positions, over the vocabulary seen so far."""

    def __init__(self, wanted: Wanted, hidden: Tensor, targets: Tensor, scale: Tensor | None) -> None:
        """Arguments are those of `measure`."""
        self.wanted, self.shape = wanted, hidden.shape[:2]
        d_model, rows = hidden.shape[2], hidden.shape[0] * hidden.shape[1]
        weight = wanted.weight.contiguous()
        exact16 = hidden.dtype == weight.dtype == torch.bfloat16 and d_model % 2 == 0 and multiplies_bfloat16()
        self.hidden = hidden.to(torch.bfloat16 if exact16 else torch.float32).contiguous()
        if scale is not None and "entropy_at_input_norm" not in wanted.measures:
            scale = None
        self.scale = None if scale is None else scale.float().contiguous()
        self.bias = None if wanted.bias is None else torch.nn.functional.pad(wanted.bias.float(), (0, MARGIN))
        self.aim = aim(wanted, hidden, targets).contiguous() if "rank" in wanted.measures else None
        self.weight, self.targets = weight, targets.contiguous()
        self.top_k = wanted.top_k if "topk" in wanted.measures else 0
        self.sums = torch.zeros(rows, SUMS, dtype=torch.float64)
        self.sums[:, [LARGEST, SCALED_LARGEST]] = EMPTY
        self.top = torch.full((rows, self.top_k), -torch.inf)
        self.ids, self.filled = torch.zeros(rows, self.top_k, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
        transform = wanted.transform
        pointers = (self.hidden, weight, self.bias, self.targets, self.aim, self.scale)
        self.job = Job(
            rows, self.shape[1], d_model, len(weight), self.top_k, 0 if self.scale is None else self.scale.numel(),
            "kl" in wanted.measures, DTYPES[weight.dtype], exact16, not {*SPREAD}.isdisjoint(wanted.measures),
            *(None if tensor is None else tensor.data_ptr() for tensor in pointers),
            *(tensor.data_ptr() for tensor in (self.sums, self.top, self.ids, self.filled)),
            transform.factor, transform.divisor, transform.cap or 0.0,
        )  # fmt: skip
        self.tile = int(SHARE * cache_bytes()) // (d_model * (2 if exact16 else 4))

    def add(self, start: int, end: int) -> None:
        """Fold in a slice of the vocabulary. Raises MemoryError."""
        if library().measure(ctypes.byref(self.job), start, min(end, len(self.weight)), self.tile):
            raise MemoryError("There is too little memory for a tile of the unembedding.")

    def result(self) -> dict[str, Tensor]:
        """Every requested number, (points, pos), topk (points, pos, top_k)."""
        sums, k = self.sums.view(*self.shape, SUMS), self.top_k
        largest, s, t, cross = (sums[..., n] for n in (LARGEST, S, T, CROSS))
        log_s = s.log()
        entropy, normaliser = log_s - t / s, largest + log_s
        transform = self.wanted.transform
        scaled = sums[..., SCALED_S].log() - sums[..., SCALED_T] / sums[..., SCALED_S]
        numbers = {
            "entropy": entropy,
            "logprob": transform(sums[..., TARGET]) - normaliser,
            "rank": (sums[..., ABOVE] + 1).masked_fill(normaliser.isnan(), torch.nan),
            "topk_ids": self.ids.view(*self.shape, k),
            "topk_probs": (transform(self.top.double().view(*self.shape, k)) - normaliser.unsqueeze(-1)).exp(),
            "kl": (log_s - cross / s[:1] - entropy[:1]).clamp(min=0),
            "entropy_at_input_norm": scaled,
            **spread.renyi(s, sums[..., HALF], sums[..., TWO]),
            "logit_scale": (sums[..., SQUARES] / len(self.wanted.weight)).sqrt(),
        }
        names = {name: name.removesuffix("_ids").removesuffix("_probs") for name in numbers}
        return {
            name: values if name == "topk_ids" else values.float()
            for name, values in numbers.items()
            if names[name] in self.wanted.measures
        }


def aim(
    wanted: Wanted, hidden: Float[Tensor, "points pos d_model"], targets: Int[Tensor, " pos"]
) -> Float[Tensor, "points pos"]:
    """The targets' logits and their rounding, because no token, or copy of it, may rank above itself."""
    logits = torch.linalg.vecdot(hidden.float(), wanted.weight[targets].float())
    logits = logits if wanted.bias is None else logits + wanted.bias[targets].float()
    return stacked.aim(wanted, hidden.transpose(0, 1), targets, logits.T).T


def works(hidden: torch.dtype, weight: torch.dtype) -> bool:
    """Whether factors of these types can be measured here; builds the library if it isn't built yet."""
    return weight in DTYPES and precision(hidden) == torch.float32 and is_built()


@cache
def is_built() -> bool:
    """Whether there is a library for this processor, once it was tried to build one."""
    try:
        library()
    except OSError:
        return False
    return True


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 factors as they are."""
    return bool(library().multiplies_bfloat16())


@cache
def library() -> ctypes.CDLL:
    """The library for this processor, built on first use and kept in the user's cache.

    Raises OSError without a compiler, if it fails, or if others may write to the folder of the library.
    """
    loaded = ctypes.CDLL(str(built(FLAGS)))
    loaded.measure.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64]
    loaded.measure.restype = loaded.multiplies_bfloat16.restype = ctypes.c_int64
    return loaded


def built(flags: Sequence[str]) -> Path:
    """The path of the library, compiled with these arguments unless that has been done. Raises OSError."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if compiler is None or sys.platform == "win32":
        raise OSError("There is no C++ compiler.")
    folder = private_folder()
    made_of = [SOURCE.read_bytes(), HEADER.read_bytes(), " ".join([compiler, *flags]).encode(), processor().encode()]
    path = folder / f"{sha256(b' '.join(made_of)).hexdigest()[:16]}.so"
    written = path.with_suffix(".json")
    if not is_whole(path, written):  # a process that loads a file that was cut short is killed
        with files.replacing(path) as temporary:
            command = [compiler, *flags, "-o", str(temporary), str(SOURCE)]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
            except subprocess.SubprocessError as error:
                raise OSError(f"{compiler} failed.") from error
        files.write_json(written, files.fingerprint(path) or {})
    return path


def is_whole(path: Path, written: Path) -> bool:
    """Whether a library hasn't changed since its fingerprint was written."""
    try:
        return json.loads(written.read_text(encoding="utf-8")) == files.fingerprint(path)
    except (OSError, ValueError):
        return False


@cache
def cache_bytes() -> int:
    """Size of the processor's second cache."""
    name = "SC_LEVEL2_CACHE_SIZE"
    known = os.sysconf(name) if name in os.sysconf_names else 0
    return known if known > 0 else CACHE_BYTES


def processor() -> str:
    """What tells processors apart for a compiler: their kind, and the features that the system reports."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {features}"


def private_folder() -> Path:
    """A folder in the user's cache that nobody else may write to, because code from it is run. Raises OSError."""
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = (caches if caches.is_absolute() else Path.home() / ".cache") / "internal-policy" / "native"
    except RuntimeError as error:  # no home folder
        raise OSError(str(error)) from error
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise OSError(f"Others may write to {folder}.")
    return folder
