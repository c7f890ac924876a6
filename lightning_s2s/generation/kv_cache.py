"""The key-value cache of running sequences: allocated once, with a slot for each, so that they advance in one batch.

R sequences in a batch, S new positions, D width, H heads, P positions per slot.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_s2s.generation.cache_rows import CacheRows, causal_mask
from lightning_s2s.support.checks import check_count
from lightning_s2s.support.extras import has_cpp_compiler

DEFAULT_POSITION_LIMIT = 32_768
"""Maximum length of a sequence if neither the caller nor the LM's configuration sets one."""


@dataclass(eq=False)
class Slot:
    """One sequence's place in a cache.

    Attributes:
        cache: Cache that the slot belongs to.
        index: Index of the slot in the cache.
        length: Number of positions of the sequence so far.
        own: The sequence's cache of transformers, if the slots share no memory.
    """

    cache: SlotCache | UnboundedCache
    index: int
    length: int = 0
    own: Any = None

    def release(self) -> None:
        """Free the slot for another sequence; this object must not be used again."""
        if self in self.cache.taken:
            self.cache.taken.remove(self)
            self.own = None
            self.cache.shrink()

    def fits(self, size: int) -> bool:
        """Whether `size` more positions stay within the cache's limit."""
        return self.length + size <= self.cache.limit

    def check_fits(self, size: int) -> None:
        """Check that `size` more positions fit.

        Raises:
            ValueError: The sequence would exceed the cache's limit.
        """
        if not self.fits(size):
            raise ValueError(f"a sequence of {self.length + size} positions: at most {self.cache.limit} are allowed")


def lm_position_limit(lm: Any) -> int:
    """Maximum number of positions of a causal LM of transformers, by its configuration."""
    named = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    return named if isinstance(named, int) and named > 0 else DEFAULT_POSITION_LIMIT


@contextlib.contextmanager
def release_slots_on_error(*caches: Any) -> Iterator[None]:
    """If the body fails, release the slots that were acquired in it."""
    with_slots = [cache for cache in caches if isinstance(cache, SlotCache | UnboundedCache)]
    before = [list(cache.taken) for cache in with_slots]
    try:
        yield
    except BaseException:
        for cache, taken in zip(with_slots, before, strict=True):
            for slot in [slot for slot in cache.taken if slot not in taken]:
                slot.release()
        raise


def open_cache(
    lm: Any,
    num_slots: int = 1,
    max_positions: int = 512,
    compiled_sizes: Sequence[int] = (),
    position_limit: int | None = None,
) -> Any:
    """A `SlotCache`, or an `UnboundedCache` if the LM has layers that need a cache of another kind.

    Args:
        lm: Causal LM of transformers.
        num_slots: Number of sequences that may run at the same time.
        max_positions: Initial number of positions per slot. A sequence that needs more doubles it, for all slots.
        compiled_sizes: Numbers of new positions for which the forward is compiled.
        position_limit: Maximum number of positions of a sequence; None, or more than the LM is made for, means what it
            is made for.

    Raises:
        ValueError: The LM can't run several sequences at a time, or can't be compiled; or an option is out of range.
    """
    check_count("num_slots", num_slots)
    check_count("max_positions", max_positions)
    limit = lm_position_limit(lm)
    if position_limit is not None:
        limit = min(limit, check_count("position_limit", position_limit))
    reason = _why_no_slots(lm)
    if reason is None:
        return SlotCache(lm, num_slots, max_positions, compiled_sizes, limit)
    if num_slots > 1 or compiled_sizes:
        asked = f"num_slots {num_slots}" if num_slots > 1 else "compile true"
        raise ValueError(f"{type(lm).__name__} {reason}: it needs num_slots 1 and compile false; got {asked}")
    return UnboundedCache(lm, limit)


def _why_no_slots(lm: Any) -> str | None:
    """Why an LM can't use a cache of fixed size and the mask made here; None if it can."""
    from transformers import StaticCache
    from transformers.cache_utils import StaticLayer

    if "position_ids" not in inspect.signature(lm.base_model.forward).parameters:
        return "takes no position_ids"
    if lm.config._attn_implementation not in ("eager", "sdpa"):
        return f"has the attention {lm.config._attn_implementation}"
    if not lm._can_compile_fullgraph:
        return "needs a cache that grows"
    if any(type(layer) is not StaticLayer for layer in StaticCache(config=lm.config, max_cache_len=1).layers):
        return "has layers with a sliding window or a state of their own"
    return None


class SlotCache:
    """Keys and values of a causal LM of transformers, (num_slots, H, P, head width) for each layer.

    Every slot has its own length, so sequences of any age share a forward: each row of a batch is written at its own
    length, and a mask hides everything beyond. A released slot is reused without clearing: its old contents lie beyond
    the length of the next sequence.

    Args:
        lm: Causal LM of transformers whose layers all attend to the whole past.
        num_slots: Number of sequences that may run at the same time.
        max_positions: P. A sequence that needs more doubles it, for all slots; it shrinks when such sequences have
            left, unless the cache is compiled.
        compiled_sizes: Numbers of new positions S for which the forward is compiled. Since compiled shapes are fixed,
            such a forward computes all slots over all P positions, taken or not. Other sizes run uncompiled. The LM
            must stay in eval mode, with the same modules.
        limit: Maximum number of positions of a sequence; None is what the LM is made for.
    """

    def __init__(
        self,
        lm: Any,
        num_slots: int = 1,
        max_positions: int = 512,
        compiled_sizes: Sequence[int] = (),
        limit: int | None = None,
    ):
        self.model, self.num_slots = lm.base_model, num_slots
        self.limit = lm_position_limit(lm) if limit is None else limit
        # A compiled step writes behind every sequence, including full ones.
        self._largest_size = self.limit + max(compiled_sizes, default=0)
        self.max_positions = self._initial_size = min(max_positions, self._largest_size)
        self.taken: list[Slot] = []
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.compiled_sizes = tuple(compiled_sizes)
        if compiled_sizes:
            self._compiled_forward = _compile(self._forward_all)

    def acquire(self) -> Slot:
        """A free slot, for a new sequence.

        Raises:
            RuntimeError: All slots are taken.
        """
        free = sorted(set(range(self.num_slots)) - {slot.index for slot in self.taken})
        if not free:
            raise RuntimeError(f"all {self.num_slots} slots of the cache are taken")
        self.taken.append(Slot(self, free[0]))
        return self.taken[-1]

    def advance(self, inputs: Sequence[Tensor], slots: Sequence[Slot]) -> list[Tensor]:
        """Feed the next positions of several sequences, (1, S, D) each; returns their hidden states (1, S, D).

        Sequences with equally many new positions share a forward. If one fails, all lengths are restored.

        Raises:
            ValueError: A sequence would exceed the limit.
        """
        hidden: dict[int, Tensor] = {}
        sizes, before = [piece.shape[1] for piece in inputs], [slot.length for slot in slots]
        for slot, size in zip(slots, sizes, strict=True):
            slot.check_fits(size)
        try:
            for size in dict.fromkeys(sizes):
                members = sorted((n for n, own in enumerate(sizes) if own == size), key=lambda n: slots[n].index)
                writing = self.taken if size in self.compiled_sizes else [slots[n] for n in members]
                self._make_room(max(slot.length for slot in writing) + size)
                together = inputs[members[0]] if len(members) == 1 else torch.cat([inputs[n] for n in members])
                outputs = self._forward(together, [slots[n] for n in members])
                for row, n in enumerate(members):
                    hidden[n] = outputs[row : row + 1]
                    slots[n].length += size
        except BaseException:
            for slot, length in zip(slots, before, strict=True):
                slot.length = length
            raise
        return [hidden[n] for n in range(len(inputs))]

    @torch.inference_mode()
    def warm_up(self, width: int) -> None:
        """Allocate the cache and compile the forwards, so that no sequence has to wait for it.

        Args:
            width: D of the inputs.
        """
        parameter = next(self.model.parameters())
        for size in (1, *self.compiled_sizes):
            # CUDA graphs are recorded in the second and third run.
            for _ in range(3 if self.compiled_sizes else 1):
                slot = self.acquire()
                self.advance([torch.zeros(1, size, width, dtype=parameter.dtype, device=parameter.device)], [slot])
                slot.release()

    def shrink(self) -> None:
        """Release memory that only released sequences needed; the running ones keep room to double."""
        needed = 2 * max((slot.length for slot in self.taken), default=0)
        positions = self._enough(self._initial_size, needed)
        if positions < self.max_positions and not self.compiled_sizes:  # a compiled cache would be recompiled
            self._resize(positions)

    def _make_room(self, positions: int) -> None:
        """Double the slots until they hold `positions` positions."""
        if positions > self.max_positions:
            self._resize(self._enough(self.max_positions, positions))

    def _enough(self, positions: int, needed: int) -> int:
        """`positions`, doubled until it reaches `needed` or the largest size allowed."""
        while positions < min(needed, self._largest_size):
            positions = min(2 * positions, self._largest_size)
        return positions

    @torch.no_grad()
    def _resize(self, positions: int) -> None:
        """Resize every slot. If memory runs out, some layers stay resized, which is harmless."""
        for stored in (self.keys, self.values):
            for number, tensor in enumerate(stored):
                kept = min(positions, tensor.shape[2])
                resized = self.allocate(tensor, positions)
                resized[:, :, :kept] = tensor[:, :, :kept]
                stored[number] = resized
        self.max_positions = positions

    def allocate(self, like: Tensor, positions: int) -> Tensor:
        """Zeros (num_slots, H, P, W), with the heads and width of `like` (..., H, ..., W)."""
        tensor = like.new_zeros(self.num_slots, like.shape[1], positions, like.shape[-1])
        if self.compiled_sizes:
            torch._dynamo.mark_static_address(tensor)  # otherwise CUDA graphs copy it at every step
        return tensor

    def _forward(self, inputs: Tensor, slots: list[Slot]) -> Tensor:
        """Inputs (R, S, D) and their slots, ordered by index -> hidden states (R, S, D)."""
        size, device = inputs.shape[1], inputs.device
        if size in self.compiled_sizes and self.keys:
            return self._forward_compiled(inputs, slots)
        steps = torch.arange(size, device=device)
        first, last = slots[0], slots[-1]
        positions = torch.tensor([slot.length for slot in slots], device=device).unsqueeze(1) + steps
        span = max(slot.length for slot in slots) + size
        contiguous = last.index - first.index == len(slots) - 1
        rows = (
            slice(first.index, last.index + 1)
            if contiguous
            else torch.tensor([slot.index for slot in slots], device=device)
        )
        mask = causal_mask(positions, span, inputs.dtype)
        start = first.length if len(slots) == 1 else None
        return self._run(inputs, positions, mask, CacheRows(self, rows, positions, span, start))

    def _forward_compiled(self, inputs: Tensor, slots: list[Slot]) -> Tensor:
        """`_forward` over all slots; those without inputs write to their next position, which is overwritten later."""
        size, device = inputs.shape[1], inputs.device
        lengths = [0] * self.num_slots
        for slot in self.taken:
            lengths[slot.index] = slot.length
        indices = torch.tensor([slot.index for slot in slots], device=device)
        everything = inputs
        if len(slots) < self.num_slots:
            everything = inputs.new_zeros(self.num_slots, *inputs.shape[1:]).index_copy_(0, indices, inputs)
        positions = torch.tensor(lengths, device=device).unsqueeze(1) + torch.arange(size, device=device)
        torch.compiler.cudagraph_mark_step_begin()
        hidden = self._compiled_forward(everything, positions)
        return hidden[indices]  # a copy: the next replay of a CUDA graph overwrites its output

    def _forward_all(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """The compiled function: inputs (num_slots, S, D) at positions (num_slots, S) -> (num_slots, S, D)."""
        mask = causal_mask(positions, self.max_positions, inputs.dtype)
        rows = CacheRows(self, slice(0, self.num_slots), positions, self.max_positions, None)
        # The step of a full slot is never read, but the LM may look up its position in a table.
        return self._run(inputs, positions.clamp(max=self.limit - 1), mask, rows)

    def _run(self, inputs: Tensor, positions: Tensor, mask: Tensor, rows: CacheRows) -> Tensor:
        return self.model(
            inputs_embeds=inputs, attention_mask=mask, position_ids=positions, past_key_values=rows, use_cache=True
        ).last_hidden_state


def _compile(forward: Any) -> Any:
    if not torch.cuda.is_available() and not has_cpp_compiler():
        raise ValueError("compile true needs a C++ compiler, and none was found: install g++, or set compile to false")
    if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        raise ValueError(f"compile true needs PyTorch 2.13 or newer; this is {torch.__version__}")
    settings: dict[str, Any] = {
        "dynamic": False,
        # Otherwise the caches of several models and engines would share one limit of recompilations, and reach it.
        "isolate_recompiles": True,
        # Guards that check all modules at every step would take a tenth of the step on a CPU.
        "options": {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe},
    }
    if torch.cuda.is_available():
        settings["options"]["triton.cudagraphs"] = True
    return torch.compile(forward, **settings)


class UnboundedCache:
    """transformers' own cache for a single sequence, which grows as the layers of the LM need.

    Args:
        lm: Causal LM of transformers.
        limit: Maximum number of positions of the sequence; None is what the LM is made for.
    """

    num_slots = 1

    def __init__(self, lm: Any, limit: int | None = None):
        self.lm = lm
        self.limit = lm_position_limit(lm) if limit is None else limit
        self.taken: list[Slot] = []

    def acquire(self) -> Slot:
        """The slot, for a new sequence.

        Raises:
            RuntimeError: It is taken.
        """
        from transformers import DynamicCache

        if self.taken:
            raise RuntimeError("the only slot of the cache is taken")
        self.taken.append(Slot(self, 0, own=DynamicCache(config=self.lm.config)))
        return self.taken[0]

    def advance(self, inputs: Sequence[Tensor], slots: Sequence[Slot]) -> list[Tensor]:
        """Feed the next positions (1, S, D); returns their hidden states (1, S, D).

        Raises:
            ValueError: The sequence would exceed the limit.
        """
        hidden = []
        for piece, slot in zip(inputs, slots, strict=True):
            slot.check_fits(piece.shape[1])
            hidden.append(
                self.lm.base_model(inputs_embeds=piece, past_key_values=slot.own, use_cache=True).last_hidden_state
            )
            slot.length += piece.shape[1]
        return hidden

    def shrink(self) -> None:
        """Does nothing: the memory of a sequence is freed with its slot."""

    def warm_up(self, width: int) -> None:
        """Does nothing: there is nothing to prepare."""
