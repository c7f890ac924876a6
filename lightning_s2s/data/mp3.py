"""Counts the frames of an mp3 file without decoding it.

Without a tag that states their number, decoders guess the length from the first frame's bit rate: with a variable rate
the guess is wrong, and audio beyond it is lost. Formats: ISO/IEC 11172-3 and 13818-3; the tag is Xing's. mutagen makes
the same guess, and neither it nor libsndfile notices a truncated file.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

# kbit/s by (MPEG version 1, layer), for the indices 1..14
_BIT_RATES = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLE_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3")
_LARGEST_GAP = 4096
"""Largest gap, in bytes, that is neither frame nor tag; more is corrupt audio."""
_HEADER = struct.Struct(">I")


class Frame(NamedTuple):
    """Content of a frame's header.

    Attributes:
        length: Size in bytes, including the header.
        num_samples: Samples per channel.
        sample_rate: Sample rate in Hz.
        channels: 1 or 2.
        layer: 1 to 3.
        side: Bytes of side information after the header, which precede the tag (layer 3).
    """

    length: int
    num_samples: int
    sample_rate: int
    channels: int
    layer: int
    side: int

    @property
    def kind(self) -> tuple[int, int, int, int]:
        """The fields that are equal for all frames of a file."""
        return self.num_samples, self.sample_rate, self.channels, self.layer


@lru_cache(maxsize=4096)
def read_frame(header: int) -> Frame | None:
    """Parse a 32-bit header; None if it is invalid or has a free bit rate, whose length is not in the header."""
    version, layer = header >> 19 & 3, 4 - (header >> 17 & 3)
    bits, rate = header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
        return None
    first = version == 3
    sample_rate, padding = _SAMPLE_RATES[version][rate], header >> 9 & 1
    bit_rate = 1000 * _BIT_RATES[first, layer][bits - 1]
    num_samples = 384 if layer == 1 else 1152 if layer == 2 or first else 576
    if layer == 1:
        length = (12 * bit_rate // sample_rate + padding) * 4
    else:
        length = num_samples // 8 * bit_rate // sample_rate + padding
    channels = 1 if header >> 6 & 3 == 3 else 2
    side = (32 if channels == 2 else 17) if first else (17 if channels == 2 else 9)
    return Frame(length, num_samples, sample_rate, channels, layer, side)


def skip_id3(content: bytes, start: int = 0) -> int:
    """Offset at which the tags (ID3v2) before the audio end."""
    while content[start : start + 3] == b"ID3" and start + 10 <= len(content):
        size = 0
        for byte in content[start + 6 : start + 10]:
            size = size << 7 | byte & 0x7F
        start += 10 + size + (10 if content[start + 5] & 0x10 else 0)
    return start


def complete_mp3(content: bytes) -> bytes:
    """The same audio with a tag that states its length.

    Args:
        content: Content of an mp3 file, including tags.
    Returns:
        `content` itself if its tag is right, otherwise its frames after a new tag.
    Raises:
        ValueError: The file is truncated, changes its sample rate or channels, or holds no frames.
    """
    start = skip_id3(content)
    first = _frame_at(content, start)
    if first is None:
        raise ValueError("it has no frame of mp3 at its beginning, or one of free bit rate")
    num_frames, end = _count(content, start, first)
    if first.layer != 3:
        return content
    place = start + 4 + first.side
    tag = content[place : place + 16]
    vbri = content[start + 36 : start + 54]
    stated = stated_bytes = None
    if tag[:4] in (b"Xing", b"Info") and len(tag) == 16:
        flags, frames, size = struct.unpack(">4x3I", tag)
        stated = frames if flags & 1 else None
        stated_bytes = size if flags & 3 == 3 else None
        tagged = True
    elif tagged := vbri[:4] == b"VBRI" and len(vbri) == 18:
        stated_bytes, stated = struct.unpack(">10x2I", vbri)
    num_sounding = num_frames - tagged
    if stated is not None and num_sounding < stated and (stated_bytes is None or end - start < stated_bytes):
        raise ValueError(f"it breaks off: its header states {stated} frames, {num_sounding} are there")
    if stated == num_sounding and tag[:4] in (b"Xing", b"Info"):
        return content
    if not num_sounding:
        raise ValueError("it breaks off: it has no frame behind its header")
    behind_tag = start + first.length if tagged else start
    return _retag(content, start, first, num_sounding, content[behind_tag:end])


def _frame_at(content: bytes, place: int) -> Frame | None:
    return read_frame(*_HEADER.unpack_from(content, place)) if place + 4 <= len(content) else None


def _count(content: bytes, start: int, first: Frame) -> tuple[int, int]:
    """The number of frames from `start`, and the offset at which the last one ends.

    Raises:
        ValueError: The last one is truncated, or the frames are followed by something other than a tag.
    """
    num_frames, place, end = 0, start, start
    while place < len(content):
        frame = _frame_at(content, place)
        if frame is None or frame.kind != first.kind:
            found = _next_frame(content, place, first)
            lost = (len(content) if found is None else found) - place
            if lost > _LARGEST_GAP and not content.startswith(_TAGS, place):
                raise ValueError(f"{lost} bytes behind frame {num_frames} are no sound: it is broken or breaks off")
            if found is None:
                break
            place = found
            continue
        if place + frame.length > len(content):
            raise ValueError(f"it breaks off inside frame {num_frames + 1}")
        num_frames += 1
        place = end = place + frame.length
    trailer = content[end:]
    if len(trailer) < 4 and trailer[:1] == b"\xff":
        raise ValueError(f"it breaks off behind frame {num_frames}")
    other = _frame_at(content, end)
    after = _frame_at(content, end + other.length) if other else None
    if other and after and after.kind == other.kind:
        raise ValueError(f"it changes its sample rate or channels behind frame {num_frames}")
    if not num_frames:
        raise ValueError("it has no whole frame of mp3")
    return num_frames, end


def _next_frame(content: bytes, place: int, first: Frame) -> int | None:
    """Offset of the next two valid frames of the file's kind, or of a last one that ends the file."""
    if content[place : place + 3] == b"ID3":
        place = skip_id3(content, place)
        frame = _frame_at(content, place)
        if frame is not None and frame.kind == first.kind:
            return place
    while (place := content.find(b"\xff", place)) >= 0:
        frame = _frame_at(content, place)
        if frame is not None and frame.kind == first.kind:
            after = _frame_at(content, place + frame.length)
            if place + frame.length == len(content) or (after is not None and after.kind == first.kind):
                return place
        place += 1
    return None


def _empty_frame(content: bytes, start: int, tag: bytes) -> bytes:
    """A silent frame of the same kind as the first one, which may hold a tag."""
    header = _HEADER.unpack_from(content, start)[0] & ~0xF200 | 0x10000 | 14 << 12  # no checksum or padding, widest
    frame = read_frame(header)
    assert frame is not None
    return (_HEADER.pack(header) + b"\0" * frame.side + tag).ljust(frame.length, b"\0")


def _retag(content: bytes, start: int, first: Frame, num_frames: int, sound: bytes) -> bytes:
    """The frames after a tag that states their number.

    Decoders drop the first 529 samples of tagged files, their own delay. An empty frame at the end, whose remaining
    samples the tag declares as padding, makes up for them, so that each frame yields all its samples.
    """
    padding = first.num_samples
    # The count is followed by LAME's tag: name, 12 ignored bytes, and 12 bits each of delay and padding.
    tag = b"Xing" + struct.pack(">2I", 1, num_frames + 1) + b"LAME3.100" + b"\0" * 12 + padding.to_bytes(3, "big")
    return _empty_frame(content, start, tag) + sound + _empty_frame(content, start, b"")
