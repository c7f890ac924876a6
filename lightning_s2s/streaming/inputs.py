"""Validation of a session's inputs before it enters the engine: bad input of one session must not affect another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_s2s.data.batch import SPEAKER_WIDTH
from lightning_s2s.data.chat import content_items
from lightning_s2s.data.row_checks import RowProblem, check_row, short, unknown_keys

SAMPLE_RATES_HZ = (1_000, 768_000)
"""Lowest and highest sample rate allowed: far outside this range, resampling would take forever."""


def as_speaker(speaker: Any) -> Tensor:
    """Copy a speaker embedding into a (512,) float32 tensor; None gives zeros.

    Raises:
        ValueError: The shape or dtype is wrong, or a value is NaN or infinite.
    """
    if speaker is None:
        return torch.zeros(SPEAKER_WIDTH)
    try:
        vector = torch.as_tensor(speaker).detach().cpu()
    except (ValueError, TypeError, RuntimeError):
        raise ValueError(f"speaker must be ({SPEAKER_WIDTH},) floats; got {type(speaker).__name__}") from None
    if not vector.is_floating_point() or tuple(vector.shape) != (SPEAKER_WIDTH,):
        kind = str(vector.dtype).removeprefix("torch.")
        raise ValueError(f"speaker must be ({SPEAKER_WIDTH},) floats; got {kind} of shape {tuple(vector.shape)}")
    vector = vector.to(torch.float32, copy=True)
    if not torch.isfinite(vector).all():
        raise ValueError("speaker holds NaN or infinite numbers")
    return vector


def as_history(history: Any) -> list[dict[str, Any]]:
    """Check the messages of earlier turns, which have the format of a manifest's; nothing in them may be ignored.

    Raises:
        ValueError: They are not messages, or contain audio, which a session can't read from its history, or an
            unknown key.
    """
    if isinstance(history, str | bytes | Mapping) or not isinstance(history, Iterable):
        raise ValueError(f"history must be a list of messages; got {short(history)}")
    messages = list(history)
    if not messages:
        return []
    try:
        check_row({"messages": messages})
    except RowProblem as problem:
        raise ValueError(str(problem).replace("messages", "history", 1)) from None
    for number, message in enumerate(messages):
        items = content_items(message["content"])
        if strange := [key for part in (message, *items) for key in part if not isinstance(key, str)]:
            raise ValueError(f"history[{number}]: key {short(strange[0])}, which nothing reads")
        for item in items:
            if item.get("audio"):
                raise ValueError(
                    f"history[{number}]: audio {short(item['audio'])}: a session only encodes its own question; give "
                    "its transcript as text"
                )
            for key in ("text", "audio_text"):
                check_text(f"history[{number}].{key}", item.get(key) or "")
    for unknown in unknown_keys({"messages": messages}):
        raise ValueError(f"history: key {unknown.key!r} of a {unknown.level}, which nothing reads; {unknown.meant}")
    return messages


def check_text(name: str, text: Any) -> str:
    """Return `text` if it is a string that can be encoded.

    Raises:
        ValueError: It is not a string, or contains half a character (a lone surrogate).
    """
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a text; got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds half a character, {text[error.start]!r}, at place {error.start}") from None
    return text
