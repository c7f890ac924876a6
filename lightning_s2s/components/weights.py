"""Tensors in safetensors files: written atomically, and checked before they are loaded."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_s2s.support.checks import all_finite
from lightning_s2s.support.files import replacing
from lightning_s2s.support.reading import read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def save_weights(module: nn.Module, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write the module's state dict to `folder/model.safetensors`, tied tensors once, floats in `dtype` if given.

    If the module is sharded, all ranks must call it, and rank 0 writes.
    """
    tied = tied_names(module)
    tensors = {
        name: (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor)
        for name, tensor in full_state_dict(module).items()
        if name not in tied
    }
    path = Path(folder) / WEIGHTS
    if tensors:
        write_tensors(tensors, path)
    return path


def weights_fingerprint(module: nn.Module) -> str:
    """A short hash of the module's weights."""
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:20]


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write one safetensors file, atomically. Tensors are copied only if they share memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ready: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        ready[name] = tensor.clone() if tensor.data_ptr() in addresses else tensor
        addresses.add(tensor.data_ptr())
    with replacing(path, own_folder=True) as temporary:
        save_file(ready, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors makes its files readable only by their owner


def load_weights(module: nn.Module, folder: str | Path) -> None:
    """Read `folder/model.safetensors` into the module, in the module's own dtype.

    Raises:
        ValueError: The file is missing or broken, or names or shapes differ from the module's; nothing is loaded then.
    """
    if not skipping_weights():
        path = Path(folder) / WEIGHTS
        load_tensors(module, read_state_dict(path, f"the weights of {type(module).__name__}"), path)


def read_state_dict(path: Path, what: str) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file or of a file that torch pickled, without running any code in it.

    Args:
        path: The file; pickled, unless its name ends in `.safetensors`.
        what: What the file should hold, for the message if it is missing.

    Raises:
        ValueError: The file is missing or broken, holds pickled code, or anything but named, finite tensors.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected {what}")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"pickled code ({found[1]})" if found else "something else than tensors"
        raise ValueError(f"{path}: holds {what}; a state dict of plain tensors is needed, no code was run") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        detail = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a readable file of tensors ({detail})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}; a mapping of names to tensors is needed")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path}: {name!r} is {type(value).__name__}; a tensor is needed")
        check_finite_tensor(name, value, path)
    return dict(content)


def check_finite_tensor(name: str, tensor: Tensor, file: str | Path) -> None:
    """Raise ValueError, naming file and tensor, if a tensor holds NaN or infinite values."""
    if not all_finite(tensor):
        raise ValueError(f"{file}: {name} holds NaN or infinite values")


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Check all names and shapes, then copy `tensors` into the module.

    Raises:
        ValueError: Names or shapes differ, or a tensor isn't finite; the message names `source` and the tensors.
    """
    module.load_state_dict(fitting_tensors(module, tensors, source))


def fitting_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """The tensors for `load_state_dict`, including tied ones; raises like `load_tensors`."""
    own = module.state_dict()
    found = with_tied(module, tensors)
    check_tensors(
        type(module).__name__,
        {name: tuple(tensor.shape) for name, tensor in own.items()},
        {name: tuple(tensor.shape) for name, tensor in found.items()},
        dict.fromkeys(found, str(source)),
        str(source),
    )
    for name, tensor in tensors.items():
        check_finite_tensor(name, tensor, source)
    return found


def check_tensors(
    what: str,
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    files: Mapping[str, str],
    source: str,
) -> None:
    """Raise ValueError if names or shapes of tensors differ.

    Args:
        what: Name of the module that needs the tensors, for the message.
        wanted: Name -> shape of the module's tensors.
        found: Name -> shape of the tensors found.
        files: Name -> file of the tensors found.
        source: Where missing tensors were expected, for the message.
    """
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unexpected:
        place = files[unexpected[0]] if unexpected and not missing else source
        raise ValueError(
            f"{place}: does not fit {what}: missing {missing[:3] or 'none'}, unexpected {unexpected[:3] or 'none'}"
        )
    for name, shape in found.items():
        if tuple(shape) != tuple(wanted[name]):
            raise ValueError(f"{files[name]}: {name} has shape {tuple(shape)}, {what} needs {tuple(wanted[name])}")


# --- tied parameters -------------------------------------------------------------------------------------------------


def tied_names(module: nn.Module) -> dict[str, str]:
    """Further names of tied parameters, such as an output head that is the embedding -> their first name."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            tied[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
    return tied


def with_tied(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, completed under the further names of tied parameters."""
    filled = dict(tensors)
    for name, source in tied_names(module).items():
        if name not in filled and source in filled:
            filled[name] = filled[source]
    return filled


# --- sharded modules -------------------------------------------------------------------------------------------------


def full_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors, gathered to the CPU of rank 0 if they are sharded; then all ranks must call it.

    Returns:
        Name -> tensor; empty on other ranks if the module is sharded.
    """
    if not is_sharded(module):
        return module.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: Any = get_model_state_dict(module, options=options)
    return state


# --- without a second copy in memory ---------------------------------------------------------------------------------


_REGISTER_PARAMETER = nn.Module.register_parameter


@contextlib.contextmanager
def parameters_in_memory() -> Iterator[None]:
    """Inside `parameters_on_meta`, give real parameters to a module that computes something while it is built."""
    register = nn.Module.register_parameter
    nn.Module.register_parameter = _REGISTER_PARAMETER  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules built inside have parameters without memory; their buffers are real, since files may not hold them."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        register(self, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


_SKIPPING = False


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Like `parameters_on_meta`, but without reading components' checkpoints, for ranks that receive their weights."""
    global _SKIPPING
    before, _SKIPPING = _SKIPPING, True
    try:
        with parameters_on_meta():
            yield
    finally:
        _SKIPPING = before


def skipping_weights() -> bool:
    """Whether the code runs inside `without_weights`."""
    return _SKIPPING


def assign_tensors(module: nn.Module, tensors: Mapping[str, Tensor], files: Mapping[str, str], source: str) -> None:
    """Check names and shapes, then assign `tensors` to the module, in their dtype and without a copy.

    Args:
        module: Usually built in `parameters_on_meta`.
        tensors: Name -> tensor; tied ones may be left out.
        files: Name -> file that the tensor comes from, for messages.
        source: The folder, for messages.

    Raises:
        ValueError: A name, a shape or the kind of a dtype differs, or a tensor isn't finite; the module is unchanged.
    """
    own = module.state_dict()
    tied = tied_names(module)
    found = {name: tensor for name, tensor in tensors.items() if name not in tied}
    check_tensors(
        type(module).__name__,
        {name: tuple(tensor.shape) for name, tensor in own.items() if name not in tied},
        {name: tuple(tensor.shape) for name, tensor in found.items()},
        files,
        source,
    )
    for name, tensor in found.items():
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise ValueError(f"{files[name]}: {name} has dtype {tensor.dtype}, expected one like {own[name].dtype}")
        check_finite_tensor(name, tensor, files[name])
    module.load_state_dict(with_tied(module, found), assign=True)
    for name, first in tied.items():
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, module.get_parameter(first))


class Shards:
    """The tensors of a folder, in `model.safetensors` or in the files that `model.safetensors.index.json` names.

    Only headers are read; `load` returns tensors that are mapped from the files until they are used.

    Args:
        folder: The folder.
        wanted: Tells which tensors of an index are needed; files with none of them may be missing.

    Attributes:
        folder: The folder.
        files: Tensor name -> its file.
        shapes: Tensor name -> shape.
        dtypes: Tensor name -> dtype as in the header, such as `BF16`.

    Raises:
        ValueError: A file is missing, broken or no safetensors file, or lacks a tensor that the index places in it.
    """

    def __init__(self, folder: str | Path, wanted: Callable[[str], bool] = lambda name: True):
        self.folder = Path(folder)
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        placed = {name: path for name, path in self._index().items() if wanted(name)}
        for name, path in placed.items():
            if not path.is_file():
                raise ValueError(f"{path}: no such file; {INDEX} places {name} in it")
        for path in sorted(set(placed.values())) if placed else [self.folder / WEIGHTS]:
            self._read_header(path)
        for name, path in placed.items():
            if self.files.get(name) != path:
                raise ValueError(f"{path}: tensor {name}, which {INDEX} places here, is missing")

    def _index(self) -> dict[str, Path]:
        path = self.folder / INDEX
        if not path.is_file():
            if not (self.folder / WEIGHTS).is_file():
                pickled = sorted(file.name for file in self.folder.glob("*") if file.suffix in PICKLED)
                hint = f"; pickled weights ({', '.join(pickled[:3])}) are not read" if pickled else ""
                raise ValueError(f"{self.folder}: neither {WEIGHTS} nor {INDEX}{hint}")
            return {}
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{path}: key 'weight_map' must map tensor names to files")
        for name, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise ValueError(f"{path}: weight_map places {name} in {file!r}; expected the name of a file beside it")
        return {name: self.folder / file for name, file in weight_map.items()}

    def _read_header(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    entry = file.get_slice(name)
                    self.files[name] = path
                    self.shapes[name], self.dtypes[name] = tuple(entry.get_shape()), entry.get_dtype()
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error})") from None

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        wanted: dict[Path, list[str]] = {}
        for name in names:
            wanted.setdefault(self.files[name], []).append(name)
        tensors: dict[str, Tensor] = {}
        for path, inside in wanted.items():
            with safe_open(path, "pt") as file:
                tensors |= {name: file.get_tensor(name) for name in inside}
        return tensors


def load_part(module: nn.Module, shards: Shards, names: Mapping[str, str]) -> None:
    """Load a module out of a larger checkpoint, without reading the rest of it, in the dtype of the checkpoint.

    Args:
        module: Usually built in `parameters_on_meta`.
        shards: The checkpoint.
        names: Name of a tensor in the checkpoint -> its name in the module.

    Raises:
        ValueError: A name, a shape or the kind of a dtype differs, or a tensor isn't finite.
    """
    tensors = {names[name]: tensor for name, tensor in shards.load(names).items()}
    assign_tensors(module, tensors, {own: str(shards.files[name]) for name, own in names.items()}, str(shards.folder))


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are sharded over several ranks, so that computing with them needs all ranks."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters()) or any(
        isinstance(module, FullyShardedDataParallel) for module in model.modules()
    )
