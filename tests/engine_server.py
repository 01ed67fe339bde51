"""A small HTTP server on this machine that answers as vLLM's OpenAI-compatible server does."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch
from standin.vllm import SamplingParams, complete
from transformers import AutoModelForCausalLM

OPTIONS = {
    *("model", "prompt", "n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "max_tokens", "stop_token_ids", "seed", "logprobs", "return_token_ids"),
}
"""Fields of vLLM's CompletionRequest that we send."""


@dataclass
class Served:
    """What a server has, and how it answers."""

    model: Any
    """The model."""
    name: str
    """Its name there."""
    key: str | None = None
    """API key that it asks for."""
    changed: Callable[[dict[str, Any]], dict[str, Any]] = lambda choice: choice
    """Changes the only choice of an answer."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    """The bodies of all requests."""
    lock: Lock = field(default_factory=Lock)

    def models(self) -> tuple[int, dict[str, Any]]:
        return 200, {"object": "list", "data": [{"id": self.name, "object": "model", "max_model_len": 2048}]}

    def completion(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The answer to a request. `logprobs` and `token_ids` are only there if they were asked for."""
        assert body.keys() == OPTIONS
        neutral = (body["n"], body["top_k"], body["min_p"], body["repetition_penalty"])
        assert neutral == (1, -1, 0, 1)
        with self.lock:
            self.asked.append(body)
            if body["temperature"] > 2:
                message = f"temperature must be in [0, 2], got {body['temperature']}."
                return 400, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}
            names = ("temperature", "top_p", "seed", "stop_token_ids", "max_tokens")
            done = complete(self.model, body["prompt"], SamplingParams(**{name: body[name] for name in names}), 2048)
        choice = {**asdict(done), "prompt_token_ids": body["prompt"], "text": "some text"}
        logprobs = [next(iter(at.values())).logprob for at in done.logprobs or ()]
        choice["logprobs"] = {"token_logprobs": logprobs, "tokens": [], "top_logprobs": [], "text_offset": []}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(done.token_ids)}
        return 200, {"id": "cmpl-1", "model": body["model"], "choices": [self.changed(choice)], "usage": usage}


@contextmanager
def serving(served: Served) -> Iterator[str]:
    """While open, a server answers at the address that this yields."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(*served.models() if self.path == "/v1/models" else (404, {"detail": "Not Found"}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = self.path == "/v1/completions"
            self.answer(*served.completion(body) if known else (404, {"detail": "Not Found"}))

        def answer(self, status: int, found: dict[str, Any]) -> None:
            if served.key is not None and self.headers["Authorization"] != f"Bearer {served.key}":
                status, found = 401, {"error": "Unauthorized"}
            content = json.dumps(found).encode()
            with suppress(OSError):  # a client that had an error leaves
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def of_folder(folder: Path, **changes: Any) -> Served:
    """A server of the model in a folder, named after it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Served(model, str(folder), **changes)
