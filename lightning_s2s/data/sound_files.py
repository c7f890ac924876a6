"""Truncated audio files: compares how much audio a container states with how much it holds.

libsndfile decodes truncated files as far as it can, and guesses the length if a header states none. Here such files are
refused by name, or their header is repaired: the wav from a pipe, an mp3 without a tag.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lightning_s2s.data.mp3 import complete_mp3, read_frame, skip_id3

LARGEST_IN_MEMORY = 2**31
"""Largest file, in bytes, that may be read into memory: mp3, the wav from a pipe, a member of an archive."""
_UNSTATED = 0x7FFF0000
"""Writers to a pipe state a size of 0, or at least this."""
_RAW_SUFFIX = ".raw"
_LARGEST_TRAILER = 2**18
"""Bytes after the last frame of a FLAC file, such as mp3 tags."""
_W64_BEGIN = b"riff" + bytes.fromhex("2e91cf11a5d628db")
_W64 = bytes.fromhex("f3acd3118cd100c04f8edb8a")
"""Suffix of wav's chunk names in a W64 file."""


def complete_source(source: Path | bytes) -> str | BinaryIO:
    """What soundfile must open to read all of the audio.

    Args:
        source: A file, or its content.
    Raises:
        ValueError: The audio is truncated, or its length is unknown; the message is a sentence about "it".
        OSError: The file can't be read.
    """
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        content = _repaired(file, size)
    if content is not None:
        return io.BytesIO(content)
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if source.suffix.lower() == _RAW_SUFFIX:
        raise ValueError("it is raw samples, without a header that says what they are")
    return str(source)


def _repaired(file: BinaryIO, size: int) -> bytes | None:
    """The content to read in place of the file; None if the file states the length that it has."""
    start = file.read(12)
    if size < 12:
        raise ValueError(f"it has {size} bytes, too few for any sound")
    if start[:3] == b"ID3":  # a tag before mp3, or before flac, which libsndfile accepts as well
        content = _read_all(file, size)
        begin = skip_id3(content)
        return _flac(file, begin) if content[begin : begin + 4] == b"fLaC" else _mp3(content)
    if start[:4] in (b"RIFF", b"RIFX", b"RF64") and start[8:] == b"WAVE":
        return _wav(file, size, start[:4])
    if start == _W64_BEGIN:
        _w64(file, size)
    elif start[:4] == b"FORM" and start[8:] in (b"AIFF", b"AIFC"):
        for name, at, stated in _chunks(file, 12, size, ">4sI"):
            if name == b"SSND":
                _check_size(stated, size - at)
                return None
        raise ValueError("it breaks off before its sound")
    elif start[:4] == b".snd":
        offset, stated = struct.unpack(">2I", start[4:])
        if stated != 0xFFFFFFFF:
            _check_size(stated, size - offset)
    elif start[:4] == b"caff":
        for name, at, chunk_size in _chunks(file, 8, size, ">4sq", align=1):
            if name == b"data":
                if chunk_size >= 0:  # -1: all that follows
                    _check_size(chunk_size, size - at)
                return None
        raise ValueError("it breaks off before its sound")
    elif start[:4] == b"OggS":
        _check_ogg(file, size)
    elif start[:4] == b"fLaC":
        return _flac(file, 0)
    elif read_frame(*struct.unpack(">I", start[:4])):
        return _mp3(_read_all(file, size))
    return None


def _read_all(file: BinaryIO, size: int) -> bytes:
    if size > LARGEST_IN_MEMORY:
        raise ValueError(f"it has {size} bytes, of which at most {LARGEST_IN_MEMORY} can be read; cut or convert it")
    file.seek(0)
    return file.read()


def _mp3(content: bytes) -> bytes | None:
    complete = complete_mp3(content)
    return None if complete is content else complete


def _check_size(stated: int, there: int) -> None:
    if stated > there:
        raise ValueError(f"it breaks off: its header states {stated} bytes of sound, {max(there, 0)} are there")


def _chunks(
    file: BinaryIO, at: int, size: int, form: str, align: int = 2, counts_itself: bool = False
) -> Iterator[tuple[bytes, int, int]]:
    """Iterate over the chunks from `at`: name, offset of the content and stated size.

    Args:
        file: The file.
        at: Offset of the first chunk.
        size: Size of the file.
        form: Format of a chunk's header (name and size), for `struct`.
        align: Alignment of chunks in bytes.
        counts_itself: Whether the stated size includes the header.
    """
    header = struct.calcsize(form)
    while 0 <= at <= size - header:
        file.seek(at)
        name, stated = struct.unpack(form, file.read(header))
        if counts_itself:
            stated -= header
        yield name, at + header, stated
        if stated < 0:
            return
        at += header + stated
        at += -at % align


def _wav(file: BinaryIO, size: int, kind: bytes) -> bytes | None:
    """RIFF and its variants for big-endian machines (RIFX) and large files (RF64, EBU Tech 3306)."""
    order = ">" if kind == b"RIFX" else "<"
    large: int | None = None
    for name, at, stated in _chunks(file, 12, size, f"{order}4sI"):
        if name == b"ds64" and kind == b"RF64" and stated >= 16:
            file.seek(at + 8)
            (large,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if name != b"data":
            continue
        there = size - at
        if kind == b"RF64" and stated == 0xFFFFFFFF and large is not None:
            _check_size(large, there)
            if large or not there:
                return None
        elif stated and (stated < _UNSTATED or stated <= there):
            _check_size(stated, there)
            file.seek(at + stated + stated % 2)
            if not _may_follow(file.read(2**20)):
                raise ValueError(
                    f"its header states {stated} bytes of sound, but {there - stated} follow that are something else: "
                    "it was not finished, or is broken"
                )
            return None
        elif not there or (not stated and _only_chunks_follow(file, at, size, f"{order}4sI")):
            return None  # no audio at all
        content = bytearray(_read_all(file, size))
        content[:4] = b"RIFF" if kind == b"RF64" else kind
        content[4:8] = struct.pack(f"{order}I", size - 8)
        content[at - 4 : at] = struct.pack(f"{order}I", there)
        return bytes(content)
    raise ValueError("it breaks off before its sound")


def _may_follow(rest: bytes) -> bool:
    """Whether this may follow the audio of a wav: a chunk, an mp3 tag, padding or nothing."""
    name = rest[:4]
    chunk = name.isascii() and all(chr(byte).isalnum() or byte in b" _-" for byte in name)
    return chunk or name[:3] in (b"ID3", b"TAG") or not rest.strip(b"\0")


def _only_chunks_follow(file: BinaryIO, at: int, size: int, form: str) -> bool:
    """Whether the rest of the file is chunks with printable names, rather than audio."""
    end = at
    for name, start, stated in _chunks(file, at, size, form):
        if not all(32 <= byte < 127 for byte in name):
            return False
        end = start + stated
    return end in (size, size + 1, size - 1) and end > at


def _w64(file: BinaryIO, size: int) -> None:
    """Sony Wave64."""
    for name, at, stated in _chunks(file, 40, size, "<16sq", align=8, counts_itself=True):
        if name == b"data" + _W64:
            _check_size(stated, size - at)
            return
    raise ValueError("it breaks off before its sound")


def _check_ogg(file: BinaryIO, size: int) -> None:
    """Check that pages are contiguous up to one that is marked as the last (Ogg, RFC 3533)."""
    at = 0
    serial: int | None = None
    number, ended = 0, False
    while at < size:
        file.seek(at)
        header = file.read(27)
        if header[:4] != b"OggS":
            if ended:
                return  # a tag after the audio
            raise ValueError(f"it is broken at byte {at}: no page begins where one should")
        if len(header) < 27:
            raise ValueError("it breaks off inside a page")
        flags = header[5]
        page_serial, page_number = struct.unpack_from("<2I", header, 14)
        table = file.read(header[26])
        at += 27 + header[26] + sum(table)
        if len(table) < header[26] or at > size:
            raise ValueError("it breaks off inside a page")
        if serial is None:
            serial, number = page_serial, page_number
        elif page_serial != serial:
            raise ValueError("it holds several streams, of which only the first would be read; give one a file")
        if page_number != number:
            raise ValueError(f"it lacks pages: page {page_number} follows where page {number} should")
        number += 1
        ended = bool(flags & 4)
    if not ended:
        raise ValueError("it breaks off: its last page isn't marked as the end of the stream")


def _flac(file: BinaryIO, start: int) -> bytes | None:
    """FLAC (RFC 9639): the header states the number of samples, and a frame near the end must hold the last of them.

    If the header states none, as in a file from a pipe, the number is taken from the last frame.
    """
    file.seek(start)
    head = file.read(42)
    if len(head) < 42 or head[4] & 0x7F:
        raise ValueError("it breaks off inside its header")
    total = int.from_bytes(head[18:26], "big") & 0xFFFFFFFFF
    largest = int.from_bytes(head[15:18], "big") or 2**19
    size = file.seek(0, io.SEEK_END)
    file.seek(max(start + 42, size - largest - _LARGEST_TRAILER))
    tail = file.read()
    place = len(tail)
    while (place := tail.rfind(b"\xff", 0, place)) >= 0:
        end = _flac_frame_end(tail, place, int.from_bytes(head[10:12], "big"))
        if end is not None and end == (total or end):
            break
    else:
        raise ValueError(f"it breaks off: its header states {total} samples, and no frame brings the last of them")
    if total:
        return None
    content = bytearray(_read_all(file, size))
    stated = int.from_bytes(head[18:26], "big") | min(end, 0xFFFFFFFFF)
    content[start + 18 : start + 26] = stated.to_bytes(8, "big")
    return bytes(content)


def _flac_frame_end(content: bytes, place: int, block_size: int) -> int | None:
    """The number of samples up to the end of the frame whose header is at `place`; None if there is no header.

    Args:
        content: A part of the file.
        place: Offset of the header in it.
        block_size: Samples in a frame, for streams that number frames instead of samples.
    """
    header = content[place : place + 17].ljust(17, b"\0")
    if header[1] & 0xFE != 0xF8 or header[3] & 1:
        return None
    kind, rate_kind, first = header[2] >> 4, header[2] & 15, header[4]
    ones = 8 - (~first & 0xFF).bit_length()  # number of bytes, encoded as in UTF-8
    if ones == 1 or ones == 8 or kind == 0 or rate_kind == 15:
        return None
    number = first & (0x7F >> ones)
    at = 5
    for at in range(6, 5 + max(ones, 1)):
        number = number << 6 | header[at - 1] & 0x3F
    if kind in (6, 7):
        samples = int.from_bytes(header[at : at + kind - 5], "big") + 1
        at += kind - 5
    else:
        samples = 192 if kind == 1 else 576 << (kind - 2) if kind <= 5 else 256 << (kind - 8)
    at += {12: 1, 13: 2, 14: 2}.get(rate_kind, 0)
    if place + at >= len(content) or _crc8(header[:at]) != header[at]:
        return None
    return (number if header[1] & 1 else number * block_size) + samples


def _crc8(content: bytes) -> int:
    value = 0
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ (0x07 if value & 0x80 else 0)) & 0xFF
    return value
