"""Any server with OpenAI's chat endpoint: vLLM, SGLang, llama.cpp, `transformers serve`, and those in the cloud."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_s2s.construction.chat.base import ChatModel, ChatReply, ChatRequest, json_instruction
from lightning_s2s.construction.continuations import complete_sentences
from lightning_s2s.construction.openai_server import Json, OpenAIServer, TransientError
from lightning_s2s.support.ranges import Count, Natural, Positive, Processes, Temperature, checked


@checked
@dataclass
class ChatServer(ChatModel):
    """A server with `POST /v1/chat/completions`.

    Transient faults (429, 5xx, no answer in time) are retried by the client of the package openai, with growing pauses;
    a request that the server refuses (a wrong model or key) ends the run.

    Args:
        base_url: URL of its API, such as `http://localhost:8000/v1`.
        model: Name of the model on the server.
        answers: How the server is made to answer in the right form: `json_schema`, by a schema, as vLLM and others
            support it; `json_object`, as any JSON object; `json`, by the prompt alone; `words`, a request in plain
            words for each field, for small models behind a server that can't constrain them.
        temperature: Temperature of the sampling.
        max_tokens: Number of tokens of one answer at most.
        extra: Further fields of the request, such as `{chat_template_kwargs: {enable_thinking: false}}` for Qwen3.
        api_key_variable: Environment variable that holds the key; a server that wants none needs none.
        concurrency: Number of requests at the same time.
        timeout_sec: Time limit of one request.
        max_retries: How often a request is retried.
    """

    base_url: str
    model: str
    answers: Literal["json_schema", "json_object", "json", "words"] = "json_schema"
    temperature: Temperature = 0.9
    max_tokens: Count = 400
    extra: dict[str, Json] = field(default_factory=dict)
    api_key_variable: str = "OPENAI_API_KEY"
    concurrency: Processes = 16
    timeout_sec: Positive = 120.0
    max_retries: Natural = 5

    @property
    def identity(self) -> str:
        asked = [self.model, self.answers, self.temperature, self.max_tokens, self.extra]
        return f"server {json.dumps(asked, sort_keys=True)}"

    def ask(self, requests: Sequence[ChatRequest]) -> list[ChatReply | TransientError]:
        return [self._ask(request) for request in requests]

    def _ask(self, request: ChatRequest) -> ChatReply | TransientError:
        try:
            if self.answers == "words":
                return self._ask_in_words(request)
            options: dict[str, Any] = {}
            if self.answers == "json_schema":
                schema = {"name": "answer", "schema": request.schema, "strict": True}
                options["response_format"] = {"type": "json_schema", "json_schema": schema}
            elif self.answers == "json_object":
                options["response_format"] = {"type": "json_object"}
            return self._complete(request, json_instruction(request.schema), options)
        except TransientError as error:
            return error

    def _ask_in_words(self, request: ChatRequest) -> ChatReply:
        """A request for each field; what is answered is put together as JSON."""
        values: dict[str, str] = {}
        read = written = 0
        for name, held in request.schema["properties"].items():
            allowed = [str(word) for word in held.get("enum", [])]
            only = f"one of these alone: {', '.join(allowed)}" if allowed else f"the {name} alone"
            known = "".join(f"{key}: {value}\n" for key, value in values.items())
            reply = self._complete(request, f"{known}Answer with {only}.", {})
            values[name] = _first_of(allowed, reply.text) if allowed else _first_line(reply)
            read, written = read + reply.input_tokens, written + reply.output_tokens
        return ChatReply(json.dumps(values, ensure_ascii=False), False, read, written)

    def _complete(self, request: ChatRequest, instruction: str, options: dict[str, Any]) -> ChatReply:
        """One completion.

        Raises:
            TransientError: there was none.
        """
        messages: list[Any] = [{"role": "system", "content": request.system}] if request.system else []
        messages.append({"role": "user", "content": f"{request.prompt}\n\n{instruction}"})
        return self._server.request(
            lambda client: client.chat.completions.create(
                model=self.model,
                messages=messages,
                temperature=self.temperature,
                max_tokens=self.max_tokens,
                seed=request.seed,
                extra_body=self.extra,
                **options,
            ),
            _read,
        )

    @functools.cached_property
    def _server(self) -> OpenAIServer:
        return OpenAIServer(self.base_url, self.api_key_variable, self.timeout_sec, self.max_retries)


def _read(completion: Any) -> ChatReply:
    """The answer of a completion, and what it took.

    Raises:
        TransientError: it holds none.
    """
    choices = getattr(completion, "choices", None)
    if not choices or getattr(choices[0], "message", None) is None:
        raise TransientError("got an answer that can't be read (no choices)")
    usage = getattr(completion, "usage", None)
    return ChatReply(
        choices[0].message.content or "",
        choices[0].finish_reason == "length",
        getattr(usage, "prompt_tokens", 0) or 0,
        getattr(usage, "completion_tokens", 0) or 0,
    )


def _first_of(words: Sequence[str], text: str) -> str:
    """The one of some words that comes first in a text; the text itself where there is none."""
    found = re.search(rf"\b({'|'.join(map(re.escape, words))})\b", text, re.IGNORECASE)
    return found[1] if found else text


def _first_line(reply: ChatReply) -> str:
    """The first line with words; up to its last complete sentence where the answer was cut off in it."""
    lines = [line.strip() for line in reply.text.splitlines() if line.strip()]
    if not lines:
        return ""
    return complete_sentences(lines[0]) if reply.cut_off and len(lines) == 1 else lines[0]
