"""From a manifest of spoken dialogues to batches. Names are loaded on first use: importing this package is cheap."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_s2s.data.audio import load_audio
    from lightning_s2s.data.batch import AUDIO_PLACEHOLDER
    from lightning_s2s.data.batching import DurationBatchSampler
    from lightning_s2s.data.chat import ChatTokenizer, EncodedDialogue
    from lightning_s2s.data.collate import collate_dialogues, collate_vocoder
    from lightning_s2s.data.datamodule import SpeechDialogueData
    from lightning_s2s.data.dataset import Example, SpeechDialogueDataset
    from lightning_s2s.data.manifest import ManifestError, Row, parse_units, read_manifest
    from lightning_s2s.data.requirements import DataRequirements

_HOMES = {
    "AUDIO_PLACEHOLDER": "batch",
    "ChatTokenizer": "chat",
    "DataRequirements": "requirements",
    "DurationBatchSampler": "batching",
    "EncodedDialogue": "chat",
    "Example": "dataset",
    "ManifestError": "manifest",
    "Row": "manifest",
    "SpeechDialogueData": "datamodule",
    "SpeechDialogueDataset": "dataset",
    "collate_dialogues": "collate",
    "collate_vocoder": "collate",
    "load_audio": "audio",
    "parse_units": "manifest",
    "read_manifest": "manifest",
}

__all__ = [
    "AUDIO_PLACEHOLDER",
    "ChatTokenizer",
    "DataRequirements",
    "DurationBatchSampler",
    "EncodedDialogue",
    "Example",
    "ManifestError",
    "Row",
    "SpeechDialogueData",
    "SpeechDialogueDataset",
    "collate_dialogues",
    "collate_vocoder",
    "load_audio",
    "parse_units",
    "read_manifest",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
