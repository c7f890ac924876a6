"""Word error of speech: what is listened to, and what is counted; the listener is a fake that hears what it is told."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch

from lightning_s2s.components.vocoders.pocket import PocketVocoder
from lightning_s2s.evaluation import speech
from parts.paths import EXPERIMENTS

POCKET = str(EXPERIMENTS / "tiny" / "pocket")


def manifest(folder, *items: dict):
    path = folder / "replies.jsonl"
    rows = [{"id": str(i), "messages": [{"role": "assistant", "content": [item]}]} for i, item in enumerate(items)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_units_and_recordings_are_resynthesised_alike(tmp_path, monkeypatch):
    noise = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", noise, 16_000, subtype="FLOAT")
    units, _ = PocketVocoder(POCKET).eval().tokenize(torch.from_numpy(noise)[None], torch.tensor([16_000]))
    heard = []
    monkeypatch.setattr(speech, "Transcriber", lambda name: lambda waveform: heard.append(waveform) or "It's a cat")
    figures = speech.evaluate_speech(
        speech.EvaluateSpeechConfig(
            vocoder=POCKET,
            manifest=manifest(
                tmp_path,
                {"text": "It is a cat.", "speech_units": "".join(f"<|audio_{unit}|>" for unit in units[0].tolist())},
                {"text": "It is the cat.", "audio": "a.wav", "speech_units": ""},
                {"text": "Written only.", "audio": "", "speech_units": ""},
            ),
            output_dir=str(tmp_path / "figures"),
        )
    )
    assert json.loads((tmp_path / "figures" / "figures.json").read_text()) == figures
    assert figures == {"word_error_rate": 1 / 8, "sentences": 2}  # one of eight words, contractions opened
    assert heard[0].shape == (16_000,)
    np.testing.assert_array_equal(heard[0], heard[1])


def test_nothing_spoken_is_an_error_that_names_the_manifest(tmp_path):
    path = manifest(tmp_path, {"text": "Written only.", "audio": "", "speech_units": ""})
    with pytest.raises(ValueError, match=r"replies\.jsonl: nothing to listen to; expected replies with text and units"):
        speech.evaluate_speech(speech.EvaluateSpeechConfig(vocoder=POCKET, manifest=path))


def test_sources_exclude_each_other():
    with pytest.raises(ValueError, match="exactly one of answers, vocoder, model; got answers, model"):
        speech.evaluate_speech(speech.EvaluateSpeechConfig(answers="a", model="b"))
