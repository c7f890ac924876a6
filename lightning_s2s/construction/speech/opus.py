"""Ogg Opus whose bytes depend on the sound alone."""

from __future__ import annotations

import io
import zlib

import numpy as np
import soundfile as sf

MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Each byte with its bits in the other order."""


def encode_opus(waveform: np.ndarray, sample_rate: int) -> bytes:
    """(T,) float32 at 8, 12, 16, 24 or 48 kHz -> an Ogg Opus file.

    libsndfile draws each stream's serial number at random; here it is 1, so that the same sound gives the same file.
    """
    buffer = io.BytesIO()
    sf.write(buffer, waveform, sample_rate, format="OGG", subtype="OPUS", compression_level=0.97)
    return renumbered(buffer.getvalue(), 1)


def renumbered(ogg: bytes, serial: int) -> bytes:
    """An Ogg file with another serial number on every page (RFC 3533, Sec. 6)."""
    pages, start = [], 0
    while start < len(ogg):
        body = start + 27 + ogg[start + 26]
        end = body + sum(ogg[start + 27 : body])
        page = bytearray(ogg[start:end])
        page[14:18] = serial.to_bytes(4, "little")
        page[22:26] = bytes(4)
        page[22:26] = checksum(page).to_bytes(4, "little")
        pages.append(bytes(page))
        start = end
    return b"".join(pages)


def checksum(page: bytes | bytearray) -> int:
    """Ogg's CRC: zlib's polynomial, with the bits in the other order, from 0, not inverted."""
    mirrored = zlib.crc32(bytes(page).translate(MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
