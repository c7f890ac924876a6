"""The view of a slot cache that transformers gets in one forward. R rows, S new positions, H heads, W head width."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Storage(Protocol):
    """The cache that holds the rows: keys and values of each layer, (slots, H, positions, W)."""

    keys: list[Tensor]
    values: list[Tensor]
    max_positions: int

    def allocate(self, like: Tensor, positions: int) -> Tensor:
        """Memory for `positions` positions of every slot, with the dtype and device of `like`."""


def causal_mask(positions: Tensor, span: int, dtype: torch.dtype) -> Tensor:
    """Positions (R, S) -> additive mask (R, 1, S, span): 0 where attention is allowed, else the lowest number."""
    hidden = torch.arange(span, device=positions.device) > positions.unsqueeze(-1)
    return (
        torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        .masked_fill_(hidden, torch.finfo(dtype).min)
        .unsqueeze(1)
    )


class CacheRows:
    """The slots of one forward, where they write and how far they attend, as a transformers cache."""

    is_compileable = False

    def __init__(self, cache: Storage, rows: slice | Tensor, positions: Tensor, span: int, start: int | None):
        self.cache, self.rows, self.positions, self.span = cache, rows, positions, span
        self.start = start
        """First position to write if there is a single row: a copy is faster than a scatter."""
        indices = torch.arange(len(positions), device=positions.device) if isinstance(rows, slice) else rows
        self.row_indices = indices.unsqueeze(1)
        """(R, 1) Index of each row in the tensor that is written to."""

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store new keys and values (R, H, S, W); returns all that the rows attend to, (R, H, span, W)."""
        cache = self.cache
        if layer_idx == len(cache.keys):
            # Both are allocated before either is added, in case memory runs out.
            both = [cache.allocate(new, cache.max_positions) for new in (keys, values)]
            cache.keys.append(both[0])
            cache.values.append(both[1])
        return self._store(cache.keys[layer_idx], keys), self._store(cache.values[layer_idx], values)

    def _store(self, stored: Tensor, new: Tensor) -> Tensor:
        if not isinstance(self.rows, slice):
            stored[self.row_indices, :, self.positions] = new.transpose(1, 2)
            return stored[self.rows, :, : self.span]
        seen = stored[self.rows, :, : self.span]
        if self.start is not None:
            seen[:, :, self.start :] = new
        else:
            seen[self.row_indices, :, self.positions] = new.transpose(1, 2)
        return seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of positions before this forward; some models ask although they get positions and mask."""
        return self.span - self.positions.shape[1]
