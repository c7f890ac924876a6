"""Ogg Opus: the same bytes for the same sound, and pages whose checksums are libsndfile's own."""

from __future__ import annotations

import io

import numpy as np
import soundfile as sf

from lightning_s2s.construction.speech.opus import checksum, encode_opus, renumbered

TONE = (0.3 * np.sin(np.arange(48_000) * 0.05)).astype(np.float32)


def test_the_same_sound_gives_the_same_file():
    content = encode_opus(TONE, 16_000)
    assert content == encode_opus(TONE, 16_000) != encode_opus(0.5 * TONE, 16_000)
    waveform, sample_rate = sf.read(io.BytesIO(content), dtype="float32")
    assert (len(waveform), sample_rate) == (48_000, 16_000)
    assert np.sqrt((waveform**2).mean()) > 0.1


def test_only_serial_number_and_checksum_change():
    buffer = io.BytesIO()
    sf.write(buffer, TONE, 16_000, format="OGG", subtype="OPUS")
    original = buffer.getvalue()
    assert checksum(original[:22] + bytes(4) + original[26:47]) == int.from_bytes(original[22:26], "little")
    assert renumbered(original, int.from_bytes(original[14:18], "little")) == original
    changed = renumbered(original, 7)
    pages = original.count(b"OggS")
    assert pages > 2 and sum(a != b for a, b in zip(original, changed, strict=True)) <= 8 * pages
    assert np.array_equal(sf.read(io.BytesIO(changed))[0], sf.read(io.BytesIO(original))[0])
