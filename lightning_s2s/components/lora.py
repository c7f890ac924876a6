"""Conversion of state dicts between models with and without LoRA.

peft keeps three kinds of trained weights beside the base weights: LoRA's matrices, copies of whole modules
(`modules_to_save`), and single rows of the embeddings (`trainable_token_indices`).
"""

from __future__ import annotations

import re
from typing import Any, cast

from torch import Tensor, nn

from lightning_s2s.components.weights import tied_names

WRAPPERS = re.compile(r"\.(?:token_adapter\.)?(?:base_layer|original_module)(?=\.)")
"""What peft inserts into the names of base weights."""
COPY = re.compile(r"\.modules_to_save\.[^.]+(?=\.)")
ROWS = re.compile(r"\.token_adapter\.trainable_tokens_delta\.(?P<adapter>[^.]+)$")
MATRICES = re.compile(r"\.(lora_\w+)\.")


def name_below(name: str) -> str:
    """The name of a weight in the model without LoRA."""
    return COPY.sub("", WRAPPERS.sub("", name))


def below_lora(part: nn.Module, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Base weights as a state dict of `part`, which has LoRA; unchanged if `part` has none or `found` already has it.

    Copies and rows are initialised from the weights found; LoRA's matrices stay as they were initialised.

    Raises:
        ValueError: LoRA's matrices were initialised from the base weights that `part` was built with.
    """
    own = part.state_dict()
    wrapped = {name_below(name) for name in own if WRAPPERS.search(name)}
    if not wrapped or any(WRAPPERS.search(name) for name in found):
        return found
    _check_start(part)
    tied = {name_below(name): name_below(first) for name, first in tied_names(part).items()}
    found = {name: found[first] for name, first in tied.items() if first in found} | found
    filled = {name: tensor for name, tensor in found.items() if name not in wrapped}
    for name, tensor in own.items():
        if rows := ROWS.search(name):
            layer: Any = part.get_submodule(name[: rows.start()]).token_adapter
            below = found.get(name[: rows.start()] + ".weight")
            filled[name] = tensor if below is None else below[layer.token_indices[rows["adapter"]]].to(tensor.dtype)
        elif MATRICES.search(name):
            filled[name] = _magnitude(name, tensor, found) if "lora_magnitude_vector" in name else tensor
        elif (below := found.get(name_below(name))) is not None:
            filled[name] = below
    return filled


def _magnitude(name: str, tensor: Tensor, found: dict[str, Tensor]) -> Tensor:
    """DoRA's magnitudes, initialised to the norms of the base weight's rows (Liu et al., arXiv:2402.09353)."""
    below = found.get(name[: MATRICES.search(name).start()] + ".weight")  # type: ignore[union-attr]
    if below is None or below.shape[0] != tensor.numel():
        raise ValueError(f"{name}: DoRA can't start from other weights here; train without use_dora")
    return below.float().flatten(1).norm(dim=1).to(tensor.dtype).view_as(tensor)


def _check_start(part: nn.Module) -> None:
    for module in part.modules():
        for config in getattr(module, "peft_config", {}).values():
            if getattr(config, "init_lora_weights", True) not in (True, False, "gaussian", "orthogonal"):
                raise ValueError(
                    f"lora: init_lora_weights {config.init_lora_weights!r} changes the weights that it is built with; "
                    "init_from would load others over them"
                )


def without_lora(model: nn.Module, state: dict[str, Tensor], keep_matrices: bool = False) -> dict[str, Tensor]:
    """The state dict with all adapters merged into the base weights, under the names without LoRA.

    Args:
        model: The model, with or without LoRA.
        state: Its state dict, without the duplicates of tied weights.
        keep_matrices: Whether to leave LoRA's matrices unmerged; copies and rows are merged in any case.

    Raises:
        ValueError: An adapter can't be merged by adding weights, or only one of two tied weights was changed.
    """
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    plain, changed = dict(state), set()
    modules: list[tuple[str, Any]] = list(model.named_modules())
    for prefix, layer in modules:
        if isinstance(layer, ModulesToSaveWrapper):
            taken = _take(plain, prefix)
            for adapter in layer.active_adapters:
                start = f"modules_to_save.{adapter}."
                copies = {key.removeprefix(start): value for key, value in taken.items() if key.startswith(start)}
                plain |= {f"{prefix}.{key}": value for key, value in copies.items()}
                changed |= {f"{prefix}.{key}" for key in copies}
        elif isinstance(layer, TrainableTokensLayer):
            home = prefix.removesuffix(".token_adapter")
            taken = _take(plain, prefix)
            plain |= {
                f"{home}.{key.removeprefix('base_layer.')}": value for key, value in taken.items() if "base" in key
            }
            if f"{home}.weight" in plain:  # tied weights are stored under the first name
                plain[f"{home}.weight"] = layer.get_merged_weights(layer.active_adapters).detach()
        elif isinstance(layer, BaseTunerLayer) and not keep_matrices:
            layer = cast(Any, layer)
            if any(getattr(layer, "use_dora", {}).values()) or not hasattr(layer, "get_delta_weight"):
                raise ValueError(f"{prefix}: can't be merged; export with --lora keep")
            taken = _take(plain, prefix)
            start = "base_layer."
            plain |= {f"{prefix}.{k.removeprefix(start)}": value for k, value in taken.items() if k.startswith(start)}
            weight = f"{prefix}.weight"
            for adapter in layer.active_adapters:
                if adapter in layer.lora_A or adapter in layer.lora_embedding_A:
                    delta = layer.get_delta_weight(adapter).detach()
                    own = plain[weight] if weight in plain else layer.get_base_layer().weight
                    plain[weight] = own.detach() + delta.to(own.dtype)
                    changed.add(weight)
    _check_tied(model, changed)
    return plain


def _take(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Pop the tensors of a module from a state dict; the keys are relative to the module."""
    names = [name for name in state if name.startswith(f"{prefix}.")]
    return {name.removeprefix(f"{prefix}."): state.pop(name) for name in names}


def _check_tied(model: nn.Module, changed: set[str]) -> None:
    """Raise ValueError if only one of tied embeddings and output head was changed."""
    for prefix, module in model.named_modules():
        tied = getattr(getattr(module, "config", None), "tie_word_embeddings", False)
        if not tied or not hasattr(module, "get_output_embeddings"):
            continue
        ends = [module.get_input_embeddings(), module.get_output_embeddings()]
        names = [f"{prefix}.{name}.weight".lstrip(".") for name, part in module.named_modules() if part in ends]
        if None not in ends and changed.intersection(names):
            raise ValueError(
                "lora: changes the embeddings or the output head, which are one weight in this model "
                "(tie_word_embeddings): it can't be written without LoRA"
            )


def refresh_rows(layer: Any, *_: Any) -> None:
    """After loading weights, update peft's copy of the original embedding rows."""
    if not layer.tied_adapter:
        for adapter, rows in layer.token_indices.items():
            layer.trainable_tokens_original[adapter] = layer.base_layer.weight.detach()[rows].clone()


def rows_of(model: Any, ids: list[int]) -> dict[str, list[int]]:
    """`trainable_token_indices` of token ids, for the embeddings and for an output head that isn't tied to them."""
    layers, head = [model.get_input_embeddings()], model.get_output_embeddings()
    if head is not None and head.weight is not layers[0].weight and getattr(head, "bias", None) is None:
        layers.append(head)
    return {name.rpartition(".")[2]: list(ids) for name, part in model.named_modules() if part in layers}
