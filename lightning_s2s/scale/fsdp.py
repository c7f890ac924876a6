"""FSDP2 of a model's components: every process keeps a piece of each weight and gathers a layer when it is computed.

Source: Zhao et al., arXiv:2304.11277, and torch's `fully_shard`. A unit, whose weights are gathered together, is one
Transformer layer, or what a component has beside its layers; so frozen components are sharded apart from trained ones.
The vocoder, which no stage trains, stays whole on every process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_s2s.components.contracts import Component, LanguageModel, Vocoder

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy


def shard(
    model: nn.Module,
    device: torch.device,
    data_mesh: DeviceMesh,
    tensor_mesh: DeviceMesh | None = None,
    precision: MixedPrecisionPolicy | None = None,
    whole: Sequence[nn.Module] = (),
) -> None:
    """Shard the components of a model in place, one unit after the other, with the weights that process 0 has.

    Other processes may have built the model in `lightning_s2s.components.weights.without_weights`: a unit's memory is
    made just before it is sharded, so that none of them ever holds the whole model.

    Args:
        model: its children are components.
        device: of this process.
        data_mesh: one-dimensional, over the processes that see different batches.
        tensor_mesh: one-dimensional, over the processes that compute each layer of the LLM together.
        precision: of gathered weights and of reduced gradients; None leaves them as they are.
        whole: components beside the vocoder that every process keeps whole; frozen ones.

    Raises:
        ValueError: the LLM can't be computed by so many processes together.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    options: dict[str, Any] = {"mesh": data_mesh} | ({"mp_policy": precision} if precision else {})
    for component in model.children():
        for unit, reshards in units(component):
            receive(unit, device)
            if tensor_mesh is not None and isinstance(component, LanguageModel) and unit is not component:
                from lightning_s2s.scale.tensor_parallel import parallelize_layer

                parallelize_layer(component, unit, tensor_mesh)
            if not isinstance(component, Vocoder) and component not in whole:
                fully_shard(unit, reshard_after_forward=reshards, **options)
        if isinstance(component, Component):
            for method in component.entry_points:
                register_fsdp_forward_method(component, method)


def units(component: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """What is gathered together, inner ones first, and whether it is given back as soon as its forward is over.

    What a trained component has beside its layers is kept until its backward pass: the embedding and the output layer
    of an LLM are used several times.
    """
    trained = any(parameter.requires_grad for parameter in component.parameters())
    for block in component.blocks() if isinstance(component, Component) else []:
        yield block, True
    yield component, not trained


def receive(module: nn.Module, device: torch.device) -> None:
    """Give a module process 0's parameters and buffers, and memory to hold them on `device`.

    Parameters that are sharded already are left alone. A parameter that several modules share stays one.
    """
    from torch.distributed.tensor import DTensor

    moved: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None or isinstance(parameter, DTensor):
                continue
            if id(parameter) not in moved:
                data = parameter.detach()
                data = torch.empty_like(data, device=device) if data.is_meta else data.to(device)
                moved[id(parameter)] = nn.Parameter(_from_first(data), requires_grad=parameter.requires_grad)
            part._parameters[name] = moved[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None and not isinstance(buffer, DTensor):
                part._buffers[name] = _from_first(buffer.to(device))


def _from_first(data: Tensor) -> Tensor:
    data = data.contiguous()
    torch.distributed.broadcast(data, 0)
    return data


def clip_by_norm(optimizer: torch.optim.Optimizer, max_norm: float | None) -> bool:
    """Scale gradients that lie on several meshes, as those of a tensor-parallel LLM do, to at most `max_norm`.

    Returns:
        Whether this was needed: torch's own function clips gradients of a single mesh.
    """
    gradients: list[Any] = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # In the order of the parameters, which is the same on all ranks.
    meshes = list(dict.fromkeys(getattr(gradient, "device_mesh", None) for gradient in gradients))
    if len(meshes) < 2 or not max_norm:
        return False
    norms = [_full_norm([g for g in gradients if getattr(g, "device_mesh", None) == mesh]) for mesh in meshes]
    scale = (max_norm / (torch.stack(norms).norm() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale)
    return True


def _full_norm(gradients: list[Tensor]) -> Tensor:
    """The norm of gradients that are sharded over one mesh, on each of its ranks."""
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module; FSDP2 gives those that it shards classes of its own, derived from theirs."""
    from torch.distributed.fsdp import FSDPModule

    kinds = type(module).__mro__
    return kinds[2] if kinds[1] is FSDPModule else kinds[0]


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, every process has the whole weights and may compute for itself; all must enter and leave together.

    It takes the memory of the whole model, in the precision of gathered weights. Does nothing where none are sharded.
    """
    from torch.distributed.fsdp import FSDPModule

    everything = [item for part in model.children() for item in units(part)]
    sharded = [(unit, reshards) for unit, reshards in everything if isinstance(unit, FSDPModule)]
    with torch.inference_mode(False), torch.no_grad():  # what is gathered serves the training, too
        for unit, _ in sharded:
            unit.unshard()
            unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit, reshards in sharded:
            unit.set_reshard_after_forward(reshards, recurse=False)
            unit.reshard()
