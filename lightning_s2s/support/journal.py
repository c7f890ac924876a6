"""Finished pieces of long work on disk, from which a killed run resumes."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

from lightning_s2s.support.reading import InputError, parse_json


class Journal:
    """Results by the keys of their pieces of work, one JSON line each with its checksum, on disk after each `add`.

    Memory only holds where each line begins: there may be millions.

    Args:
        path: The file; an existing one is resumed.
        fingerprint: Everything that decides the results, as JSON; a journal is resumed only if it matches.
        command: Name of the command that writes it, for messages.

    Raises:
        ValueError: The file is no such journal, or its fingerprint differs.
    """

    def __init__(self, path: Path, fingerprint: dict[str, Any], command: str):
        self.path, self.command = path, command
        self._places: dict[Hashable, int] = {}
        known = self._read(fingerprint) if path.exists() else 0
        self._file = path.open("a+b")
        self._file.truncate(known)  # a kill may have truncated the last line
        if not known:
            self._append([json.dumps(fingerprint).encode() + b"\n"])

    def _read(self, fingerprint: dict[str, Any]) -> int:
        """Find the lines; returns the number of bytes in complete lines."""
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    content = parse_json(line, f"line {number}")
                    if end:
                        self._places[_as_key(content["key"])] = end
                        if content["crc32"] != _checksum(content["key"], content["found"]):
                            raise InputError(f"line {number}: was changed since it was written")
                    elif other := [name for name in fingerprint if content[name] != fingerprint[name]]:
                        raise ValueError(
                            f"{self.path}: was started with another {', '.join(other)}; repeat that command, or remove "
                            "the file to start afresh"
                        )
                except (InputError, KeyError, TypeError) as error:
                    found = {
                        KeyError: f"line {number}: key {error} is missing",
                        TypeError: f"line {number}: no mapping",
                    }
                    raise ValueError(
                        f"{self.path}: is no journal of `{self.command}` ({found.get(type(error), error)}); "
                        "remove or rename it"
                    ) from None
                end += len(line)
        return end

    def __contains__(self, key: Hashable) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: Hashable) -> Any:
        """The result for a key."""
        self._file.seek(self._places[key])
        return json.loads(self._file.readline())["found"]

    def add(self, pieces: Iterable[tuple[Hashable, Any]]) -> None:
        """Keep the results for some keys, which are strings, numbers or tuples of them."""
        keys, lines = [], []
        for key, found in pieces:
            keys.append(key)
            piece = {"key": key, "found": found, "crc32": _checksum(key, found)}
            lines.append(json.dumps(piece).encode() + b"\n")
        end = self._file.seek(0, os.SEEK_END)
        self._append(lines)
        for key, line in zip(keys, lines, strict=True):
            self._places[key] = end
            end += len(line)

    def _append(self, lines: Iterable[bytes]) -> None:
        self._file.write(b"".join(lines))
        self._file.flush()
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        """Delete the file, once the results are complete elsewhere."""
        self._file.close()
        self.path.unlink()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()


def _checksum(key: Any, found: Any) -> int:
    """Tells a damaged line from the one that was written."""
    return zlib.crc32(json.dumps([key, found]).encode())


def _as_key(value: Any) -> Hashable:
    """A key as it was given: JSON turns tuples into lists."""
    return tuple(value) if isinstance(value, list) else value
