"""Corpora of speech recognition and of speech emotion, as they lie on disk -> recordings with words and emotion."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lightning_s2s.data.audio import SUFFIXES
from lightning_s2s.support.wording import unknown_name


@dataclass(frozen=True)
class Recording:
    """One utterance of a corpus.

    Attributes:
        id: unique in the corpus.
        audio: its file, which may be missing.
        text: what is said; "" where the corpus doesn't tell.
        speaker: who says it; "" where the corpus doesn't tell.
        emotion: in lower case; "" without one that annotators agreed on.
        split: the corpus's own part, such as `train-clean-100` or `Session1`; "" where it has none.
        audio_sec: duration, once the file was looked at.
    """

    id: str
    audio: Path
    text: str = ""
    speaker: str = ""
    emotion: str = ""
    split: str = ""
    audio_sec: float = 0.0


def read_librispeech(folder: Path) -> Iterator[Recording]:
    """LibriSpeech and its kin (MLS has another form): `SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt`.

    Its words are in capitals without marks; they become a sentence in lower case.
    """
    for path in sorted(folder.rglob("*.trans.txt")):
        speaker, split = path.parent.parent.name, path.parent.parent.parent.name
        for line in read_lines(path):
            name, _, words = line.partition(" ")
            yield Recording(name, path.parent / f"{name}.flac", words.strip().capitalize(), speaker, split=split)


def read_common_voice(folder: Path) -> Iterator[Recording]:
    """Common Voice, one language: `train.tsv`, `dev.tsv`, `test.tsv`, and `clips/`."""
    for split in ("train", "dev", "test"):
        for path in sorted(folder.rglob(f"{split}.tsv")):
            for row in read_table(path, "path", "sentence"):
                name = row["path"]
                audio = path.parent / "clips" / (name if Path(name).suffix else f"{name}.mp3")
                yield Recording(audio.stem, audio, row["sentence"], row.get("client_id", ""), split=split)


IEMOCAP_EMOTIONS = {
    "neu": "neutral", "hap": "happy", "exc": "excited", "sad": "sad", "ang": "angry", "fru": "frustrated",
    "fea": "fearful", "sur": "surprised", "dis": "disgusted",
}  # fmt: skip
"""`xxx` (no agreement) and `oth` are no emotion."""


def read_iemocap(folder: Path) -> Iterator[Recording]:
    """IEMOCAP: `SessionN/dialog/EmoEvaluation`, `.../transcriptions`, and `SessionN/sentences/wav`."""
    for path in sorted(folder.rglob("dialog/EmoEvaluation/*.txt")):
        session = path.parents[2]
        transcript = session / "dialog" / "transcriptions" / path.name
        lines = read_lines(transcript) if transcript.is_file() else []
        words = {found[1]: found[2] for line in lines if (found := re.match(r"(\S+) \[.*?\]: *(.*)", line))}
        for line in read_lines(path):
            if found := re.match(r"\[[\d.]+ - [\d.]+\]\t(\S+)\t(\w+)\t", line):
                name, label = found.groups()
                speaker = f"{session.name}{name.rpartition('_')[2][:1]}"  # F000, M012: one woman, one man a session
                audio = session / "sentences" / "wav" / path.stem / f"{name}.wav"
                emotion = IEMOCAP_EMOTIONS.get(label, "")
                yield Recording(name, audio, words.get(name, ""), speaker, emotion, session.name)


def read_meld(folder: Path) -> Iterator[Recording]:
    """MELD: `train_sent_emo.csv` and its like, with each video's sound as `dia3_utt0.wav` in a folder of the split's.

    MELD comes as videos: `ffmpeg -i dia3_utt0.mp4 -ac 1 -ar 16000 dia3_utt0.wav` takes the sound out.
    """
    found = [sound for sound in sorted(folder.rglob("dia*_utt*.*")) if sound.suffix in SUFFIXES]
    for split in ("train", "dev", "test"):
        sounds = {sound.stem: sound for sound in found if split in sound.parent.name}
        for path in sorted(folder.rglob(f"{split}_sent_emo.csv")):
            for row in read_table(path, "Dialogue_ID", "Utterance_ID", "Utterance", "Emotion"):
                name = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
                audio = sounds.get(name, path.parent / split / f"{name}.wav")
                text = row["Utterance"].replace("\x92", "'").strip()
                yield Recording(f"{split}-{name}", audio, text, row.get("Speaker", ""), row["Emotion"].lower(), split)


ESD_EMOTIONS = {"中立": "neutral", "快乐": "happy", "伤心": "sad", "生气": "angry", "惊喜": "surprise"}


def read_esd(folder: Path) -> Iterator[Recording]:
    """ESD: `SPEAKER/SPEAKER.txt` and `SPEAKER/EMOTION/[SPLIT/]NAME.wav`."""
    for path in sorted(folder.rglob("*.txt")):
        if path.stem != path.parent.name or not path.stem.isdigit():
            continue
        sounds = {sound.stem: sound for sound in path.parent.rglob("*.wav")}
        for line in read_lines(path):
            name, _, rest = line.partition("\t")
            text, _, label = rest.rpartition("\t")
            if not text:
                continue
            emotion = ESD_EMOTIONS.get(label.strip(), label.strip().lower())
            audio = sounds.get(name.strip(), path.parent / label.strip() / f"{name.strip()}.wav")
            split = audio.parent.name if audio.parent.parent.parent == path.parent else ""
            yield Recording(name.strip(), audio, text.strip(), path.stem, emotion, split)


def read_table_corpus(folder: Path) -> Iterator[Recording]:
    """Any corpus, by a table: CSV or TSV with the column `audio`, and, as there are, id, text, speaker, emotion, split.

    Files of `audio` are looked for from the table's folder on.
    """
    paths = sorted([*folder.glob("*.csv"), *folder.glob("*.tsv")]) if folder.is_dir() else [folder]
    for path in paths:
        for number, row in enumerate(read_table(path, "audio"), start=1):
            text, speaker, emotion, split = (
                (row.get(key) or "").strip() for key in ("text", "speaker", "emotion", "split")
            )
            name = (row.get("id") or f"{path.stem}-{number}").strip()
            yield Recording(name, path.parent / row["audio"], text, speaker, emotion.lower(), split)


CORPORA: dict[str, tuple[Callable[[Path], Iterator[Recording]], str]] = {
    "librispeech": (read_librispeech, "*.trans.txt"),
    "common_voice": (read_common_voice, "train.tsv, dev.tsv or test.tsv"),
    "iemocap": (read_iemocap, "SessionN/dialog/EmoEvaluation/*.txt"),
    "meld": (read_meld, "train_sent_emo.csv, dev_sent_emo.csv or test_sent_emo.csv"),
    "esd": (read_esd, "SPEAKER/SPEAKER.txt"),
    "table": (read_table_corpus, "*.csv or *.tsv"),
}
"""Name -> its reader, and the files that it begins with."""


def read_corpus(kind: str, folder: Path) -> list[Recording]:
    """All recordings of a corpus, in a fixed order.

    Raises:
        ValueError: no such kind, or the folder doesn't hold such a corpus.
    """
    if kind not in CORPORA:
        raise ValueError(unknown_name("corpus", kind, CORPORA))
    reader, files = CORPORA[kind]
    if not folder.exists():
        raise ValueError(f"{folder}: there is no such folder")
    recordings = list(reader(folder))
    if not recordings:
        raise ValueError(f"{folder}: holds no {kind} corpus: found no lines in {files}")
    name, count = Counter(recording.id for recording in recordings).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{folder}: {count} recordings have the id {name!r}; each needs its own")
    return recordings


def read_lines(path: Path) -> list[str]:
    """A text file's lines, not blank. ESD has files in GBK and in UTF-16 among those in UTF-8.

    Raises:
        ValueError: it is none of these.
    """
    content = path.read_bytes()
    encodings = ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "gbk")
    for encoding in encodings:
        try:
            return [line for line in content.decode(encoding).splitlines() if line.strip()]
        except UnicodeDecodeError:
            continue
    raise ValueError(f"{path}: neither UTF-8 nor UTF-16 nor GBK")


def read_table(path: Path, *needed: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV or TSV file with a header.

    Raises:
        ValueError: a column is missing, or a row has more fields than the header.
    """
    tabs = path.suffix == ".tsv"
    reader = csv.DictReader(
        read_lines(path), delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    )
    if missing := [column for column in needed if column not in (reader.fieldnames or ())]:
        raise ValueError(
            f"{path}: lacks the column {missing[0]}; found: {', '.join(reader.fieldnames or ()) or 'none'}"
        )
    for row in reader:
        if None in row or any(row[column] is None for column in needed):
            raise ValueError(f"{path}: line {reader.line_num}: its fields don't fit the header's")
        yield row
