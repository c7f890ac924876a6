"""Random access to the lines of a text file, plain or gzipped: indexed in one pass, then read from disk on demand.

There is no cache that could go stale. The file stays open, so that a run keeps reading a file that is replaced; a
checksum of each line detects changes in place.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zlib
from array import array
from gzip import GzipFile
from pathlib import Path
from typing import IO, Any

import numpy as np

from lightning_s2s.data.paths import regular_file

LONGEST_LINE = 2**24
"""Maximum length of a line in bytes."""
LARGEST_RATIO = 100
SMALLEST_BOMB = 2**26
"""A gzip file is refused if it unpacks to more than this many bytes and `LARGEST_RATIO` times its own size."""
_BLOCK = 2**20
_CHANGED = "was changed while it was in use; start again to read the new content"

_BOM = b"\xef\xbb\xbf"
_FOREIGN = {
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"RIFF": "sound (wav)",
    b"fLaC": "sound (flac)",
    b"OggS": "sound (ogg)",
    b"\x7fELF": "a program",
    b"%PDF": "a PDF",
}
"""Magic bytes of other file formats."""


class LineError(ValueError):
    """A line that can't be read.

    Attributes:
        reason: Short name of the problem for counting.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class LineFile:
    """The non-blank lines of a file, by their numbers; lines end in LF, CRLF or CR, and a BOM is skipped.

    A gzip file is unpacked into an anonymous temporary file, which disappears with the process.

    Attributes:
        line_numbers: (L,) int64 numbers of the non-blank lines; blank ones are counted, from 1.
        digest: SHA-256 of the (unpacked) content, hexadecimal.

    Raises:
        ValueError: The file is missing, no regular file, unreadable or of another format.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file = self._open()
        try:
            self._index()
        except OSError as error:
            raise self._unusable(f"can't be read ({error.strerror or error})") from None

    def __len__(self) -> int:
        return len(self.line_numbers)

    def text(self, line: int) -> str:
        """One line without its end; safe to call from several threads and forked processes.

        Raises:
            LineError: The line is too long or not UTF-8.
            ValueError: There is no such line, or the file was changed since it was opened.
        """
        index = int(np.searchsorted(self.line_numbers, line))
        if index == len(self) or self.line_numbers[index] != line:
            raise ValueError(f"{self.path}: has no line {line}, or it is blank")
        length = self._lengths[index]
        if length > LONGEST_LINE:
            raise LineError("too long a line", f"has {length} bytes; at most {LONGEST_LINE} can be read")
        content = os.pread(self._file.fileno(), length, self._starts[index])
        if zlib.crc32(content) != self._checksums[index]:
            raise ValueError(f"{self.path}:{line}: {_CHANGED}")
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            message = f"has bytes that are not UTF-8 (0x{content[error.start]:02x} at byte {error.start + 1})"
            raise LineError("not UTF-8", message) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.digest)

    def _unusable(self, problem: str) -> ValueError:
        return ValueError(f"manifest: {str(self.path)!r} {problem}")

    def _open(self) -> IO[bytes]:
        try:
            file = regular_file(self.path).open("rb", buffering=0)
        except ValueError as error:
            raise ValueError(f"manifest: {error}") from None
        except OSError as error:
            raise self._unusable(f"can't be read ({error.strerror})") from None
        beginning = file.read(8)
        file.seek(0)
        for magic, kind in _FOREIGN.items():
            if beginning.startswith(magic):
                raise self._unusable(f"is {kind}; UTF-8 text with one JSON object a line is needed, plain or gzipped")
        return self._unpack(file) if beginning.startswith(b"\x1f\x8b") else file

    def _unpack(self, file: io.FileIO) -> IO[bytes]:
        """Unpack a gzip file into a temporary file."""
        limit = max(SMALLEST_BOMB, LARGEST_RATIO * os.fstat(file.fileno()).st_size)
        unpacked = tempfile.TemporaryFile(prefix="lightning-s2s-manifest-")  # noqa: SIM115
        try:
            with file, GzipFile(fileobj=file, mode="rb") as content:
                while block := content.read(_BLOCK):
                    unpacked.write(block)
                    if unpacked.tell() > limit:
                        raise self._unusable(
                            f"unpacks to more than {LARGEST_RATIO} times its size ({limit} bytes); give it unpacked"
                        )
            unpacked.flush()
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"manifest: can't read {str(self.path)!r} ({error})") from None
        unpacked.seek(0)
        return unpacked

    def _index(self) -> None:
        """Find the offsets of the lines, block by block."""
        self._starts, self._lengths, self._checksums = array("q"), array("q"), array("I")
        numbers, digest = array("q"), hashlib.sha256()
        start = len(_BOM) if os.pread(self._file.fileno(), len(_BOM), 0) == _BOM else 0
        self._file.seek(start)
        rest, dropped = b"", 0  # an incomplete line; if it is too long, only its first and last byte are kept
        number, finished = 1, False
        while not finished:
            block = self._file.read(_BLOCK)
            digest.update(block)
            finished = not block
            # The last line may lack an end.
            block = rest + (b"\n" if finished and rest else block)
            base = start + dropped
            content = np.frombuffer(block, dtype=np.uint8)
            ends = _line_ends(content)
            begins = np.concatenate([[0], ends + 1])
            solid = np.concatenate([[0], np.cumsum(content > 32)])
            for i in np.flatnonzero(solid[ends] > solid[begins[:-1]]).tolist():
                begin, end = int(begins[i]), int(ends[i])
                first = base + begin if i else start
                self._starts.append(first)
                self._lengths.append(base + end - first)
                self._checksums.append(zlib.crc32(block[begin:end]))
                numbers.append(number + i)
            number += len(ends)
            rest = block[int(begins[-1]) :]
            if len(ends):
                start, dropped = base + int(begins[-1]), 0
            if len(rest) > LONGEST_LINE + 1:
                dropped += len(rest) - 2
                rest = b"x" + rest[-1:]
        self.line_numbers = np.array(numbers, dtype=np.int64)
        self.digest = digest.hexdigest()


def _line_ends(content: np.ndarray) -> np.ndarray:
    """Offsets of line ends: each LF, and each CR that isn't followed by LF. The CR of a CRLF belongs to its line."""
    feeds, returns = content == 10, content == 13
    if returns.any():
        feeds[:-1] |= returns[:-1] & ~feeds[1:]
    return np.flatnonzero(feeds)


def _reopen(path: Path, digest: str) -> LineFile:
    """Unpickle in another process, which must see the same content."""
    lines = LineFile(path)
    if lines.digest != digest:
        raise ValueError(f"{path}: {_CHANGED}")
    return lines
