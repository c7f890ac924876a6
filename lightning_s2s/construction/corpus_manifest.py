"""Recordings of a corpus -> a manifest for stage 1 or 2; an LLM's continuations survive a kill."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from lightning_s2s.construction.continuations import ContinuationWriter, continuation_prompt
from lightning_s2s.construction.readers import Recording, read_corpus
from lightning_s2s.construction.rows import reading_row, recording_rows, write_manifest
from lightning_s2s.data.audio import AudioError, AudioReference, audio_duration_sec
from lightning_s2s.support.journal import Journal
from lightning_s2s.support.ranges import Count, Device, NonNegative, Positive, checked
from lightning_s2s.support.wording import counted, unknown_name

TASKS = ("transcribe", "emotion", "continue")


@checked
@dataclass
class ManifestConfig:
    """A corpus on disk as a manifest.

    Args:
        corpus: Kind of the corpus: librispeech, common_voice, iemocap, meld, esd, or table.
        folder: Folder of the corpus.
        out: The manifest, JSONL, plain or `.gz`.
        stage: Either `understanding` for stage 1, or `speech` for stage 2, to which `lightning-s2s units` then adds the
            units.
        tasks: Tasks of stage 1: transcribe, emotion, continue.
        splits: Parts of the corpus that are used; all by default.
        emotions: Emotions that are used, as the corpus or `rename` names them; all by default.
        rename: Emotion of the corpus -> name in the manifest, such as `{excited: happy}`.
        min_sec: Shorter recordings are left out.
        max_sec: Longer recordings are left out.
        limit: Number of recordings at most, evenly from the corpus; None uses all.
        llm: For the task `continue`, hub id or folder of the LLM that will be trained on its own words.
        max_new_tokens: Number of tokens of a continuation at most.
        batch_size: Number of recordings in a batch of the LLM.
        device: Device on which the LLM runs: cpu, cuda, ...

    Raises:
        ValueError: an unknown task, a task without what it needs, or a range upside down.
    """

    corpus: str
    folder: str
    out: str
    stage: Literal["understanding", "speech"] = "understanding"
    tasks: list[str] = field(default_factory=lambda: ["transcribe", "emotion"])
    splits: list[str] | None = None
    emotions: list[str] | None = None
    rename: dict[str, str] = field(default_factory=dict)
    min_sec: NonNegative = 0.5
    max_sec: Positive = 30.0
    limit: Count | None = None
    llm: str | None = None
    max_new_tokens: Count = 64
    batch_size: Count = 16
    device: Device = "cpu"

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in TASKS:
                raise ValueError(f"tasks: {unknown_name('task', task, TASKS)}")
        if self.stage == "understanding" and ("continue" in self.tasks) != (self.llm is not None):
            raise ValueError("llm: the task continue needs one, and nothing else does")
        if not 0 < self.min_sec < self.max_sec:
            raise ValueError(f"min_sec, max_sec: must be rising and above 0; got {self.min_sec:g}, {self.max_sec:g}")


@dataclass
class ManifestReport:
    """What was made.

    Attributes:
        num_recordings: Number of recordings with at least one row.
        num_rows: Number of rows.
        hours: Hours of audio, each recording counted once.
        emotions: Emotion -> number of recordings.
        left_out: Reason -> number of recordings.
    """

    num_recordings: int = 0
    num_rows: int = 0
    hours: float = 0.0
    emotions: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


def make_manifest(config: ManifestConfig) -> ManifestReport:
    """Write the manifest; it appears complete, at the end.

    Continuations are kept in `OUT.partial` after every batch: a killed run resumes from there.

    Raises:
        ValueError: the corpus can't be read, nothing of it is left, or `out` can't be written.
    """
    out = Path(config.out)
    if not out.parent.is_dir():
        raise ValueError(f"{out}: the folder {out.parent} does not exist")
    if out.exists():
        raise ValueError(f"{out}: exists already; remove it or give another name")
    report = ManifestReport()
    chosen = choose(read_corpus(config.corpus, Path(config.folder)), config, report)
    continuations = write_continuations(chosen, config) if config.stage == "understanding" and config.llm else {}
    rows = []
    for recording in chosen:
        audio = os.path.relpath(recording.audio.resolve(), out.parent.resolve())
        if config.stage == "speech":
            found = [reading_row(recording, audio)] if recording.text else []
        else:
            found = list(recording_rows(recording, audio, config.tasks, continuations.get(recording.id, "")))
        if not found:
            report.left_out["nothing to learn for these tasks"] += 1
            continue
        rows += found
        report.num_recordings += 1
        report.hours += recording.audio_sec / 3600
        report.emotions[recording.emotion or "no emotion"] += 1
    report.num_rows = len(rows)
    if not rows:
        raise ValueError(f"{config.folder}: nothing is left of this corpus: {describe(report.left_out)}")
    write_manifest(out, rows)
    partial_path(out).unlink(missing_ok=True)
    return report


def choose(recordings: Sequence[Recording], config: ManifestConfig, report: ManifestReport) -> list[Recording]:
    """The recordings that fit the options; the others are counted by reason.

    Raises:
        ValueError: a split, or an emotion, that the corpus doesn't have.
    """
    recordings = [replace(r, emotion=config.rename.get(r.emotion, r.emotion)) for r in recordings]
    for option, kind in (("splits", "split"), ("emotions", "emotion")):
        there = {value for recording in recordings if (value := getattr(recording, kind))}
        for wanted in getattr(config, option) or []:
            if wanted not in there:
                raise ValueError(f"{option}: {unknown_name(kind, wanted, there)}")
    fitting = []
    with ThreadPoolExecutor(8) as pool:  # reading headers waits for the disk
        for recording, found in zip(recordings, pool.map(partial(_look, config=config), recordings), strict=True):
            if isinstance(found, str):
                report.left_out[found] += 1
            else:
                fitting.append(replace(recording, audio_sec=found))
    if config.limit is None or config.limit >= len(fitting):
        return fitting
    report.left_out["over the limit"] += len(fitting) - config.limit
    return [fitting[number * len(fitting) // config.limit] for number in range(config.limit)]


def _look(recording: Recording, config: ManifestConfig) -> float | str:
    """The duration in seconds, or why the recording is left out."""
    if config.splits is not None and recording.split not in config.splits:
        return "another split"
    if config.emotions is not None and recording.emotion not in config.emotions:
        return "another emotion, or none"
    try:
        seconds = round(audio_duration_sec(AudioReference.parse(str(recording.audio), "")), 3)
    except AudioError as error:
        return error.reason
    if not config.min_sec <= seconds <= config.max_sec:
        return f"not {config.min_sec:g} to {config.max_sec:g} s long"
    return seconds


def write_continuations(recordings: Sequence[Recording], config: ManifestConfig) -> dict[str, str]:
    """Recording's id -> what the LLM says to its words. Finished batches are taken from `OUT.partial`."""
    from tqdm import tqdm

    with_words = [recording for recording in recordings if recording.text]
    settings = {"llm": config.llm, "max_new_tokens": config.max_new_tokens}
    with Journal(partial_path(Path(config.out)), settings, "manifest") as journal:
        prompts = {recording.id: continuation_prompt(recording) for recording in with_words}
        waiting = [r for r in with_words if r.id not in journal or journal[r.id][0] != prompts[r.id]]
        # By length, so that a batch has little padding.
        waiting.sort(key=lambda recording: (len(recording.text), recording.id))
        with tqdm(total=len(with_words), initial=len(with_words) - len(waiting), desc="continuations") as bar:
            writer = None
            for start in range(0, len(waiting), config.batch_size):
                batch = waiting[start : start + config.batch_size]
                writer = writer or ContinuationWriter(config.llm or "", config.max_new_tokens, config.device)
                texts = writer.write(batch)
                journal.add((r.id, [prompts[r.id], text]) for r, text in zip(batch, texts, strict=True))
                bar.update(len(batch))
        return {recording.id: journal[recording.id][1] for recording in with_words}


def partial_path(out: Path) -> Path:
    """File that keeps continuations until the manifest is complete."""
    return out.with_name(out.name + ".partial")


def describe(counts: Counter[str]) -> str:
    """`3 x no such file; 1 x another split`."""
    return counted(counts) or "nothing was left out"
