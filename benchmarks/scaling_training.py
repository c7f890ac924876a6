"""What a training step costs as it grows: seconds and memory; the tables of `scaling.py`'s section `training_step`."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from train_step import build_model, make_batch, our_loss

from lightning_s2s.data.batch import DialogueBatch, EncodedAudio
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel

START = {"rows": 4, "text_tokens": 64, "vocabulary": 8_000}
TABLES: dict[str, list[int]] = {
    "rows": [2, 4, 8],
    "text_tokens": [32, 64, 128, 256],
    "vocabulary": [8_000, 32_000, 150_000],
}
UNITS_PER_TOKEN = 3


def prepare(rows: int, text_tokens: int, vocabulary: int) -> tuple[SpeechToSpeechModel, DialogueBatch]:
    """A small model, and a batch that brings its encoder's states along."""
    model = build_model(vocabulary, width=128, num_layers=4)
    batch = make_batch(rows, 4.0, text_tokens, UNITS_PER_TOKEN * text_tokens, vocabulary)
    lengths = batch.waveform_lengths // 640
    states = torch.randn(rows, int(lengths.max()), model.encoder.width)
    return model, replace(batch, encoded=EncodedAudio(states, lengths))


def step_sec(model: SpeechToSpeechModel, batch: DialogueBatch) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    our_loss(model, batch).backward()
    return time.perf_counter() - start


def peak_mib(model: SpeechToSpeechModel, batch: DialogueBatch) -> float:
    """Memory that a step takes beside model and batch, gradients included; by Linux's own account of the peak."""
    model.zero_grad()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free but kept would be used first
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is in use now
    before = memory_mib("VmRSS")
    step_sec(model, batch)
    return memory_mib("VmHWM") - before


def memory_mib(field: str) -> float:
    """`VmRSS`, what the process uses, or `VmHWM`, the most it has used."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(field))) / 1024


def table(name: str, repetitions: int) -> list[str]:
    """The lines of one table: a size, its median seconds and the ratio, its memory in MiB."""
    sizes = [START | {name: value} for value in TABLES[name]]
    prepared = [prepare(**size) for size in sizes]
    times: list[list[float]] = [[] for _ in sizes]
    memory: list[float] = []
    for repetition in range(repetitions + 1):
        for found, (model, batch) in zip(times, prepared, strict=True):
            if repetition:
                found.append(step_sec(model, batch))
            else:  # the first warms up
                memory.append(peak_mib(model, batch))
    medians = [statistics.median(found) for found in times]
    return [
        f"{name} {size[name]:7,}: {median:6.3f} s, {median / medians[0]:5.2f} x, {mib:6.0f} MiB"
        for size, median, mib in zip(sizes, medians, memory, strict=True)
    ]
