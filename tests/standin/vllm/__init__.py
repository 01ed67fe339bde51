"""A stand-in for vLLM 0.33 with exactly the calls that we make; it samples with transformers on the CPU.

The names, arguments, defaults and the order of checks are those of vLLM's own sources.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypedDict

import torch
from transformers import AutoModelForCausalLM

CALLS: list[str] = []
"""What was done with engines, in order."""


class TokensPrompt(TypedDict):
    """A prompt as token ids."""

    prompt_token_ids: list[int]


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class SamplingParams:
    """Those of vLLM's arguments that we pass, with its defaults and checks."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True

    def __post_init__(self) -> None:
        assert type(self.seed) is int
        assert all(type(token) is int for token in self.stop_token_ids or ())
        if self.temperature > 2.0:
            raise ValueError(f"temperature must be in [0, 2], got {self.temperature}.")


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


@dataclass
class EngineCore:
    """The client of the process that holds the GPU's memory."""

    alive: bool = True

    def shutdown(self, timeout: float | None = None) -> None:
        CALLS.append("shutdown")
        self.alive = False


class LLM:
    """The offline engine."""

    def __init__(
        self,
        model: str,
        *,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        seed: int = 0,
        max_model_len: int | None = None,
        logprobs_mode: str = "raw_logprobs",
    ) -> None:
        CALLS.append(f"start {dtype}, {tensor_parallel_size} GPU, {max_model_len} tokens")
        assert (os.environ["VLLM_NO_USAGE_STATS"], logprobs_mode) == ("1", "raw_logprobs")
        if dtype not in ("auto", "half", "float16", "bfloat16", "float", "float32"):
            raise ValueError(f"1 validation error for ModelConfig\ndtype\n  Unknown dtype: {dtype}")
        if tensor_parallel_size > 1:
            raise RuntimeError("Engine core initialization failed. See root cause above.")
        self.max_model_len = max_model_len
        self.model = AutoModelForCausalLM.from_pretrained(model, revision=revision, dtype=getattr(torch, dtype))
        self.llm_engine = SimpleNamespace(engine_core=EngineCore())

    def generate(
        self,
        prompts: Sequence[TokensPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """A response to each prompt, in order."""
        assert self.llm_engine.engine_core.alive
        assert not use_tqdm
        assert isinstance(sampling_params, list)
        CALLS.append(f"generate {len(prompts)}")
        return [
            RequestOutput(ids, [complete(self.model, ids, params, self.max_model_len)])
            for ids, params in zip([prompt["prompt_token_ids"] for prompt in prompts], sampling_params, strict=True)
        ]


@torch.inference_mode()
def complete(model: Any, prompt: list[int], params: SamplingParams, max_model_len: int | None) -> CompletionOutput:
    """Sample token by token; the log probabilities are those before the temperature and top-p (raw_logprobs)."""
    generator = torch.Generator().manual_seed(params.seed or 0)
    ids: list[int] = []
    told: list[dict[int, Logprob]] = []
    while True:
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, -1].float()
        if params.temperature < 1e-5:
            token = int(logits.argmax())
        else:
            probabilities = (logits / params.temperature).softmax(-1)
            ordered, order = probabilities.sort(descending=True)
            ordered[ordered.cumsum(-1) - ordered > params.top_p] = 0
            token = int(order[torch.multinomial(ordered, 1, generator=generator)])
        ids.append(token)
        told.append({token: Logprob(float(logits.log_softmax(-1)[token]))})
        if token in (params.stop_token_ids or ()):
            return CompletionOutput(0, "", ids, told, "stop", token)
        if len(ids) == params.max_tokens or len(prompt) + len(ids) >= (max_model_len or 10**9):
            return CompletionOutput(0, "", ids, told, "length")
