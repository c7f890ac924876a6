"""Parity with the published GLM-4-Voice tokenizer on tiny random weights: equal units."""

from __future__ import annotations

import json

import pytest
import torch

from lightning_s2s.components.vocoders.glm4_voice import Glm4VoiceVocoder
from lightning_s2s.data.audio import load_audio
from parts.golden import golden_folder

FOLDER, pytestmark = golden_folder(
    "glm4_voice_tokenizer", "tokenizer/config.json", "tokenizer/model.safetensors", "speech.wav", "expected.json"
)


@pytest.fixture(scope="module")
def vocoder() -> Glm4VoiceVocoder:
    tiny = {"input_size": 8, "encoder_size": 8, "attention_heads": 1, "num_blocks": 1, "channels": [8]}
    return Glm4VoiceVocoder(tokenizer=str(FOLDER / "tokenizer"), config={"flow": tiny}).eval()


@pytest.fixture(scope="module")
def speech(vocoder) -> torch.Tensor:
    return torch.from_numpy(load_audio("speech.wav", FOLDER, vocoder.tokenizer_sample_rate))


@pytest.fixture(scope="module")
def expected() -> list[int]:
    return json.loads((FOLDER / "expected.json").read_text())["units"]


def test_units_equal(vocoder, speech, expected):
    units, lengths = vocoder.tokenize(speech.unsqueeze(0), torch.tensor([len(speech)]))
    assert lengths.tolist() == [len(expected)]
    assert units[0].tolist() == expected


def test_units_are_the_same_beside_a_longer_clip(vocoder, speech, expected):
    batch = torch.nn.utils.rnn.pad_sequence([speech, torch.cat([speech, speech.flip(0)])], batch_first=True)
    units, lengths = vocoder.tokenize(batch, torch.tensor([len(speech), 2 * len(speech)]))
    assert units[0, : int(lengths[0])].tolist() == expected
