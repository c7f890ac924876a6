"""The files of a corpus: the archive of the users' recordings, and the manifests of every stage."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_s2s.construction.dialogue import Candidate, Dialogue, SpokenReply
from lightning_s2s.construction.rows import (
    dialogue_row,
    language_rows,
    speech_row,
    understanding_rows,
    voice_row,
    write_manifest,
)
from lightning_s2s.data.tasks import SPLITS
from lightning_s2s.support.files import replacing

Units = Mapping[str, Sequence[int]]
"""Recording of a reply -> its units."""


@dataclass(frozen=True)
class CorpusFiles:
    """Writes what is kept to `output_dir`.

    Args:
        output: The folder `output_dir`.
        work: The folder `work_dir`, which holds all recordings.
        kept: The dialogues that are written.
        clips: Line's id -> its recording, augmented or not.
        reply_clips: (words, emotion) of a reply -> its recording.
    """

    output: Path
    work: Path
    kept: Sequence[Candidate]
    clips: Mapping[str, str]
    reply_clips: Mapping[tuple[str, str], str]

    def write_questions(self) -> dict[str, str]:
        """Pack the users' recordings uncompressed; the same files give the same archive.

        Returns:
            Line's id -> its recording as `archive:offset:bytes`.
        """
        path, places = self.output / "questions.zip", {}
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name in (name for candidate in self.kept for name in candidate.dialogue.clip_ids):
                info = zipfile.ZipInfo(f"{name}.opus")
                content = (self.work / self.clips[name]).read_bytes()
                archive.writestr(info, content)
                offset = info.header_offset + 30 + len(info.filename.encode())
                places[name] = f"{path.name}:{offset}:{len(content)}"
        return places

    def write_voice(self, replies: Sequence[SpokenReply]) -> None:
        """Manifests of the replies in `work_dir`, to train a codec on."""
        for split in ("train", "validation"):
            spoken = dict.fromkeys((reply.reply, reply.reply_emotion) for reply in replies if reply.split == split)
            rows = (voice_row(words, self.reply_clips[words, emotion]) for words, emotion in spoken)
            write_manifest(self.work / f"replies_{split}.jsonl.gz", rows)

    def write_dialogues(self, places: Mapping[str, str], units: Units) -> None:
        """Manifests of stage 3 and stage 1; `places` is what `write_questions` gave."""
        for split in SPLITS:
            chosen = [
                (candidate, [places[name] for name in candidate.dialogue.clip_ids])
                for candidate in self.kept
                if candidate.dialogue.split == split
            ]
            write_manifest(
                self.output / f"{split}.jsonl.gz",
                (dialogue_row(c, audio, [units[clip] for clip in c.replies]) for c, audio in chosen),
            )
            write_manifest(
                self.output / f"understanding_{split}.jsonl.gz",
                (row for candidate, audio in chosen for row in understanding_rows(candidate, audio)),
            )

    def write_speech(self, replies: Sequence[SpokenReply], units: Units) -> None:
        """Manifests of stage 2."""
        for split in ("train", "validation"):
            chosen = [reply for reply in replies if reply.split == split]
            rows = (speech_row(reply, units[self.reply_clips[reply.reply, reply.reply_emotion]]) for reply in chosen)
            write_manifest(self.output / f"speech_{split}.jsonl.gz", rows)

    def write_language(self, unspoken: Sequence[tuple[Dialogue, bool]]) -> None:
        """Manifests of the LLM: dialogues in words, each with whether the reply is marked as a spoken one."""
        for split in ("train", "validation"):
            chosen = [(dialogue, speak) for dialogue, speak in unspoken if dialogue.split == split]
            rows = (row for dialogue, speak in chosen for row in language_rows(dialogue, speak))
            write_manifest(self.output / f"language_{split}.jsonl.gz", rows)
