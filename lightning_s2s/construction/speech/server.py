"""Any server with OpenAI's speech endpoint: vLLM-Omni, and servers of CosyVoice, Qwen3-TTS, Kokoro and others."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from lightning_s2s.construction.openai_server import Json, OpenAIServer, TransientError
from lightning_s2s.construction.speech.base import SpeechError, SpeechSynthesizer, decode
from lightning_s2s.support.ranges import Natural, Positive, Processes, checked


@checked
@dataclass
class SpeechServer(SpeechSynthesizer):
    """A server with `POST /v1/audio/speech`, told by `instructions` how to speak.

    Transient faults (429, 5xx, no answer in time, audio that is empty or breaks off) are retried with growing pauses; a
    request that the server refuses (a wrong model, voice or key) ends the run.

    Args:
        base_url: URL of its API, such as `http://localhost:8091/v1`.
        model: Name of the model on the server.
        instructions: How the text is to be spoken, with the fields {emotion} and {style}; empty sends none.
        emotions: Emotion -> words that stand for {emotion}, such as `sad: sad, slow and close to tears`; missing ones
            stand for themselves.
        extra: Further fields of the request, such as `{language: English, task_type: CustomVoice}` of vLLM-Omni.
        api_key_variable: Environment variable that holds the key; a server that wants none needs none.
        concurrency: Number of requests at the same time.
        timeout_sec: Time limit of one request.
        max_retries: How often a request is retried.
    """

    base_url: str
    model: str
    instructions: str = "Speak in a {emotion} voice. {style}"
    emotions: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Json] = field(default_factory=dict)
    api_key_variable: str = "OPENAI_API_KEY"
    concurrency: Processes = 8
    timeout_sec: Positive = 120.0
    max_retries: Natural = 5

    has_emotions = True

    def __post_init__(self) -> None:
        try:
            self._instruct("neutral", "")
        except (KeyError, IndexError, ValueError):
            raise ValueError(
                f"instructions: the only fields are {{emotion}} and {{style}}; got {self.instructions!r}"
            ) from None

    @property
    def identity(self) -> str:
        asked = [self.model, self.instructions, self.emotions, self.extra]
        return f"server {json.dumps(asked, sort_keys=True)}"

    def check(self, voices: Iterable[str]) -> None:
        """A server is asked for the first time when it speaks."""

    def synthesise(
        self, text: str, voice: str, emotion: str = "neutral", style: str = "", speed: float = 1.0
    ) -> tuple[np.ndarray, int]:
        request = {"model": self.model, "voice": voice, "input": text, "response_format": "wav"}
        if instructions := self._instruct(emotion, style):
            request["instructions"] = instructions
        try:
            return self._server.request(
                lambda client: client.audio.speech.create(**request, speed=speed, extra_body=self.extra),
                lambda answer: decode(answer.content),
            )
        except TransientError as error:
            raise SpeechError(str(error)) from None

    def _instruct(self, emotion: str, style: str) -> str:
        return self.instructions.format(emotion=self.emotions.get(emotion, emotion), style=style).strip()

    @functools.cached_property
    def _server(self) -> OpenAIServer:
        return OpenAIServer(self.base_url, self.api_key_variable, self.timeout_sec, self.max_retries)
