"""Manifests: JSON lines of spoken dialogues, read with `datasets`, checked line by line.

One line, as published with OpenS2S (arXiv:2507.05177), content items with optional `transcript` and `emotion`
(and `audio_text` in place of `audio`, for an LLM that learns from text alone; `audio_sec` saves opening a file to know
how long it is):

    {"messages": [{"role": "user", "content": [{"text": "", "audio": "q.wav"}]},
                  {"role": "assistant", "content": [{"text": "Hello.", "speech_units": "<|audio_0|><|audio_1|>"}]}]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from lightning_s2s.data.chat import ROLES, content_items

Row = dict[str, Any]
"""A line of a manifest, with `id` (made of file and line if absent), `manifest`, `line` (from 1) and `folder` added."""

SPEAKER_EMBEDDING_SIZE = 512
TEXT_KEYS = ("text", "audio", "audio_text", "transcript", "emotion")
_UNIT = re.compile(r"<\|audio_(\d+)\|>")


class ManifestError(ValueError):
    """A line that can't be used; its message starts with `FILE:LINE`.

    Attributes:
        reason: a few words to count it under, such as "not JSON".
    """

    def __init__(self, manifest: str | Path, line: int, reason: str, message: str):
        super().__init__(f"{manifest}:{line}: {message}")
        self.args = (manifest, line, reason, message)  # so that it survives the way out of a worker process
        self.manifest, self.line, self.reason, self.message = str(manifest), line, reason, message

    def __str__(self) -> str:
        return f"{self.manifest}:{self.line}: {self.message}"


class Manifest:
    """The lines of one JSONL file, memory-mapped by `datasets`; parsed and checked when they are asked for.

    Args:
        path: the file, plain or compressed (`.gz`). Blank lines are no rows, but keep their line numbers.

    Raises:
        ValueError: there is no such file, or it has no rows.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"manifest: there is no file {str(path)!r}")
        if not self.path.stat().st_size:
            raise ValueError(f"manifest: {str(path)!r} is empty; it needs one JSON object a line")
        self._lines = _read_lines(self.path)
        self.line_numbers = np.array(
            [number for number, line in enumerate(self._all_lines(), start=1) if line.strip()], dtype=np.int64
        )
        if not len(self.line_numbers):
            raise ValueError(f"manifest: {str(path)!r} has blank lines alone; it needs one JSON object a line")

    def _all_lines(self) -> Iterator[str]:
        for chunk in self._lines.iter(batch_size=1000):
            yield from chunk["text"]

    def row(self, line: int) -> Row:
        """The row of one line, counted from 1.

        Raises:
            ManifestError: the line is broken.
        """
        return parse_line(self._lines[line - 1]["text"], self.path, line)


def _read_lines(path: Path) -> Any:
    """A `datasets.Dataset` with the column `text`, one row for each line, blank ones included."""
    import datasets

    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        # As text: inferring one schema for all lines would fill in keys that a line lacks, and lose line numbers.
        # Escaped: a path is no pattern here.
        return datasets.load_dataset("text", data_files=escape(str(path)), split="train", encoding_errors="replace")
    except (OSError, datasets.exceptions.DatasetGenerationError) as error:
        cause = error.__cause__ or error
        raise ValueError(f"manifest: can't read {str(path)!r} ({cause})") from None
    finally:
        if not quiet:
            datasets.enable_progress_bars()


def read_manifest(path: str | Path) -> list[Row]:
    """All rows of a manifest, in order.

    Raises:
        ValueError: there is no such file, or a line is broken (`FILE:LINE: what is wrong`).
    """
    manifest = Manifest(path)
    return [manifest.row(int(line)) for line in manifest.line_numbers]


def parse_line(text: str, manifest: str | Path, line: int) -> Row:
    """One line as a checked row.

    Raises:
        ManifestError: not JSON, no messages, a wrong role or a wrong content.
    """

    def broken(reason: str, message: str) -> ManifestError:
        return ManifestError(manifest, line, reason, message)

    if "\ufffd" in text:
        raise broken("not UTF-8", "has bytes that are not UTF-8")
    try:
        row = json.loads(text)
    except ValueError as error:
        raise broken("not JSON", f"is not JSON ({error}); one JSON object a line is needed") from None
    if not isinstance(row, dict):
        raise broken("not JSON", f"is not a JSON object but {_short(row)}")
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise broken("no messages", f"messages: got {_short(messages)}; a list of at least one message is needed")
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict):
            raise broken("wrong message", f"{where}: got {_short(message)}; an object with role and content is needed")
        role = message.get("role")
        if role not in ROLES:
            raise broken("wrong role", f"{where}.role: got {_short(role)}; allowed: {', '.join(ROLES)}")
        if role == "system" and i:
            raise broken("wrong role", f"{where}.role: a system message stands at the beginning alone")
        problem = _content_problem(role, message.get("content"))
        if problem:
            raise broken("wrong content", f"{where}.{problem}")
    path = Path(manifest)
    return {"id": f"{path.stem}:{line}", **row, "manifest": str(path), "line": line, "folder": str(path.parent)}


def _content_problem(role: str, content: Any) -> str | None:
    """What is wrong with a message's content, None when nothing is."""
    if not isinstance(content, str) and not (isinstance(content, list) and all(isinstance(i, dict) for i in content)):
        return f"content: got {_short(content)}; a string or a list of objects is needed"
    items = content_items(content)
    for j, item in enumerate(items):
        for key in TEXT_KEYS:
            if not isinstance(item.get(key) or "", str):
                return f"content[{j}].{key}: got {_short(item[key])}; a string is needed"
        seconds = item.get("audio_sec", 1.0)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            return f"content[{j}].audio_sec: got {_short(seconds)}; a positive number of seconds is needed"
    said = ("text", "audio", "audio_text") if role == "user" else ("text",)
    if not any(item.get(key) for item in items for key in said):
        return f"content: has no {' and no '.join(said[:2])}"
    return None


def parse_units(units: str | Sequence[int] | None, num_units: int | None = None) -> list[int]:
    """`<|audio_12|><|audio_7|>` or [12, 7] -> [12, 7].

    Args:
        units: as the manifest has them; nothing gives no units.
        num_units: size of the codebook; None leaves the range unchecked.

    Raises:
        ValueError: another form, or a unit outside 0..num_units - 1.
    """
    if not units:
        return []
    if isinstance(units, str):
        rest = _UNIT.sub("", units).strip()
        if rest:
            raise ValueError(f"speech_units: can't read {_short(rest)}; allowed: <|audio_N|> one after the other")
        numbers = [int(unit) for unit in _UNIT.findall(units)]
    elif isinstance(units, list) and all(isinstance(unit, int) and not isinstance(unit, bool) for unit in units):
        numbers = units
    else:
        raise ValueError(f"speech_units: got {_short(units)}; allowed: a string of <|audio_N|> or a list of integers")
    for unit in numbers:
        if unit < 0 or (num_units is not None and unit >= num_units):
            limit = "" if num_units is None else f"..{num_units - 1}"
            raise ValueError(f"speech_units: got the unit {unit}, outside the codebook; allowed: 0{limit}")
    return numbers


def parse_speaker(value: str | Sequence[float] | None, folder: str | Path) -> np.ndarray | None:
    """A content item's `spk_emb` -> (512,) float32, None when there is none.

    Args:
        value: 512 numbers, or the path of a `.npy` file that holds them.
        folder: where a relative path starts.

    Raises:
        ValueError: the file is missing, or it is not 512 finite numbers.
    """
    if not value:
        return None
    if isinstance(value, str):
        path = Path(folder) / value
        try:
            numbers = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"spk_emb: can't read {str(path)!r} ({error}); a .npy file is needed") from None
    else:
        numbers = value
    try:
        embedding = np.asarray(numbers, dtype=np.float32).reshape(-1)
    except (TypeError, ValueError):
        embedding = np.empty(0, dtype=np.float32)
    if len(embedding) != SPEAKER_EMBEDDING_SIZE or not np.isfinite(embedding).all():
        raise ValueError(f"spk_emb: got {_short(value)}; {SPEAKER_EMBEDDING_SIZE} finite numbers are needed")
    return embedding


def message_units(message: Mapping[str, Any], num_units: int | None = None) -> list[int]:
    """All units of a message's items, joined; errors as `parse_units`."""
    return [u for item in content_items(message["content"]) for u in parse_units(item.get("speech_units"), num_units)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
