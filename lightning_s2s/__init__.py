"""Lightning S2S: train, compare and talk to end-to-end empathetic speech-to-speech language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_s2s.api import SpeechToSpeech

__all__ = ["SpeechToSpeech"]


def __getattr__(name: str) -> Any:
    """Import torch and the model when they are asked for, not with the package."""
    if name in __all__:
        from lightning_s2s import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
