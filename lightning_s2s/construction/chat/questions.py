"""Questions whose answers are small JSON objects: schema, repair, check, and asking again where it does not help."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_s2s.construction.chat.base import ChatModel, ChatRequest
from lightning_s2s.construction.openai_server import TransientError
from lightning_s2s.construction.usage import count_problem, count_tokens

QUOTES = "\"'\u201c\u201d\u2018\u2019\u00ab\u00bb"
NOT_SPOKEN = re.compile(
    "[*_#`~<>{}\\[\\]|\\\\]|[\U0001f000-\U0001faff\u2600-\u27bf\ufe0f\u200d]"  # markdown and emoji
)
STAGE_DIRECTION = re.compile(r"\([^)]*\)|(?<!\*)\*[^*]+\*(?!\*)")  # (sighs), *sighs*; **this** is stressed


@dataclass(frozen=True)
class Text:
    """A field of spoken words."""

    max_words: int = 60

    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        return {"type": "string"}

    def read(self, value: Any) -> str:
        """The words alone: no markdown, emoji, stage directions, or quotes around them.

        Raises:
            ValueError: it is no text, empty, or too long.
        """
        if not isinstance(value, str):
            raise ValueError("is no text")
        words = NOT_SPOKEN.sub("", STAGE_DIRECTION.sub(" ", value)).split()
        text = " ".join(words)
        if len(text) > 1 and text[0] in QUOTES and text[-1] in QUOTES:
            text = text[1:-1].strip()
        if not any(character.isalnum() for character in text):
            raise ValueError("is empty")
        if len(words) > self.max_words:
            raise ValueError(f"has over {self.max_words} words")
        return text


@dataclass(frozen=True)
class Choice:
    """A field that holds one of some words."""

    words: tuple[str, ...]

    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        return {"type": "string", "enum": list(self.words)}

    def read(self, value: Any) -> str:
        """The word.

        Raises:
            ValueError: it is none of them.
        """
        word = str(value).strip().strip(QUOTES + ".").lower()
        for allowed in self.words:
            if allowed.lower() == word:
                return allowed
        raise ValueError(f"is none of {', '.join(self.words)}")


@dataclass(frozen=True)
class Number:
    """A field that holds a whole number."""

    lowest: int
    highest: int

    def schema(self) -> dict[str, Any]:
        """Its JSON schema; an enumeration, since not every server knows bounds."""
        return {"type": "integer", "enum": list(range(self.lowest, self.highest + 1))}

    def read(self, value: Any) -> int:
        """The number.

        Raises:
            ValueError: it is none, or out of bounds.
        """
        found = re.fullmatch(r"\s*(-?\d+)(?:\.0+)?(?:\s*/\s*\d+)?\s*", str(value))
        if not found or not self.lowest <= int(found[1]) <= self.highest:
            raise ValueError(f"is no number from {self.lowest} to {self.highest}")
        return int(found[1])


Field = Text | Choice | Number


@dataclass(frozen=True)
class Question:
    """What an LLM is asked.

    Attributes:
        prompt: The words.
        fields: Key of the answer -> what it holds, in the order in which they are written.
        seed: Seed of the sampling; asking again takes another one.
        system: System prompt.
    """

    prompt: str
    fields: Mapping[str, Field]
    seed: int
    system: str = ""

    def schema(self) -> dict[str, Any]:
        """JSON schema of the answer, in the strict form that servers ask for."""
        properties = {name: held.schema() for name, held in self.fields.items()}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def read(self, text: str) -> dict[str, Any]:
        """The answer's fields, from text that may need repair.

        Raises:
            ValueError: a field is missing or wrong; the message is without the text, so that it can be counted.
        """
        values = _find_object(text)
        if values is None and len(self.fields) == 1 and re.fullmatch(r'\s*"[^"{}]+"\s*', text):
            values = {next(iter(self.fields)): text.strip()}  # the words alone, as small models like to answer
        if values is None:
            raise ValueError("empty answer" if not text.strip() else "no JSON object")
        found = {}
        for name, held in self.fields.items():
            if name not in values:
                raise ValueError(f"{name} is missing")
            try:
                found[name] = held.read(values[name])
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
        return found


@dataclass
class ParsedAnswer:
    """The answer to a question, read and checked.

    Attributes:
        values: Field -> content; None where there is no usable answer.
        reason: Why there is none.
        text: What the LLM wrote last.
        transient: Whether the request failed, not the answer, so that asking later may help.
    """

    values: dict[str, Any] | None = None
    reason: str = "was not asked"
    text: str = ""
    transient: bool = False


def ask_questions(chat: ChatModel, questions: Sequence[Question], attempts: int) -> list[ParsedAnswer]:
    """Ask, and ask those again whose answer was malformed, each time with another seed.

    Args:
        chat: The LLM.
        questions: Questions, asked together where the LLM answers in batches.
        attempts: How often a question is asked at most; malformed answers are counted, see `track_usage`.

    Raises:
        ValueError: The LLM can't be asked at all.
    """
    answers = [ParsedAnswer() for _ in questions]
    rest = list(zip(questions, answers, strict=True))
    for attempt in range(attempts):
        requests = [ChatRequest(q.prompt, q.system, q.schema(), q.seed + attempt) for q, _ in rest]
        for (question, answer), reply in zip(rest, chat.ask(requests) if requests else [], strict=True):
            if isinstance(reply, TransientError):
                answer.reason, answer.transient = str(reply), True
                continue
            count_tokens(reply.input_tokens, reply.output_tokens)
            answer.text = reply.text
            try:
                if reply.cut_off:
                    raise ValueError("longer than the tokens allowed")
                answer.values, answer.reason = question.read(reply.text), ""
            except ValueError as error:
                answer.reason = f"malformed: {error}"
                count_problem(answer.reason)
        rest = [(question, answer) for question, answer in rest if answer.values is None and not answer.transient]
    return answers


def _find_object(text: str) -> dict[str, Any] | None:
    """The JSON object in a text: thoughts, fences and words around it, and small mistakes in it, do not matter."""
    import json_repair

    text = text.rpartition("</think>")[2]
    start = text.find("{")
    if start < 0:
        return None
    try:
        values, _ = json.JSONDecoder().raw_decode(text[start:])
    except json.JSONDecodeError:
        values = json_repair.loads(text[start:])
    if isinstance(values, list):  # an object, and words behind it
        values = next((value for value in values if isinstance(value, dict)), None)
    return values if isinstance(values, dict) and values else None
