"""Finished pieces of long work on disk: whatever kills a run, the next one goes on from there."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

from lightning_s2s.support.reading import InputError, parse_json


class Journal:
    """Pieces of work by their keys, one JSON line each with its checksum, safe on disk after each `add`.

    Memory holds where a piece's line begins, not what it says: there may be millions.

    Args:
        path: the file; one that is there is gone on with.
        begun: what decides the pieces, as JSON has it: work is gone on with only where all of it is the same.
        command: who writes it, for messages.

    Raises:
        ValueError: the file is no such journal, or was begun in another way.
    """

    def __init__(self, path: Path, begun: dict[str, Any], command: str):
        self.path, self.command = path, command
        self._places: dict[Hashable, int] = {}
        known = self._read(begun) if path.exists() else 0
        self._file = path.open("a+b")
        self._file.truncate(known)  # a kill may have cut the last line off
        if not known:
            self._append([json.dumps(begun).encode() + b"\n"])

    def _read(self, begun: dict[str, Any]) -> int:
        """Find the lines; gives the bytes of whole ones."""
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
                    elif other := [name for name in begun if content[name] != begun[name]]:
                        raise ValueError(
                            f"{self.path}: was begun with another {', '.join(other)}; call it as then, or remove the "
                            "file to start anew"
                        )
                except (InputError, KeyError, TypeError) as error:
                    found = {
                        KeyError: f"line {number}: key {error} is missing",
                        TypeError: f"line {number}: no mapping",
                    }
                    raise ValueError(
                        f"{self.path}: is no unfinished work of `{self.command}` ({found.get(type(error), error)}); "
                        "remove or rename it"
                    ) from None
                end += len(line)
        return end

    def __contains__(self, key: Hashable) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: Hashable) -> Any:
        """What was found for a piece."""
        self._file.seek(self._places[key])
        return json.loads(self._file.readline())["found"]

    def add(self, pieces: Iterable[tuple[Hashable, Any]]) -> None:
        """Keep what was found for some keys: strings, numbers or tuples of them."""
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
        """The work is complete elsewhere."""
        self._file.close()
        self.path.unlink()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()


def _checksum(key: Any, found: Any) -> int:
    """By which a line is known that isn't as it was written."""
    return zlib.crc32(json.dumps([key, found]).encode())


def _as_key(value: Any) -> Hashable:
    """A key as it was: JSON makes lists of tuples."""
    return tuple(value) if isinstance(value, list) else value
