"""FSDP2 of a model's components: every rank keeps a shard of each weight and gathers a layer when it computes it.

Source: Zhao et al., arXiv:2304.11277, and torch's `fully_shard`. A unit, whose weights are gathered together, is one
Transformer layer, or the rest of a component beside its layers; frozen and trained components are thus sharded apart.
The vocoder, which no stage trains, is replicated on every rank.
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
    replicated: Sequence[nn.Module] = (),
) -> None:
    """Shard the components of a model in place, unit by unit, with the weights of rank 0.

    Other ranks may have built the model in `lightning_s2s.components.weights.without_weights`: a unit's memory is
    allocated just before it is sharded, so none of them ever holds the whole model.

    Args:
        model: Its children are components.
        device: Device of this rank.
        data_mesh: One-dimensional mesh of the data-parallel replicas.
        tensor_mesh: One-dimensional mesh of the ranks that compute each layer of the LLM together.
        precision: Precision of gathered weights and of reduced gradients; None leaves both as they are.
        replicated: Frozen components that every rank keeps whole, in addition to the vocoder.

    Raises:
        ValueError: The LLM can't be computed by that many ranks together.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    options: dict[str, Any] = {"mesh": data_mesh} | ({"mp_policy": precision} if precision else {})
    for component in model.children():
        for unit, reshard in fsdp_units(component):
            broadcast_from_rank_zero(unit, device)
            if tensor_mesh is not None and isinstance(component, LanguageModel) and unit is not component:
                from lightning_s2s.scale.tensor_parallel import parallelize_layer

                parallelize_layer(component, unit, tensor_mesh)
            if not isinstance(component, Vocoder) and component not in replicated:
                fully_shard(unit, reshard_after_forward=reshard, **options)
        if isinstance(component, Component):
            for method in component.entry_points:
                register_fsdp_forward_method(component, method)


def fsdp_units(component: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """The units of a component, inner ones first, and whether each is resharded right after its forward.

    What a trained component has beside its layers stays gathered until its backward pass: the embedding and the output
    layer of an LLM are used several times.
    """
    trained = any(parameter.requires_grad for parameter in component.parameters())
    for block in component.blocks() if isinstance(component, Component) else []:
        yield block, True
    yield component, not trained


def broadcast_from_rank_zero(module: nn.Module, device: torch.device) -> None:
    """Move a module to `device`, with rank 0's parameters and buffers; the parameters of others may lie on `meta`.

    Parameters that are already sharded are left alone. A parameter that several modules share stays shared.
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
                moved[id(parameter)] = nn.Parameter(_broadcast(data), requires_grad=parameter.requires_grad)
            part._parameters[name] = moved[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None and not isinstance(buffer, DTensor):
                part._buffers[name] = _broadcast(buffer.to(device))


def _broadcast(data: Tensor) -> Tensor:
    data = data.contiguous()
    torch.distributed.broadcast(data, 0)
    return data


def clip_across_meshes(optimizer: torch.optim.Optimizer, max_norm: float | None) -> bool:
    """Clip the norm of gradients that lie on several meshes, as those of a tensor-parallel LLM do.

    Returns:
        False if nothing was clipped, since all gradients are of a single mesh, which torch's own function can clip.
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
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def unsharded_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module before FSDP2 replaced it with a subclass."""
    from torch.distributed.fsdp import FSDPModule

    kinds = type(module).__mro__
    return kinds[2] if kinds[1] is FSDPModule else kinds[0]


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Keep all weights gathered inside, so that each rank may compute on its own; all must enter and exit together.

    It takes the memory of the whole model, in the precision of gathered weights. Does nothing to an unsharded model.
    """
    from torch.distributed.fsdp import FSDPModule

    everything = [item for component in model.children() for item in fsdp_units(component)]
    sharded = [(unit, reshard) for unit, reshard in everything if isinstance(unit, FSDPModule)]
    with torch.inference_mode(False), torch.no_grad():  # the gathered weights also serve training
        for unit, _ in sharded:
            unit.unshard()
            unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit, reshard in sharded:
            unit.set_reshard_after_forward(reshard, recurse=False)
            unit.reshard()
