"""torch's reader of checkpoints that several processes wrote, with nothing in it that could be run.

torch's own unpickles the index and whatever is no tensor. Here the index may name no other classes than those of an
index, values are plain, files lie in the checkpoint's folder, and nothing claims more memory than its files have.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from lightning_s2s.support.plain import check_sizes

INDEX = ".metadata"
LONGEST_LIST = 1_000_000
"""Parameters or groups that an optimiser may have; a number in an index makes a list of that length."""


class PlainPlanner(DefaultLoadPlanner):
    """torch's planner, which unpickles what is no tensor; here it is plain."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        content = torch.load(value, map_location="cpu", weights_only=True)
        name = read_item.dest_index.fqn
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[name], content)
        else:
            self.state_dict[name] = content


class EverythingPlanner(PlainPlanner, _EmptyStateDictLoadPlanner):
    """Fills an empty dictionary with all that there is."""


class BytesPlanner(PlainPlanner):
    """Takes names as they stand in the index."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)


class PlainReader(FileSystemReader):
    """Reads a folder without running anything; the index at once.

    Raises:
        pickle.UnpicklingError: the index holds code.
        ValueError: it names files elsewhere, or is larger than its files.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        with open(path / INDEX, "rb") as file:
            self.index = _IndexUnpickler(file).load()
        if not isinstance(self.index, Metadata):
            raise ValueError(f"{INDEX} holds {type(self.index).__name__}")
        self._check(self.index, path)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if getattr(self.index, "storage_meta", None) is None:
            self.index.storage_meta = StorageMeta()
        self.index.storage_meta.load_id = self.load_id
        return self.index

    def _check(self, metadata: Metadata, folder: Path) -> None:
        sizes: dict[str, int] = {}
        for entry in metadata.storage_data.values():
            name = entry.relative_path
            if Path(name).name != name:
                raise ValueError(f"{INDEX} names a file in another folder, {name!r}")
            if name not in sizes:
                sizes[name] = (folder / name).stat().st_size
            if not 0 <= entry.offset <= entry.offset + entry.length <= sizes[name]:
                raise ValueError(f"{name} is cut off after {sizes[name]} bytes")
        claimed = sum(
            math.prod(entry.size) * entry.properties.dtype.itemsize
            for entry in metadata.state_dict_metadata.values()
            if isinstance(entry, TensorStorageMetadata)
        )
        if claimed > sum(sizes.values()):
            raise ValueError(f"{INDEX} claims {claimed} bytes of tensors; the files have {sum(sizes.values())}")
        for path in (metadata.planner_data or {}).values():
            if any(isinstance(part, int) and not 0 <= part < LONGEST_LIST for part in path):
                raise ValueError(f"{INDEX} holds the list index {max(part for part in path if isinstance(part, int))}")

    def _slice_file(self, file: Any, sinfo: Any) -> IO[bytes]:
        check_sizes(io.BufferedReader(_Part(file, sinfo.offset, sinfo.length)), sinfo.length)
        return super()._slice_file(file, sinfo)


class _Part(io.RawIOBase):
    """A part of a file as a file; torch's own can't seek from its end."""

    def __init__(self, file: IO[bytes], offset: int, length: int):
        self._file, self._offset, self._length, self._place = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, offset + (0, self._place, self._length)[whence])
        return self._place

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._offset + self._place)
        found = self._file.read(max(0, min(len(buffer), self._length - self._place)))
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = (
            (module, name) in _INDEX_NAMES
            or (module == "torch.distributed.checkpoint.metadata" and name in _INDEX_CLASSES)
            or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype))
        )
        if not known:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return super().find_class(module, name)


_INDEX_CLASSES = {
    "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
    "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
}  # fmt: skip
_INDEX_NAMES = {
    ("torch", "Size"), ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"), ("pathlib", "Path"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("collections", "OrderedDict"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
}  # fmt: skip
