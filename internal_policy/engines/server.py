"""Sample responses on a server that takes and returns token ids, as vLLM's /v1/completions does.

Written for the server of vLLM 0.33 and tested against a small server that answers in the same way, not against vLLM.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from internal_policy.engines.completion import Asked, Completion, checked
from internal_policy.errors import InputError, first_line
from internal_policy.tasks.prompts import Ids

KEY = "INTERNAL_POLICY_API_KEY"
"""Environment variable with the server's API key."""
CONNECTIONS = 64
"""Responses that a server samples at the same time."""
RETRIES = 3
"""How often a connection that fails is tried again."""
TIMEOUT = httpx2.Timeout(3600.0, connect=20.0, pool=None)
"""Seconds: a server that is busy or samples long responses may take an hour to answer."""
NEUTRAL = {
    "n": 1,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Neutral values of options, which a server would otherwise take from the model's generation_config.json."""


@dataclass(frozen=True)
class Server:
    """A server with a model."""

    url: str
    """Its address, without /v1."""
    model: str
    """Name of the model there."""
    key: str | None = field(repr=False)
    """API key; None if it needs none."""
    asked: Asked
    """How it samples."""

    def __str__(self) -> str:
        """As error messages name it."""
        return f"The server at {self.url}"

    def complete(self, prompts: Sequence[Ids], seeds: Sequence[int]) -> list[Completion]:
        """A response to each prompt, sampled with its seed. Raises InputError."""
        return asyncio.run(self._complete(prompts, seeds))

    def close(self) -> None:
        """Do nothing, because the server keeps running for others."""

    def check(self) -> None:
        """Raise InputError unless the server answers and has the model."""
        listed = asyncio.run(self._models()).get("data")
        names = [card.get("id") for card in listed if isinstance(card, dict)] if isinstance(listed, list) else []
        if self.model not in names:
            found = f"It has {', '.join(map(str, names))}. Name one" if names else "It lists no models. Name it"
            raise InputError(f"{self} has no model '{self.model}'. {found} with --served-model.")

    async def _models(self) -> dict[str, Any]:
        async with self._client() as client:
            return await self._answer(client, "GET", "/v1/models")

    async def _complete(self, prompts: Sequence[Ids], seeds: Sequence[int]) -> list[Completion]:
        async with self._client() as client:
            try:
                async with asyncio.TaskGroup() as tasks:  # the first error cancels the others
                    running = [
                        tasks.create_task(self._one(client, prompt, seed))
                        for prompt, seed in zip(prompts, seeds, strict=True)
                    ]
            except BaseExceptionGroup as group:
                raise group.exceptions[0] from group
        return [task.result() for task in running]

    def _client(self) -> httpx2.AsyncClient:
        limits = httpx2.Limits(max_connections=CONNECTIONS)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        transport = httpx2.AsyncHTTPTransport(retries=RETRIES, limits=limits)
        return httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=TIMEOUT, transport=transport)

    async def _one(self, client: httpx2.AsyncClient, prompt: Ids, seed: int) -> Completion:
        body = {
            **NEUTRAL,
            "model": self.model,
            "prompt": list(prompt),
            "temperature": self.asked.temperature,
            "top_p": self.asked.top_p,
            "max_tokens": self.asked.max_new_tokens,
            "stop_token_ids": list(self.asked.ends),
            "seed": seed,
            "logprobs": 0,  # that of the sampled token alone
            "return_token_ids": True,
        }
        answer = await self._answer(client, "POST", "/v1/completions", json=body)
        try:
            choice = answer["choices"][0]
            ids, reason = choice.get("token_ids"), choice.get("finish_reason")
            logprob = (choice.get("logprobs") or {}).get("token_logprobs") or []
        except (LookupError, TypeError, AttributeError) as error:
            raise InputError(f"{self} doesn't answer as an OpenAI-compatible server does. Check --url.") from error
        if not ids:
            raise InputError(
                f"{self} returns text without token ids. Use one that knows return_token_ids, as vLLM's does."
            )
        if choice.get("prompt_token_ids") not in (None, list(prompt)):
            raise InputError(
                f"{self} read other token ids than those of the prompt. Use one that takes them as they are."
            )
        return checked(str(self), ids, logprob, reason, self.asked)

    async def _answer(self, client: httpx2.AsyncClient, method: str, path: str, **body: Any) -> dict[str, Any]:
        """The JSON that the server answers. Raises InputError."""
        try:
            response = await client.request(method, path, **body)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise InputError(
                f"No server answers at {self.url}. Start one, such as `vllm serve {self.model}`, or check --url."
            ) from error
        except httpx2.HTTPError as error:
            raise InputError(
                f"{self} stopped answering ({type(error).__name__}: {first_line(error)}). To continue, run the same "
                "command again."
            ) from error
        if response.status_code in (401, 403):
            raise InputError(
                f"{self} refused the API key ({response.status_code}). Set the variable {KEY} to the right one."
            )
        try:
            found = response.json()
        except ValueError:
            found = None
        if response.is_success and isinstance(found, dict):
            return found
        raise InputError(f"{self} answered {response.status_code} to {path}{self._message(found)}. Check it and --url.")

    def _message(self, found: Any) -> str:
        """The server's error message in parentheses, without the API key; empty if there is none."""
        error = found.get("error", found) if isinstance(found, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        if not isinstance(message, str):
            return ""
        shown = message.replace(self.key, "***") if self.key else message
        return f" ({' '.join(shown.split()):.300})".replace(".)", ")")
