"""What transformers sees of a cache of slots in one forward. R rows, S new positions, H heads, W head width."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Storage(Protocol):
    """Where the rows lie: keys and values of each layer, (slots, H, positions, W)."""

    keys: list[Tensor]
    values: list[Tensor]
    max_positions: int

    def allocate(self, like: Tensor, positions: int) -> Tensor:
        """Memory for so many positions of every slot, of the dtype and device of `like`."""


def causal_mask(positions: Tensor, span: int, dtype: torch.dtype) -> Tensor:
    """Positions (R, S) -> (R, 1, S, span), 0 where one may look and else the lowest number: added to the scores."""
    hidden = torch.arange(span, device=positions.device) > positions.unsqueeze(-1)
    return (
        torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        .masked_fill_(hidden, torch.finfo(dtype).min)
        .unsqueeze(1)
    )


class CacheRows:
    """Some slots, where they write, and how far they look, as transformers' own caches answer."""

    is_compileable = False

    def __init__(self, cache: Storage, rows: slice | Tensor, positions: Tensor, span: int, start: int | None):
        self.cache, self.rows, self.positions, self.span = cache, rows, positions, span
        self.start = start
        """First position to be written, where there is one row: a copy is faster than scattering."""
        of_slice = torch.arange(len(positions), device=positions.device) if isinstance(rows, slice) else rows
        self.numbers = of_slice.unsqueeze(1)
        """(R, 1) of the rows in what is written to."""

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store the new (R, H, S, W) -> all (R, H, span, W) that the rows look at."""
        cache = self.cache
        if layer_idx == len(cache.keys):
            both = [cache.allocate(new, cache.max_positions) for new in (keys, values)]  # or none, without memory
            cache.keys.append(both[0])
            cache.values.append(both[1])
        return self._store(cache.keys[layer_idx], keys), self._store(cache.values[layer_idx], values)

    def _store(self, stored: Tensor, new: Tensor) -> Tensor:
        if not isinstance(self.rows, slice):
            stored[self.numbers, :, self.positions] = new.transpose(1, 2)
            return stored[self.rows, :, : self.span]
        seen = stored[self.rows, :, : self.span]
        if self.start is not None:
            seen[:, :, self.start :] = new
        else:
            seen[self.numbers, :, self.positions] = new.transpose(1, 2)
        return seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions before this forward; some models ask though they are told positions and mask."""
        return self.span - self.positions.shape[1]
