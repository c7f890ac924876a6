"""Manifests: JSON lines of spoken dialogues, checked line by line.

A line as published with OpenS2S (arXiv:2507.05177). Content items may have `transcript`, `emotion`, `audio_text`
(instead of `audio`, for training an LLM on text only) and `audio_sec` (the duration, which saves opening the file):

    {"messages": [{"role": "user", "content": [{"text": "", "audio": "q.wav"}]},
                  {"role": "assistant", "content": [{"text": "Hello.", "speech_units": "<|audio_0|><|audio_1|>"}]}]}
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lightning_s2s.data.batch import SPEAKER_WIDTH
from lightning_s2s.data.chat import content_items
from lightning_s2s.data.lines import LineError, LineFile
from lightning_s2s.data.paths import regular_file
from lightning_s2s.data.row_checks import RowProblem, UnknownKey, check_row, parse_object, short, unknown_keys

log = logging.getLogger(__name__)

T = TypeVar("T")
Row = dict[str, Any]
"""A line of a manifest, with `id` (from file and line if absent), `manifest`, `line` (from 1) and `folder` added."""

LARGEST_SPEAKER_FILE = 2**20
"""Maximum size in bytes; 512 numbers take 4 KiB."""
LARGEST_UNIT = 2**31 - 1
MOST_WARNINGS = 20
"""Maximum number of unknown keys that are named in warnings."""
_UNIT = re.compile(r"<\|audio_([0-9]+)\|>")


class ManifestError(ValueError):
    """A line that can't be used; its message starts with `FILE:LINE`.

    Attributes:
        reason: Short name of the problem for counting, such as "not JSON".
        unknown: Unknown keys of the line.
    """

    def __init__(self, manifest: str | Path, line: int, reason: str, message: str, unknown: Sequence[UnknownKey] = ()):
        super().__init__(f"{manifest}:{line}: {message}")
        self.args = (manifest, line, reason, message)  # for pickling it in a worker process
        self.manifest, self.line, self.reason, self.message = str(manifest), line, reason, message
        self.unknown = list(unknown)

    def __str__(self) -> str:
        return f"{self.manifest}:{self.line}: {self.message}"


class Manifest:
    """The rows of a JSONL file, parsed and checked on demand.

    Args:
        path: The file, plain or gzipped. Blank lines are skipped, but count for line numbers.

    Attributes:
        line_numbers: (L,) int64 line numbers of the rows, from 1.
        digest: SHA-256 of the (unpacked) content.

    Raises:
        ValueError: There is no such file, it has another format, or it has no rows.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lines = LineFile(self.path)
        self.line_numbers, self.digest = self._lines.line_numbers, self._lines.digest
        if not len(self.line_numbers):
            raise ValueError(
                f"manifest: {str(path)!r} is empty or has only blank lines; it needs one JSON object a line"
            )

    def row(self, line: int) -> Row:
        """The row of one line, counted from 1.

        Raises:
            ManifestError: The line is invalid.
            ValueError: The file was changed since it was opened.
        """
        return self._parse(line)[0]

    def scan(self, look: Callable[[Row], T], fail: Callable[[ManifestError], None]) -> Iterator[T]:
        """Apply `look` to each row, in order; at the end, warn once of each unknown key.

        Args:
            look: Called with each row, in several threads since it usually waits for the disk; raises ManifestError if
                the row can't be used.
            fail: Called with the error of a line that is invalid or can't be used; may raise it.

        Raises:
            ValueError: The file was changed since it was opened.
        """

        def examine(line: int) -> tuple[T | ManifestError, list[UnknownKey]]:
            unknown: list[UnknownKey] = []
            try:
                row, unknown = self._parse(line)
                return look(row), unknown
            except ManifestError as error:
                return error, unknown or error.unknown

        lines = self.line_numbers.tolist()
        seen: dict[UnknownKey, list[int]] = {}  # first line, and number of rows
        try:
            with ThreadPoolExecutor(8) as pool:
                for start in range(0, len(lines), 1024):
                    chunk = lines[start : start + 1024]
                    for line, (result, unknown) in zip(chunk, pool.map(examine, chunk), strict=True):
                        for key in unknown:
                            seen.setdefault(key, [line, 0])[1] += 1
                        if isinstance(result, ManifestError):
                            fail(result)
                        else:
                            yield result
        finally:
            for key, (line, count) in list(seen.items())[:MOST_WARNINGS]:
                log.warning(
                    "%s:%d: the %s key %s is not read: %s (%d row%s)",
                    self.path, line, key.level, short(key.key), key.meant, count, "s" * (count > 1),
                )  # fmt: skip
            if len(seen) > MOST_WARNINGS:
                log.warning("%s: has %d more keys that are not read", self.path, len(seen) - MOST_WARNINGS)

    def rows(self) -> list[Row]:
        """All rows, in order, with warnings of unknown keys.

        Raises:
            ManifestError: A line is invalid (`FILE:LINE: problem`).
            ValueError: The file was changed since it was opened.
        """

        def fail(error: ManifestError) -> None:
            raise error

        return list(self.scan(lambda row: row, fail))

    def _parse(self, line: int) -> tuple[Row, list[UnknownKey]]:
        try:
            text = self._lines.text(line)
        except LineError as error:
            raise ManifestError(self.path, line, error.reason, str(error)) from None
        return parse_line(text, self.path, line)


def read_manifest(path: str | Path) -> list[Row]:
    """All rows of a manifest, in order, with warnings of unknown keys.

    Raises:
        ValueError: There is no such file, or a line is invalid (`FILE:LINE: problem`).
    """
    return Manifest(path).rows()


def parse_line(text: str, manifest: str | Path, line: int) -> tuple[Row, list[UnknownKey]]:
    """Parse and check a line; returns the row and its unknown keys.

    Raises:
        ManifestError: The line is not JSON, has no messages, or a role, a content or a type is wrong.
    """
    unknown: list[UnknownKey] = []
    try:
        content = parse_object(text.removeprefix("\ufeff"))
        unknown = list(dict.fromkeys(unknown_keys(content)))
        check_row(content)
    except RowProblem as problem:
        raise ManifestError(manifest, line, problem.reason, str(problem), unknown) from None
    path = Path(manifest)
    added = {"manifest": str(path), "line": line, "folder": str(path.parent)}
    row = {"id": f"{path.stem}:{line}", **content, **added}
    if not isinstance(row["id"], str):
        row["id"] = f"{path.stem}:{line}" if row["id"] is None else str(row["id"])
    return row, unknown


def parse_units(units: str | Sequence[int] | None, num_units: int | None = None) -> list[int]:
    """`<|audio_12|><|audio_7|>` or [12, 7] -> [12, 7].

    Args:
        units: Units in one of the two forms; None and empty ones give an empty list.
        num_units: Size of the codebook; None leaves the range unchecked.

    Raises:
        ValueError: The form is wrong, or a unit is outside 0..num_units - 1.
    """
    if not units:
        return []
    if isinstance(units, str):
        rest = _UNIT.sub("", units).strip()
        if rest:
            raise ValueError(f"speech_units: can't read {short(rest)}; allowed: <|audio_N|> one after the other")
        numbers = [int(unit[:20]) for unit in _UNIT.findall(units)]  # longer numbers are too large anyway
    elif isinstance(units, list) and all(isinstance(unit, int) and not isinstance(unit, bool) for unit in units):
        numbers = units
    else:
        raise ValueError(f"speech_units: got {short(units)}; allowed: a string of <|audio_N|> or a list of integers")
    largest = LARGEST_UNIT if num_units is None else num_units - 1
    for unit in numbers:
        if not 0 <= unit <= largest:
            raise ValueError(f"speech_units: got the unit {short(unit)}, outside the codebook; allowed: 0..{largest}")
    return numbers


def parse_speaker(value: str | Sequence[float] | None, folder: str | Path) -> np.ndarray | None:
    """A content item's `spk_emb` -> (512,) float32, or None if absent.

    Args:
        value: 512 numbers, or the path of a `.npy` file that holds them.
        folder: Base folder of a relative path.

    Raises:
        ValueError: The file is missing, or there aren't 512 finite numbers.
    """
    if not value:
        return None
    numbers: Any
    if isinstance(value, str):
        numbers = _read_speaker(Path(folder) / value, value)
    else:
        numbers = value if all(type(number) in (int, float) for number in value) else ()
    try:
        with np.errstate(over="ignore"):  # overflows are found below
            embedding = np.asarray(numbers, dtype=np.float32).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        embedding = np.empty(0, dtype=np.float32)
    if len(embedding) != SPEAKER_WIDTH or not np.isfinite(embedding).all():
        raise ValueError(f"spk_emb: got {short(value)}; {SPEAKER_WIDTH} finite numbers are needed")
    return embedding


def _read_speaker(path: Path, given: str) -> np.ndarray:
    """Read the array of a small `.npy` file."""
    try:
        size = regular_file(path, given).stat().st_size
        if size > LARGEST_SPEAKER_FILE:
            raise ValueError(f"it has {size} bytes, at most {LARGEST_SPEAKER_FILE} are read")
        numbers = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except Exception as error:  # numpy raises many kinds of errors for other bytes
        raise ValueError(f"spk_emb: can't read {str(path)!r} ({error}); a .npy file is needed") from None
    if not isinstance(numbers, np.ndarray) or numbers.dtype.kind not in "fiu":
        raise ValueError(f"spk_emb: {str(path)!r} holds no array of real numbers; a .npy file is needed")
    return numbers


def message_units(message: Mapping[str, Any], num_units: int | None = None) -> list[int]:
    """The units of all items of a message, concatenated; raises like `parse_units`."""
    return [u for item in content_items(message["content"]) for u in parse_units(item.get("speech_units"), num_units)]
