"""A stand-in for vLLM 0.31 as TRL 1.16 uses it in training: an engine, and a server on the loopback interface.

Both sample from a copy of the model in a folder, token by token, and take weights by their names on disk. The names of
calls, fields and paths are those of TRL's sources; NCCL is replaced by a queue.
"""

import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from trl.generation import vllm_client, vllm_generation

QUEUE: "Queue[torch.Tensor]" = Queue()
"""Weights on their way to the server, in order."""


@dataclass
class Logprob:
    logprob: float
    rank: int = 1


@dataclass
class Sampler:
    """A model that samples, and what was done with it."""

    model: Any
    taken: list[set[str]] = field(default_factory=list)
    """Names of the weights of each update."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Parameters of each request."""
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @classmethod
    def of(cls, name: str) -> "Sampler":
        return cls(AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32))

    def take(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        """Replace weights; vLLM knows each by its name on disk."""
        known = self.model.state_dict()
        for name, weight in weights:
            assert known[name].shape == weight.shape
            known[name].copy_(weight.detach())

    @torch.inference_mode()
    def sample(self, prompt: list[int], asked: dict[str, Any]) -> tuple[list[int], list[float]]:
        """Ids and their log probabilities after the temperature (processed_logprobs)."""
        assert (asked["top_p"], asked["top_k"], asked["min_p"]) == (1.0, 0, 0.0)
        ids: list[int] = []
        logprobs: list[float] = []
        while len(ids) < asked["max_tokens"] and not (ids and ids[-1] in asked["stop_token_ids"]):
            logits = self.model(input_ids=torch.tensor([prompt + ids])).logits[0, -1] / asked["temperature"]
            policy = logits.log_softmax(-1)
            ids.append(int(torch.multinomial(policy.exp(), 1, generator=self.generator)))
            logprobs.append(float(policy[ids[-1]]))
        return ids, logprobs


STARTED: list[Sampler] = []
"""Engines that TRL started in this process."""


class LLM:
    """The engine in the process of the trainer."""

    def __init__(self, model: str, *, logprobs_mode: str, **options: Any) -> None:
        assert logprobs_mode == "processed_logprobs"
        self.sampler, self.options = Sampler.of(model), options
        STARTED.append(self.sampler)
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self.load))
        driver = SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        self.llm_engine = SimpleNamespace(model_executor=driver)

    def load(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        self.sampler.taken = self.sampler.taken or [set()]
        self.sampler.taken[-1] |= {name for name, _ in weights}
        self.sampler.take(weights)

    def reset_prefix_cache(self) -> None:
        self.sampler.taken.append(set())

    def generate(self, prompts: Any, sampling_params: Any, use_tqdm: bool) -> list[Any]:
        asked = vars(sampling_params)
        self.sampler.asked.append(asked)
        outputs = []
        for prompt in prompts:
            ids, logprobs = self.sampler.sample(prompt["prompt_token_ids"], asked)
            told = [{token: Logprob(logprob)} for token, logprob in zip(ids, logprobs, strict=True)]
            one = SimpleNamespace(token_ids=ids, logprobs=told)
            outputs.append(SimpleNamespace(prompt_token_ids=prompt["prompt_token_ids"], outputs=[one]))
        return outputs


class Handler(BaseHTTPRequestHandler):
    """The paths of `vllm serve` in development mode."""

    sampler: Sampler
    engine: dict[str, Any]

    def log_message(self, format: str, *args: Any) -> None: ...

    def answer(self, content: Any = None, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        known = {
            "/health": None,
            "/v1/models": {"data": [{"id": "the-model"}]},
            "/get_world_size": {"world_size": 1},
            "/server_info": {"vllm_config": self.engine},
        }
        self.answer(known.get(path), 200 if path in known else 404)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or "{}")
        sampler = self.sampler
        if self.path == "/update_weights":
            info = body["update_info"]
            sampler.taken.append(set(info["names"]))
            sampler.take([(name, QUEUE.get(timeout=10)) for name in info["names"]])
            self.answer({})
        elif self.path == "/v1/completions":
            assert body["return_token_ids"]
            assert body["return_tokens_as_token_ids"]
            sampler.asked.append(body)
            self.answer({"choices": [self.choice(ids, body) for ids in body["prompt"] for _ in range(body["n"])]})
        else:
            known = {"/init_weight_transfer_engine", "/start_weight_update", "/finish_weight_update"}
            assert self.path in {*known, "/reset_prefix_cache"}, self.path
            self.answer({"success": True})

    def choice(self, prompt: list[int], body: dict[str, Any]) -> dict[str, Any]:
        ids, logprobs = self.sampler.sample(prompt, body)
        tokens = [f"token_id:{token}" for token in ids]
        tops = [{token: logprob} for token, logprob in zip(tokens, logprobs, strict=True)]
        told = {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops}
        return {"prompt_token_ids": prompt, "token_ids": ids, "logprobs": told}


@contextmanager
def serving(model: str, **engine: Any) -> Iterator[tuple[int, Sampler]]:
    """A server on a free port; `engine` replaces parts of its configuration."""
    sampler = Sampler.of(model)
    told = {"weight_transfer_config": {"backend": "nccl"}, "model_config": {"logprobs_mode": "processed_logprobs"}}
    handler = type("Bound", (Handler,), {"sampler": sampler, "engine": {**told, **engine}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], sampler
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _sent(iterator: Any, group: Any, src: int, post_iter_func: Any) -> None:
    for item in iterator:
        QUEUE.put(copy.deepcopy(post_iter_func(item).detach()))


def install(monkeypatch: Any) -> None:
    """Let TRL find the stand-in. A device says that it is a GPU, because TRL's client asks for one."""
    STARTED.clear()
    group = SimpleNamespace(group=SimpleNamespace(store=None, socket=None))
    gpu = SimpleNamespace(type="cuda", index=None)
    for module in (vllm_client, vllm_generation):
        monkeypatch.setattr(module, "is_vllm_available", lambda *_, **__: True)
    for name, value in {
        "get_ip": lambda: "127.0.0.1",
        "open_trainer_endpoint": lambda _: group,
        "packed_nccl_broadcast_producer": _sent,
        "_HAS_STATEFUL_TRAINER_ENGINE": True,
        "_HAS_RESET_PREFIX_CACHE_SUCCESS": True,
        "torch": SimpleNamespace(device=lambda *_: gpu, Tensor=torch.Tensor),
    }.items():
        monkeypatch.setattr(vllm_client, name, value, raising=False)
    monkeypatch.setattr(vllm_generation, "LLM", LLM, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SimpleNamespace, raising=False)
    monkeypatch.setattr("internal_policy.train.configuration.is_vllm_available", lambda: True)
