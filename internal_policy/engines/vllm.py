"""Sample responses with vLLM on this machine, from token ids to token ids.

Written for vLLM 0.33 and tested with a stand-in that has its calls, not with vLLM itself, which needs a GPU.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from internal_policy.engines.completion import Asked, Completion, checked
from internal_policy.errors import InputError, first_line
from internal_policy.models.checkpoint import Checkpoint
from internal_policy.tasks.prompts import Ids

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a process with threads must not fork
}
"""Environment variables for vLLM, unless they are set already. It sends no statistics, and prints nothing to stdout."""


@dataclass(frozen=True)
class Vllm:
    """A running vLLM engine. It runs in a process of its own, which ends when it is closed."""

    llm: Any
    """vLLM's own object, a `vllm.LLM`."""
    asked: Asked
    """How it samples."""

    def complete(self, prompts: Sequence[Ids], seeds: Sequence[int]) -> list[Completion]:
        """A response to each prompt, sampled with its seed. Raises InputError."""
        vllm = import_module("vllm")
        asked = self.asked
        shared = {"temperature": asked.temperature, "top_p": asked.top_p, "max_tokens": asked.max_new_tokens}
        shared |= {"stop_token_ids": [*asked.ends], "logprobs": 0, "detokenize": False}  # 0: the sampled token alone
        try:
            parameters = [vllm.SamplingParams(seed=seed, **shared) for seed in seeds]
            given = [vllm.TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
            outputs = [found.outputs[0] for found in self.llm.generate(given, parameters, use_tqdm=False)]
        except (ValueError, RuntimeError) as error:
            raise InputError(f"vLLM can't sample these responses ({first_line(error)}).") from error
        return [checked("vLLM", *_read(output), output.finish_reason, self.asked) for output in outputs]

    def close(self) -> None:
        """End vLLM's process, which releases the memory of its GPUs."""
        self.llm.llm_engine.engine_core.shutdown()


def _read(output: Any) -> tuple[list[int], list[float]]:
    """The sampled token ids and their log probabilities in nats, which vLLM lists by token id for each position."""
    return [*output.token_ids], [at[n].logprob for n, at in zip(output.token_ids, output.logprobs, strict=False)]


def start(checkpoint: Checkpoint, asked: Asked, *, dtype: str, tensor_parallel: int, longest: int, seed: int) -> Vllm:
    """Start vLLM with a model on `tensor_parallel` GPUs, for texts of up to `longest` tokens. Raises InputError."""
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    try:
        llm = import_module("vllm").LLM(
            model=checkpoint.place,
            revision=None if checkpoint.folder.is_dir() else checkpoint.revision,
            trust_remote_code=checkpoint.trust_remote_code,
            dtype=dtype,
            tensor_parallel_size=tensor_parallel,
            max_model_len=longest,
            seed=seed,
            logprobs_mode="raw_logprobs",  # before the temperature and top-p
        )
    except Exception as error:  # vLLM raises errors of many libraries
        raise InputError(f"vLLM can't start {checkpoint.name} ({first_line(error)}).") from error
    return Vllm(llm, asked)
