"""Recordings of manifests whose emotion is known, and their features."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lightning_s2s.construction.emotion_classifier.features import SAMPLE_RATE, prosody_features
from lightning_s2s.data.audio import AudioError, load_audio
from lightning_s2s.data.augmentation import ClipAugmentation, augment
from lightning_s2s.data.dataset import user_audio_items
from lightning_s2s.data.effects import COLOURS
from lightning_s2s.data.manifest import ManifestError, read_manifest


@dataclass(frozen=True)
class ClipJob:
    """One clip to measure, apart from the rest so that another process can do it.

    Attributes:
        audio: Reference as in a manifest.
        folder: Folder in which relative paths start.
        manifest: Manifest that names the clip, for messages.
        line: Line of the manifest, for messages.
        noise: Noise that is added to the clip.
    """

    audio: str
    folder: str
    manifest: str
    line: int
    noise: ClipAugmentation | None = None

    def with_noise(self, snr_db: tuple[float, float], rng: random.Random) -> ClipJob:
        """The same clip under noise of a drawn colour, at a level drawn from [lowest, highest]."""
        noise = ClipAugmentation(noise=rng.choice(COLOURS), snr_db=rng.uniform(*snr_db), seed=rng.getrandbits(32))
        return replace(self, noise=noise)


@dataclass
class LabelledClips:
    """The clips of one manifest.

    Attributes:
        path: The manifest.
        jobs: What to measure.
        emotions: Emotion of each clip.
        speakers: Speakers of all clips.
    """

    path: str
    jobs: list[ClipJob] = field(default_factory=list)
    emotions: list[str] = field(default_factory=list)
    speakers: set[str] = field(default_factory=set)


def read_clips(path: str) -> LabelledClips:
    """The user's recordings with an emotion, each once however many rows have it.

    Raises:
        ValueError: The manifest can't be read, has no such recordings, or a row with some lacks its `speaker`.
    """
    clips, seen = LabelledClips(path), set()
    for row in read_manifest(path):
        for item in user_audio_items(row["messages"]):
            audio, emotion = item["audio"], item.get("emotion")
            if not emotion or audio in seen:
                continue
            if not isinstance(row.get("speaker"), str) or not row["speaker"]:
                message = f"speaker: got {row.get('speaker')!r}; a name is needed, no speaker may be in two splits"
                raise ManifestError(row["manifest"], row["line"], "no speaker", message)
            seen.add(audio)
            clips.jobs.append(ClipJob(audio, row["folder"], row["manifest"], row["line"]))
            clips.emotions.append(emotion)
            clips.speakers.add(row["speaker"])
    if not clips.jobs:
        raise ValueError(f"{path}: no user item has audio and an emotion")
    return clips


def check_splits(splits: Mapping[str, LabelledClips]) -> tuple[str, ...]:
    """The emotions of the training clips, sorted.

    Raises:
        ValueError: There are fewer than two, another split has others, or two splits share a speaker.
    """
    emotions = tuple(sorted(set(splits["train"].emotions)))
    if len(emotions) < 2:
        raise ValueError(f"{splits['train'].path}: has the emotion {emotions[0]!r} alone; at least two are needed")
    for name, other in (("train", "test"), ("validation", "test"), ("train", "validation")):
        shared = sorted(splits[name].speakers & splits[other].speakers)
        if shared:
            raise ValueError(
                f"{other}: {splits[other].path} shares the speaker {shared[0]!r} with {name}, {splits[name].path}; "
                "a speaker may be in one split alone"
            )
    for name in ("validation", "test"):
        for job, emotion in zip(splits[name].jobs, splits[name].emotions, strict=True):
            if emotion not in emotions:
                message = f"emotion: got {emotion!r}; the training clips have {', '.join(emotions)}"
                raise ManifestError(job.manifest, job.line, "unknown emotion", message)
    return emotions


def measure_clips(jobs: Sequence[ClipJob], processes: int) -> np.ndarray:
    """(clips, N) float32; the order is that of the jobs however many processes there are.

    Raises:
        ManifestError: A clip's audio can't be used.
    """
    from tqdm import tqdm

    if processes == 1:
        return np.stack([_measure(job) for job in tqdm(jobs, desc="prosody", unit="clip")])
    # Forking after torch has started its threads can hang.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        rows = pool.imap(_measure, jobs, chunksize=16)
        return np.stack(list(tqdm(rows, total=len(jobs), desc="prosody", unit="clip")))


def _measure(job: ClipJob) -> np.ndarray:
    try:
        waveform = load_audio(job.audio, job.folder, SAMPLE_RATE)
    except AudioError as error:
        raise ManifestError(job.manifest, job.line, error.reason, str(error)) from None
    if job.noise:
        waveform = augment(waveform, SAMPLE_RATE, job.noise).waveform
    return prosody_features(waveform, SAMPLE_RATE)
