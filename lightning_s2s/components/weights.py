"""Tensors in safetensors files: written under a temporary name and renamed, checked before they are loaded."""

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
    """Write the module's state dict to `folder/model.safetensors`, tied tensors once, floats as `dtype` when given.

    Where the module is sharded, all processes must call it, and the first one writes.
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
    """Tells the module's weights from others, as a short name."""
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:20]


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write one safetensors file; it appears whole or not at all. Tensors are copied only where two share memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ready: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        ready[name] = tensor.clone() if tensor.data_ptr() in places else tensor
        places.add(tensor.data_ptr())
    with replacing(path, own_folder=True) as temporary:
        save_file(ready, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors leaves its files to their owner alone


def load_weights(module: nn.Module, folder: str | Path) -> None:
    """Read `folder/model.safetensors` into the module, in the module's own dtype.

    Raises:
        ValueError: the file is missing or broken, or names or shapes differ from the module's; nothing is loaded then.
    """
    if skipping_weights():
        return
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the weights of {type(module).__name__}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    load_tensors(module, tensors, path)


def read_state_dict(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a file that torch pickled; nothing in it is ever run.

    Args:
        path: pickled, unless it ends in `.safetensors`.
        what: is expected, for the message when the file is missing.

    Raises:
        ValueError: the file is missing or broken, holds pickled code, or anything but named, finite tensors.
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
    """Refuse a tensor by which no model could answer.

    Raises:
        ValueError: it holds NaN or infinite values; the message names `file` and tensor.
    """
    if not all_finite(tensor):
        raise ValueError(f"{file}: {name} holds NaN or infinite values")


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy `tensors` into the module after all names and shapes were compared.

    Raises:
        ValueError: names or shapes differ, or a tensor isn't finite; the message names `source` and the tensors.
    """
    module.load_state_dict(fitting_tensors(module, tensors, source))


def fitting_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """The tensors as `load_state_dict` takes them, tied ones added; raises as `load_tensors`."""
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
    """Compare names and shapes.

    Args:
        what: needs the tensors, for the message.
        wanted: name -> shape.
        found: name -> shape.
        files: name -> the file that a found tensor is in.
        source: what a missing tensor is missing from.

    Raises:
        ValueError: some differ.
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
    """Second and further names of one parameter (an output head that is the embedding, say) -> its first name."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            tied[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
    return tied


def with_tied(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, and under the names of tied parameters that they lack the one that they are tied to."""
    filled = dict(tensors)
    for name, source in tied_names(module).items():
        if name not in filled and source in filled:
            filled[name] = filled[source]
    return filled


# --- sharded modules -------------------------------------------------------------------------------------------------


def full_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors. Where they are sharded, all processes must call it, and the first gets them, on the CPU.

    Returns:
        Name -> tensor; empty on all processes but the first where the module is sharded.
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
    """Inside `parameters_on_meta`, for a module that must compute something while it is built: real parameters."""
    register = nn.Module.register_parameter
    nn.Module.register_parameter = _REGISTER_PARAMETER  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules that are built inside have parameters without memory; buffers, which no file may hold, are real."""
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
    """As `parameters_on_meta`, and checkpoints of components aren't read: for processes that are sent their weights."""
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
    """Make `tensors` the module's own, in their dtype and without a copy, after names and shapes were compared.

    Args:
        module: usually built in `parameters_on_meta`.
        tensors: name -> tensor; tied ones may be left out.
        files: name -> the file that it comes from, for messages.
        source: the folder, for messages.

    Raises:
        ValueError: a name, a shape or the kind of a dtype differs, or a tensor isn't finite; the module is as it was.
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

    Only headers are read; `load` gives tensors that lie in the mapped files until they are used.

    Args:
        folder: where they are.
        wanted: says which tensors of an index count; files that hold none of them need not be there.

    Attributes:
        folder: where they are.
        files: tensor name -> its file.
        shapes: tensor name -> shape.
        dtypes: tensor name -> dtype as in the header, such as `BF16`.

    Raises:
        ValueError: a file is missing, broken or no safetensors file, or lacks a tensor that the index places in it.
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
        """Tensors by name."""
        wanted: dict[Path, list[str]] = {}
        for name in names:
            wanted.setdefault(self.files[name], []).append(name)
        tensors: dict[str, Tensor] = {}
        for path, inside in wanted.items():
            with safe_open(path, "pt") as file:
                tensors |= {name: file.get_tensor(name) for name in inside}
        return tensors


def is_sharded(model: nn.Module) -> bool:
    """Whether weights lie in pieces on several processes now, so that computing with them needs all of these."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters()) or any(
        isinstance(module, FullyShardedDataParallel) for module in model.modules()
    )
