"""The interface of the LLMs that write and judge."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_s2s.construction.openai_server import TransientError
from lightning_s2s.construction.running.base import Portable


@dataclass(frozen=True)
class ChatRequest:
    """One prompt.

    Attributes:
        prompt: What the user says, without a word on the answer's form.
        system: System prompt; "" for none.
        schema: JSON schema of the answer.
        seed: Seed of the sampling.
    """

    prompt: str
    system: str
    schema: dict[str, Any]
    seed: int


@dataclass(frozen=True)
class ChatReply:
    """One answer.

    Attributes:
        text: The answer as it was written, JSON if all went well.
        cut_off: Whether it was longer than allowed.
        input_tokens: Number of tokens that were read.
        output_tokens: Number of tokens that were written.
    """

    text: str
    cut_off: bool = False
    input_tokens: int = 0
    output_tokens: int = 0


def json_instruction(schema: dict[str, Any]) -> str:
    """What stands behind a prompt, so that the answer follows the schema also where nothing constrains it."""
    shown = {
        name: " or ".join(map(str, held["enum"])) if "enum" in held else "..."
        for name, held in schema["properties"].items()
    }
    return f"Answer in JSON: {json.dumps(shown)}"


class ChatModel(Portable, ABC):
    """Prompts -> answers in JSON.

    A subclass is chosen by its name, and goes to other processes, as `SpeechSynthesizer`'s.
    """

    batch_size: int = 1
    """Dialogues that are written in one batch."""
    concurrency: int = 1
    """Batches that it may be asked for at the same time, from as many threads."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What tells its answers from those of others: the model, and how it is sampled."""

    @abstractmethod
    def ask(self, requests: Sequence[ChatRequest]) -> list[ChatReply | TransientError]:
        """The answer to each request, or why there is none.

        Raises:
            ValueError: there can be none to any, as where a server is not there.
        """
