"""torch's reader of sharded checkpoints, without its unpickling: nothing in a checkpoint can run code.

The index may only name the classes that an index consists of, all values are plain, files lie in the checkpoint's
folder, and nothing claims more memory than its files have bytes.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.utils import _ReaderView

from lightning_s2s.support.plain import check_sizes

INDEX = ".metadata"
MAX_LIST_LENGTH = 1_000_000
"""Most parameters or groups of an optimiser; an index in the metadata makes torch build a list of that length."""


class PlainPlanner(DefaultLoadPlanner):
    """torch's planner, which accepts only plain values beside tensors."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        content = torch.load(value, map_location="cpu", weights_only=True)
        name = read_item.dest_index.fqn
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[name], content)
        else:
            self.state_dict[name] = content


class EverythingPlanner(PlainPlanner, _EmptyStateDictLoadPlanner):
    """Fills an empty dictionary with everything in the checkpoint."""


class BytesPlanner(PlainPlanner):
    """Loads entries by the flat names that they have in the index."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)


class PlainReader(FileSystemReader):
    """Reads a sharded checkpoint; the index is read and checked at construction.

    Raises:
        pickle.UnpicklingError: The index holds code.
        ValueError: The index names files elsewhere, or claims more than its files hold.
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
            for part in path:
                if isinstance(part, int) and not 0 <= part < MAX_LIST_LENGTH:
                    raise ValueError(f"{INDEX} holds the list index {part}")

    def _slice_file(self, file: Any, sinfo: Any) -> IO[bytes]:
        check_sizes(cast(IO[bytes], _Slice(file, sinfo.offset, sinfo.length)), sinfo.length)
        return super()._slice_file(file, sinfo)


class _Slice(_ReaderView):
    """torch's view of a part of a file, which here can seek from its end."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_END:
            return super().seek(max(0, self.len + offset))
        return super().seek(offset, whence)


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
