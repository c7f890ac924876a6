"""The spoken questions of a manifest, checked before a model is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_s2s.data.audio import AudioError, AudioReference, Waveform, audio_duration_sec, load_audio
from lightning_s2s.data.dataset import user_audio_items
from lightning_s2s.data.manifest import Manifest, ManifestError


@dataclass(frozen=True)
class EvaluationQuestion:
    """One spoken question of a manifest.

    Attributes:
        id: Its id in the manifest.
        speaker: Voice that asks; "" if unknown.
        pair: Questions of one pair share words and voice and differ only in emotion.
        ambiguous: True if the words fit any emotion, so that only the voice tells which.
        said: Words of the question; "" if unknown.
        emotion: Emotion that it is said with.
        audio: Audio reference, relative to the manifest's folder.
        manifest: The manifest.
        line: Its line there, from 1.
    """

    id: str
    speaker: str
    pair: str
    ambiguous: bool
    said: str
    emotion: str
    audio: str
    manifest: str
    line: int

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> EvaluationQuestion:
        """The question of a manifest's row: the user's first content item with audio.

        Raises:
            ManifestError: The row has no such item, or the item has no emotion to judge the answer by.
        """
        item = next(iter(user_audio_items(row["messages"])), None)
        if item is None:
            problem = "messages: the user says nothing; a spoken question (an item with `audio`) is needed"
            raise ManifestError(row["manifest"], row["line"], "no question", problem)
        if not item.get("emotion"):
            problem = f"emotion: is missing beside the audio {item['audio']!r}; answers are judged by it"
            raise ManifestError(row["manifest"], row["line"], "no emotion", problem)
        return cls(
            id=row["id"],
            speaker=str(row.get("speaker") or ""),
            pair=str(row.get("pair") or row["id"]),
            ambiguous=bool(row.get("ambiguous")),
            said=item.get("transcript") or "",
            emotion=item["emotion"],
            audio=item["audio"],
            manifest=row["manifest"],
            line=row["line"],
        )

    def check(self) -> None:
        """Check the header of the audio.

        Raises:
            ManifestError: The audio cannot be used.
        """
        try:
            audio_duration_sec(AudioReference.parse(self.audio, Path(self.manifest).parent))
        except AudioError as error:
            raise self._error(error) from None

    def load(self, sample_rate: int) -> Waveform:
        """The audio, (T,) float32 in [-1, 1] at `sample_rate` Hz.

        Raises:
            ManifestError: The audio cannot be used.
        """
        try:
            return load_audio(self.audio, Path(self.manifest).parent, sample_rate)
        except AudioError as error:
            raise self._error(error) from None

    def _error(self, error: AudioError) -> ManifestError:
        return ManifestError(self.manifest, self.line, error.reason, str(error))


def read_questions(path: str | Path, limit: int = 0) -> tuple[list[EvaluationQuestion], str]:
    """Read and check the questions of a manifest.

    Args:
        path: The manifest.
        limit: Number of questions, from the start of the manifest; 0 takes all.
    Returns:
        The questions, and the digest of the manifest's content.
    Raises:
        ValueError: There is no such file, a line is invalid, or a row has no question that can be judged.
    """
    manifest = Manifest(path)
    questions = [EvaluationQuestion.from_row(row) for row in manifest.rows()[: limit or None]]
    for question in questions:
        question.check()
    return questions, manifest.digest


def file_names(identities: Iterable[str]) -> list[str]:
    """One file name per id: the id itself if it is a valid name that no earlier id has taken."""
    names: list[str] = []
    taken: set[str] = set()
    for identity in identities:
        name = plain = re.sub(r"[^\w.-]", "_", identity)[:100].lstrip(".") or "_"
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names
