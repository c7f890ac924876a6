"""A corpus of sweeps, as a manifest to train on and one to validate on."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import soundfile

from parts.sounds import SAMPLE_RATE, sweep

UNIT_RATE_HZ = 25.0
NUM_UNITS = 1000


@dataclass(frozen=True)
class TinyCorpus:
    """Paths and figures of a small corpus of dialogues.

    Half the questions are wav files, half lie in `questions.zip`. Rows of one `pair` share their words and differ in
    `emotion`; replies are spoken, with 25 units a second in 0..999.
    """

    folder: Path
    train: str
    validation: str
    num_train: int
    num_validation: int
    sample_rate: int = SAMPLE_RATE
    unit_rate_hz: float = UNIT_RATE_HZ
    num_units: int = NUM_UNITS


def write_tiny_corpus(folder: Path, num_train: int = 12, num_validation: int = 4) -> TinyCorpus:
    """Write sweeps as questions, replies as units, and two manifests."""
    folder.mkdir(parents=True, exist_ok=True)
    words, emotions, archive = ("the exam", "my boss", "the trip"), ("happy", "sad"), folder / "questions.zip"
    rows = []
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for number in range(num_train + num_validation):
            pair, emotion = number // 2, emotions[number % 2]
            waveform = sweep(0.6 + 0.1 * (number % 7), 150 + 20 * pair, 900 if emotion == "happy" else 100)
            wav = folder / f"q{number:02d}.wav"
            soundfile.write(wav, waveform, SAMPLE_RATE)
            reference = wav.name
            if number % 4 >= 2:
                with file.open(zipfile.ZipInfo(wav.name), "w") as member:
                    member.write(wav.read_bytes())
                info = file.getinfo(wav.name)
                start = info.header_offset + 30 + len(info.filename)
                reference = f"{archive.name}:{start}:{info.file_size}"
                wav.unlink()
            text = f"It is about {words[pair % 3]}."
            units = "".join(f"<|audio_{(37 * number + 11 * i) % NUM_UNITS}|>" for i in range(10 + number % 5))
            question = {"text": "", "audio": reference, "transcript": text, "emotion": emotion}
            reply = {"text": "How nice!" if emotion == "happy" else "I am sorry.", "speech_units": units}
            messages = [{"role": "user", "content": [question]}, {"role": "assistant", "content": [reply]}]
            rows.append({
                "id": f"d{number:02d}", "speaker": f"s{pair % 3}", "pair": f"p{pair}", "ambiguous": True,
                "messages": messages,
            })  # fmt: skip
    manifests = {"train": rows[:num_train], "validation": rows[num_train:]}
    for name, part in manifests.items():
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    paths = [str(folder / f"{name}.jsonl") for name in manifests]
    return TinyCorpus(folder, *paths, num_train, num_validation)
