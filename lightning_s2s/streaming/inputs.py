"""What a caller brings to a session, checked before it enters: one session's nonsense must not reach another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_s2s.data.chat import ROLES
from lightning_s2s.interfaces import SPEAKER_WIDTH

SAMPLE_RATES_HZ = (1_000, 768_000)
"""Lowest and highest rate that audio may have: far outside, resampling would take for ever."""
LOUDEST = 1.5
"""Level above which floats are no samples in [-1, 1]: resampling and lossy codecs overshoot by less."""
INTEGER_SCALES = {"uint8": (128, 2.0**7), "int16": (0, 2.0**15), "int32": (0, 2.0**31)}
"""Offset and full scale of integer samples."""
READ_KEYS = ("text", "audio_text", "speech_units", "speak")
"""Of an item of a message, what the LLM reads."""
DESCRIBING_KEYS = ("transcript", "emotion")
"""What a manifest may say of it beside that."""


def as_samples(waveform: Any) -> Tensor:
    """A caller's audio, an array, tensor or list, as a copy (T,) float32 in [-1, 1]; integers by their full scale.

    Raises:
        ValueError: no real numbers, more than one dimension, too loud for [-1, 1], or NaN or infinite samples.
    """
    if isinstance(waveform, Tensor):
        waveform = waveform.detach().cpu()
        waveform = waveform.float() if waveform.is_floating_point() else waveform
    try:
        array = np.asarray(waveform)
    except (ValueError, TypeError, RuntimeError):
        raise ValueError(f"waveform must be (T,) numbers; got {type(waveform).__name__}") from None
    kind = array.dtype.name
    if not np.issubdtype(array.dtype, np.floating) and kind not in INTEGER_SCALES:
        raise ValueError(f"waveform must be floats in [-1, 1] or {', '.join(INTEGER_SCALES)}; got {kind}")
    if array.ndim != 1:
        raise ValueError(f"waveform must be (T,), mono; got shape {array.shape}")
    if kind in INTEGER_SCALES:
        offset, scale = INTEGER_SCALES[kind]
        array = (array.astype(np.float64) - offset) / scale
    if not np.isfinite(array).all():
        raise ValueError("waveform holds NaN or infinite samples")
    if (loudest := float(np.abs(array).max(initial=0.0))) > LOUDEST:
        raise ValueError(f"waveform reaches {loudest:g}; floats must be in [-1, 1], integers are scaled by their dtype")
    return torch.from_numpy(array.astype(np.float32))


def as_speaker(speaker: Any) -> Tensor:
    """A speaker embedding as a copy (512,) float32; zeros for None.

    Raises:
        ValueError: another shape, no floats, or NaN or infinite numbers.
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
    """Messages of earlier turns, as in a manifest, of which nothing would be left out.

    Raises:
        ValueError: they are no messages, or hold audio, which a session can't hear yet, or a key that it doesn't read.
    """
    if isinstance(history, str | bytes | Mapping) or not isinstance(history, Iterable):
        raise ValueError(f"history must be a list of messages; got {type(history).__name__}")
    messages = list(history)
    for number, message in enumerate(messages):
        where = f"history[{number}]"
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            found = sorted(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
            raise ValueError(f"{where} must have role and content; got {found}")
        if message["role"] not in ROLES:
            raise ValueError(f"{where}: role must be one of {', '.join(ROLES)}; got {message['role']!r}")
        content = message["content"]
        if isinstance(content, str):
            check_text(f"{where}.content", content)
        elif isinstance(content, list | tuple) and all(isinstance(item, Mapping) for item in content):
            for item in content:
                _check_item(item, where)
        else:
            raise ValueError(f"{where}.content must be a text or a list of items; got {type(content).__name__}")
    return [dict(message) for message in messages]


def _check_item(item: Mapping[Any, Any], where: str) -> None:
    given = {key: value for key, value in item.items() if value is not None}
    if given.get("audio"):
        raise ValueError(
            f"{where} has audio {str(given['audio'])[:80]!r}, and a session hears its own question alone; give what "
            "was said as text"
        )
    for key in given:
        if key not in (*READ_KEYS, *DESCRIBING_KEYS, "audio"):
            raise ValueError(f"{where}: unknown key {key!r}; a session reads {', '.join(READ_KEYS)}")
    for key in ("text", "audio_text"):
        if key in given:
            check_text(f"{where}.{key}", given[key])
    if given.get("transcript") and not (given.get("text") or given.get("audio_text")):
        raise ValueError(f"{where} has a transcript alone, which is not read; give it as text")


def check_text(name: str, text: Any) -> str:
    """A text that can be encoded.

    Raises:
        ValueError: it is none, or holds half a character.
    """
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a text; got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds half a character, {text[error.start]!r}, at place {error.start}") from None
    return text
