"""Calls of the Python interface: a ValueError is a refusal, and what is accepted is checked."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

WRONG = 3
"""Exit status of an input that was accepted although it is not what it says; the reason is on standard error."""
LARGEST_DIFFERENCE_SEC = 0.1
"""Between the duration by which batches are made and what decoding gives."""


def build_seeds(folder: str) -> int:
    """See `seeds.build`."""
    from parts.fuzzing.seeds import build

    build(Path(folder))
    return 0


def _refused(error: ValueError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 1


def _wrong(message: str) -> int:
    print(f"accepted, but {message}", file=sys.stderr)
    return WRONG


def load_sound(reference: str, rate: int = 16_000) -> int:
    """Header and samples of one reference, which must agree."""
    from lightning_s2s.data.audio import AudioReference, audio_duration_sec, load_audio

    try:
        duration = audio_duration_sec(AudioReference.parse(reference, "."))
        waveform = load_audio(reference, ".", rate)
    except ValueError as error:
        return _refused(error)
    if waveform.ndim != 1 or waveform.dtype != np.float32 or not np.isfinite(waveform).all():
        return _wrong(f"the waveform is {waveform.dtype} of shape {waveform.shape}, or not finite")
    if abs(len(waveform) / rate - duration) > LARGEST_DIFFERENCE_SEC:
        return _wrong(f"the header says {duration:.2f} s and {len(waveform) / rate:.2f} s are decoded")
    print(f"{duration:.3f} s")
    return 0


def load_rows(tokenizer: str, *manifests: str) -> int:
    """All batches of manifests, as a stage 3 takes them."""
    import torch
    from transformers import AutoTokenizer

    from lightning_s2s.data.chat import ChatTokenizer
    from lightning_s2s.data.datamodule import SpeechDialogueData
    from lightning_s2s.data.requirements import DataRequirements

    tokens = ChatTokenizer(AutoTokenizer.from_pretrained(tokenizer))
    needs = DataRequirements(tokens, sample_rate=16_000, unit_rate_hz=25.0, num_units=1000)
    try:
        data = SpeechDialogueData(validation=list(manifests), batch_duration_sec=30.0)
        data.prepare_split("validation", needs)
        rows = 0
        for batch in data.val_dataloader():
            rows += len(batch.input_ids)
            for name, value in vars(batch).items():
                if isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
                    return _wrong(f"{name} is not finite")
    except ValueError as error:
        return _refused(error)
    print(f"{rows} rows")
    return 0
