"""Tiny random models, one per family, and two small tokenizers; every test is a shape test (jaxtyping + beartype)."""

import gc
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = (
    "1"  # in every process: waiting for a second thread takes longer than a whole tiny model
)

if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"  # where Triton is installed, before anything imports it

import shapes  # noqa: F401 makes the checks cheaper
from jaxtyping import install_import_hook

install_import_hook("internal_policy", "beartype.beartype")

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from chat_templates import CHATML, LLAMA2
from hypothesis import settings
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from internal_policy import bundle, files
from internal_policy.engines.vllm import ENVIRONMENT
from internal_policy.models.hooks import hooked
from internal_policy.models.proofs import hook_count
from internal_policy.models.proofs import points_of as all_points
from internal_policy.models.rows import FAMILIES
from internal_policy.models.tiny import tiny
from internal_policy.scans import estimate, records, store
from internal_policy.tasks.problems import Message
from internal_policy.tasks.rollouts import Rollout

__all__ = ["EVERY_FAMILY", "FEW", "LLAMA_SHAPED", "all_points", "hook_count", "read", "slow", "tiny_model"]

transformers.logging.disable_progress_bar()  # tests read stderr
estimate.BUDGET = 0.0  # no test depends on how fast this machine is
settings.register_profile("tests", deadline=None, derandomize=True)  # a busy machine must not fail a test
settings.load_profile("tests")


SLOW = frozenset((Path(__file__).parent / "slow.txt").read_text(encoding="utf-8").splitlines())
"""Tests that took longest when all were measured (`pytest --durations=0`); they run with -m slow."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests in slow.txt as slow."""
    for item in items:
        if item.nodeid in SLOW:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Stop the garbage collector from searching the imported libraries again and again."""
    gc.freeze()


CORPUS = [
    "Mia has 47 apples and buys 385 more. How many apples has she now?",
    "The assistant adds the units first: 7 + 5 = 12, so write 2 and carry 1. The answer is \\boxed{432}.",
    "An ocean of naïve café tokens, 数学, and emoji 🙂 to fill the vocabulary with pieces of words.",
]


def tiny_model(family: str, **changes) -> PreTrainedModel:
    """A random model of `family` in float64 whose entropies vary from layer to layer."""
    torch.manual_seed(0)
    return tiny(family, **changes)


def saved(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Save a model with its tokenizer; return the folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_rollout(n_prompt: int = 4, n_response: int = 9, seed: int = 0) -> Rollout:
    """A rollout of random token ids."""
    ids = torch.randint(0, 320, (n_prompt + n_response,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Rollout("a problem", None, 0, tuple(ids[:n_prompt]), tuple(ids[n_prompt:]), "a response", None, True)


def moved(model: Any) -> Any:
    """The model with random trainable weights: most kinds of adapters start at 0."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data += 0.3 * noise.to(parameter.dtype)
    return model.eval()


def conversation(question: str, answer: str) -> tuple[Message, Message]:
    """A question from the user and the assistant's answer."""
    return Message(role="user", content=question), Message(role="assistant", content=answer)


def jsonl(path: Path, *rows: Any) -> Path:
    """Write rows as JSON Lines, and strings unchanged; return the path."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


SUMS = [{"problem": f"What is {n} + 5?", "answer": str(n + 5)} for n in range(10)]
"""Problems to ask a tiny model."""


def rewarded(folder: Path, rewards: Sequence[float | None]) -> None:
    """Replace the rewards of a scan's rollouts, repeating `rewards` as needed, and update its record."""
    record = records.read(folder / store.RECORD)
    for path in store.parts(folder, "rollouts"):
        table = pq.read_table(path)
        column = pa.array(([*rewards] * len(table))[: len(table)], pa.float64())
        store.write_table(path, table.set_column(table.schema.get_field_index("reward"), "reward", column))
        record["files"][path.name] = files.fingerprint(path)
    (folder / store.RECORD).write_text(json.dumps(record))


def same(one: Any, other: Any) -> None:
    """Assert that two scans have the same numbers to the last bit."""
    pd.testing.assert_frame_equal(one.policies, other.policies, check_exact=True)
    pd.testing.assert_frame_equal(one.layers, other.layers, check_exact=True)


def slow(*values: Any) -> list[Any]:
    """Parameters of a test that run with -m slow only."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


LLAMA_SHAPED = ["llama", "mistral", "qwen2", "qwen3"]
"""Some whose modules have Llama's names."""
FEW = ["llama", "qwen2", "gemma2", "granite", "olmo2", "gpt2", "gpt_neox", "gpt_oss"]
"""One of each kind."""
EVERY_FAMILY = [
    pytest.param(name, marks=[] if name in FEW or name.startswith(("llama", "qwen")) else pytest.mark.slow)
    for name in FAMILIES
]
"""Every row; those that aren't here by default run with -m slow."""


@pytest.fixture(params=FEW)
def family(request) -> str:
    return request.param


@pytest.fixture
def model(family) -> PreTrainedModel:
    return tiny_model(family)


def read(model, points, input_ids) -> dict:
    """The hidden states at `points`, in the order they are reached."""
    seen = {}
    with hooked(model, points, seen.__setitem__):
        model(input_ids)
    return seen


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in, and a cache of its own."""
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def copied(tmp_path) -> Path:
    """A copy of the bundled scan of demo-qwen3 that tests may damage."""
    return Path(shutil.copytree(bundle.DATA / "scans" / "demo-qwen3", tmp_path / "copied"))


def write_record(folder: Path, **given: Any) -> None:
    """Write scan.json for the Parquet files in a folder, as for a scan of a small model."""
    selection = {"layers": [0], "sites": ["resid_post"], "readouts": ["raw"], "measures": ["entropy"], "top_k": 0}
    text = {name: "x" for name, kind in records.FIELDS.items() if kind is str}
    number = {name: 1 for name, kind in records.FIELDS.items() if kind is int}
    found = {"schema": records.SCHEMA, **text, **number, "versions": {}, "command": [], "asked": {}, **given}
    found["selection"] = {**selection, **given.get("selection", {})}
    found["files"] = {path.name: files.fingerprint(path) for path in sorted(folder.glob("*.parquet"))}
    records.write(folder / records.RECORD, found)


@pytest.fixture
def llama() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.randint(5, 256, (2, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 300 tokens, smaller than the tiny models' vocabulary, with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|bos|>", "<|endoftext|>", "<|im_end|>", "<|im_start|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    fast.chat_template = CHATML
    return fast


PIECES_CORPUS = ["the boat and the other boat", "the answer is \\boxed{12}.", "What is 3 + 4?", "adds the units: 7 + 5"]


@pytest.fixture(scope="session")
def sentencepiece() -> PreTrainedTokenizerFast:
    """A tokenizer like Llama 2's with 319 tokens: pieces with leading spaces, a token per byte, and an added BOS.

    Its decoder drops the first space of a text. The template is Llama 2's, which has no generation prompt.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(PIECES_CORPUS, trainers.BpeTrainer(vocab_size=60, show_progress=False))
    pieces = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces["vocab"]]
    merges = [tuple(merge) for merge in pieces["merges"]]
    vocabulary = {name: number for number, name in enumerate(names)}
    bpe = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names[:3]])
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = LLAMA2
    return fast


@pytest.fixture(params=["tokenizer", "sentencepiece"])
def either(request) -> PreTrainedTokenizerFast:
    """Tokenizers of both kinds, one after the other."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    """A folder with a tiny Qwen3 model and a tokenizer."""
    return saved(tiny_model("qwen3").float(), tokenizer, tmp_path_factory.mktemp("model"))


@pytest.fixture
def problems(tmp_path) -> Path:
    path = tmp_path / "problems.jsonl"
    jsonl(path, *SUMS)
    return path


STANDIN = Path(__file__).parent / "standin"
"""A folder to import a stand-in for vLLM from."""
OFTEN_ENDS = [*range(2, 60)]
"""End-of-text tokens of the model, among 320."""


@pytest.fixture(scope="module")
def often(tmp_path_factory, folder) -> Path:
    """A folder with a tiny Qwen3 in float32, some of whose responses end before 8 tokens."""
    path = Path(shutil.copytree(folder, tmp_path_factory.mktemp("often") / "model")) / "generation_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "eos_token_id": OFTEN_ENDS, "temperature": 0.3, "top_k": 2})
    )
    return path.parent


@pytest.fixture
def vllm(monkeypatch):
    """The stand-in, installed as vllm; its CALLS are empty."""
    monkeypatch.syspath_prepend(str(STANDIN))
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")  # so that it is unset again in the end
        monkeypatch.delenv(name)
    import vllm  # pyright: ignore[reportMissingImports]

    vllm.CALLS.clear()
    yield vllm
    sys.modules.pop("vllm")


@pytest.fixture
def sampling_words(often, problems) -> list[str]:
    """Options of the commands that sample: 10 problems, two responses to each, in parts of 8."""
    options = ["--model", str(often), "--problems", str(problems), "--max-new-tokens", "8"]
    return [*options, "--samples", "2", "--batch-size", "8"]


@pytest.fixture
def asked(folder, problems) -> list[str]:
    return ["scan", "--model", str(folder), "--problems", str(problems), "--max-new-tokens", "6", "--batch-size", "4"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer) -> dict[str, Path]:
    """Folders with a tiny model and a tokenizer, by family: other configuration names, or missing sites."""
    paths = {}
    for name in ("gpt2", "gemma3", "gpt_neox", "granite", "mixtral"):
        paths[name] = saved(tiny_model(name), tokenizer, tmp_path_factory.mktemp(name))
    return paths


def numbers(path: Path) -> dict[str, bytes]:
    """The content of every table of a scan."""
    return {part.name: part.read_bytes() for part in path.glob("*.parquet")}


def undisturbed(asked: list[str], path: Path) -> dict[str, bytes]:
    """The tables that a command writes when nothing interrupts it."""
    from internal_policy.__main__ import main

    assert main([*asked, "--output", str(path)]) == 0
    return numbers(path)


def interrupt_the_second_batch(monkeypatch) -> list[int]:
    """Press Ctrl-C in the second batch of 4; the list collects the first prompt number of each started batch."""
    from internal_policy.scans import sampling

    sampled, first_prompts = sampling.batch, []

    def interrupted(*given):
        first_prompts.append(given[4])
        if first_prompts == [0, 4]:
            raise KeyboardInterrupt
        return sampled(*given)

    monkeypatch.setattr(sampling, "batch", interrupted)
    return first_prompts


def one_sentence(capsys, sentence: str, here: Path) -> None:
    """What stderr must hold after bad input, but for how a prompt was read, and that nothing was written."""
    from internal_policy.scans import store

    printed = re.sub(r"\ARead (as|through) .*\n(For plain text, .*\n)?", "", capsys.readouterr().err)
    assert sentence in printed
    assert printed.startswith("error: ")
    assert len(printed.strip().splitlines()) == 1
    assert not list(here.iterdir())
    assert not store.root().exists()
