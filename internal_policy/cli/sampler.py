"""Sample responses with the chosen engine: the model in this process, vLLM or a server."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from internal_policy.cli import engine, outputs, progress
from internal_policy.cli.prepared import Policy, Prepared
from internal_policy.cli.work import Work
from internal_policy.errors import require

if TYPE_CHECKING:
    from internal_policy.engines.completion import Engine
    from internal_policy.tasks.problems import Problem
    from internal_policy.tasks.rollouts import Rollout


class Sample(Protocol):
    """Samples responses to problems; they are also kept in a folder, so that an interrupted run continues."""

    def __call__(self, problems: "Sequence[Problem]", folder: Path, title: str = "Sampling") -> "list[Rollout] | None":
        """All responses, in order; None while other processes still have some. Raises InputError."""
        ...


@contextmanager
def sampler(options: Any, inputs: Prepared, policy: Policy, prompts: Sequence[int]) -> Iterator[Sample]:
    """While open, samples responses from the policy with the chosen engine. Raises InputError.

    `prompts` are the lengths of the prompts in tokens.
    """
    if not engine.samples(options):
        yield partial(inputs.sample, inputs.model(), policy)
        return
    from internal_policy.engines.sampling import read
    from internal_policy.scans.sampling import parts_of

    with starting(options, inputs, prompts) as started:

        def sample(problems: "Sequence[Problem]", folder: Path, title: str = "Sampling") -> "list[Rollout]":
            parts = parts_of(problems, inputs.sampling)
            _sample(started, inputs, problems, folder, parts, title)
            return [rollout for part in parts for rollout in read(folder, part)]

        yield sample


@contextmanager
def sampled(options: Any, planned: Work, folder: Path, other: bool) -> Iterator[Work]:
    """While open, the work of a scan, with the responses that vLLM or a server sampled; unchanged for other engines.

    Responses that the scan in `folder` lacks are sampled first. Then the engine is closed, which frees its memory for
    the model. They are kept in the cache until the scan is complete. `other` is whether the folder has another scan.
    Raises InputError.
    """
    if not engine.samples(options):
        yield planned
        return
    from internal_policy.engines.sampling import read
    from internal_policy.scans import store
    from internal_policy.scans.sampling import is_whole, parts_of

    outputs.check_cache()
    inputs = planned.inputs
    kept = store.root() / "rollouts" / store.digest({**inputs.question, "output": folder.absolute()})
    parts = parts_of(planned.problems, inputs.sampling)
    missing = [part for part in parts if other or not is_whole(folder, part)]
    with starting(options, inputs, planned.prompts) as started:
        _sample(started, inputs, planned.problems, kept, missing, "Sampling")
    rollouts = [rollout for part in parts for rollout in read(kept if part in missing else folder, part)]
    yield replace(planned, rollouts=rollouts)
    shutil.rmtree(kept, ignore_errors=True)


def _sample(
    started: "Callable[[], Engine]",
    inputs: Prepared,
    problems: "Sequence[Problem]",
    folder: Path,
    parts: Sequence[int],
    title: str,
) -> None:
    from internal_policy.engines import sampling

    size = inputs.sampling.batch_size
    total = len(problems) * inputs.sampling.samples
    with progress.bar(title, sum(min(size, total - part * size) for part in parts)) as advance:
        sampling.sample(started, inputs.tokenizer, problems, inputs.sampling, folder, parts, advance)


@contextmanager
def starting(options: Any, inputs: Prepared, prompts: Sequence[int]) -> "Iterator[Callable[[], Engine]]":
    """While open, a function that returns the engine, and starts it at the first call. It is closed in the end."""
    running: list[Engine] = []

    def started() -> "Engine":
        if not running:
            running.append(_start(options, inputs, max(prompts)))
        return running[0]

    try:
        yield started
    finally:
        for one in running:
            one.close()


def _start(options: Any, inputs: Prepared, longest: int) -> "Engine":
    """Start the engine for prompts of up to `longest` tokens. Raises InputError."""
    from internal_policy.engines.completion import Asked
    from internal_policy.models.generation import generation_config
    from internal_policy.tasks.generate import ends_of

    sampling, checkpoint = inputs.sampling, inputs.checkpoint
    asked = Asked(
        sampling.temperature,
        sampling.top_p,
        sampling.max_new_tokens,
        tuple(sorted(ends_of(inputs.config, generation_config(checkpoint), inputs.tokenizer))),
        inputs.config.get_text_config().vocab_size,
    )
    if options.engine == "server":
        require("server", "httpx2")
        from internal_policy.engines.server import KEY, Server

        url = options.url.rstrip("/").removesuffix("/v1")
        server = Server(url, options.served_model or checkpoint.name, os.environ.get(KEY) or None, asked)
        server.check()
        return server
    require("vllm", "vllm")
    from internal_policy.engines import vllm
    from internal_policy.models.weights import dtype_of

    dtype = str(dtype_of(inputs.config, checkpoint, inputs.arguments["dtype"])).removeprefix("torch.")
    progress.note(f"Starting vLLM with {checkpoint.name} in {dtype}.")
    return vllm.start(
        checkpoint,
        asked,
        dtype=dtype,
        tensor_parallel=options.tensor_parallel,
        longest=longest + sampling.max_new_tokens,
        seed=sampling.seed,
    )
