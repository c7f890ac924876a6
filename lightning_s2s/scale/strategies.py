"""Training on many devices: the strategy `fsdp2`, and what Lightning's other sharding strategies need."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from lightning_s2s.components.contracts import Component
from lightning_s2s.components.weights import without_weights
from lightning_s2s.scale.plain_reader import PlainPlanner, PlainReader
from lightning_s2s.scale.sharded_checkpoint import META, is_sharded_checkpoint, name_parameters, next_folder, publish
from lightning_s2s.support.files import saying_no_space
from lightning_s2s.support.plain import first_cause, load_plain, naming, save_plain


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all ranks: each keeps a shard of every weight, gradient and optimiser state.

    Lightning's ModelParallelStrategy with three differences: by default every rank is a data-parallel replica; only
    rank 0 needs the weights before they are sharded; and checkpoints are written atomically, optionally in the
    background. A checkpoint of a single process, or of any number of ranks, can be resumed by any number of ranks.

    Args:
        tensor_parallel_size: Number of ranks that compute each layer of the LLM together, on the same batch.
        timeout_sec: A rank that waits longer than this for the others ends the run.

    Attributes:
        asynchronous: Continue training while a checkpoint is written.
    """

    asynchronous = False

    def __init__(self, tensor_parallel_size: int = 1, timeout_sec: float = 1800.0):
        if tensor_parallel_size < 1:
            raise ValueError(f"tensor_parallel_size: got {tensor_parallel_size}; at least 1 is needed")
        super().__init__("auto", tensor_parallel_size, timeout=timedelta(seconds=timeout_sec))
        self._pending_save: Future[None] | None = None
        self._publisher = ThreadPoolExecutor(1, "checkpoint")
        self._save_group: dist.ProcessGroup | None = None

    def setup_environment(self) -> None:
        world_size, size = self.num_nodes * self.num_processes, int(self._tensor_parallel_size)
        if world_size % size:
            raise ValueError(f"tensor_parallel_size: got {size}; must divide the number of processes, {world_size}")
        self._data_parallel_size = world_size // size
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write the shards of all ranks; a previous checkpoint stays at `filepath` until they are complete."""
        if storage_options is not None:
            raise TypeError(f"{type(self).__name__}: storage_options are not supported")
        self.finish_saving()
        path = Path(self.broadcast(str(filepath)))
        folder = Path(self.broadcast(str(next_folder(path)) if self.is_global_zero else ""))
        tensors = {"state_dict": checkpoint.pop("state_dict")}
        for number, state in enumerate(checkpoint.pop("optimizer_states", [])):
            tensors[f"optimizer_{number}"] = state
        with self._discarding_on_error(folder, path):
            if self.is_global_zero:
                save_plain(checkpoint, folder / META)
            if not self.asynchronous:
                dist.checkpoint.save(tensors, checkpoint_id=folder)
                self._publish(folder, path)
                return
            if self._save_group is None:  # its own group, so that saving doesn't interfere with training's collectives
                self._save_group = dist.new_group(backend="gloo")
            written = dist.checkpoint.async_save(tensors, checkpoint_id=folder, process_group=self._save_group)
            assert isinstance(written, Future)

        def finish() -> None:
            with self._discarding_on_error(folder, path):
                written.result()
                self._publish(folder, path)

        # Not a callback of `written`: its result is available before its callbacks have run.
        self._pending_save = self._publisher.submit(finish)

    @contextmanager
    def _discarding_on_error(self, folder: Path, path: Path) -> Iterator[None]:
        """Remove `folder` if writing fails, and raise the first rank's error: torch's own is no Exception."""
        try:
            with saying_no_space(path, folder):
                try:
                    yield
                except CheckpointException as error:
                    raise first_cause(error) from None
        except BaseException:
            if self.is_global_zero:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _publish(self, folder: Path, path: Path) -> None:
        if self.is_global_zero:
            publish(folder, path)

    def finish_saving(self) -> None:
        """Wait for a checkpoint that is still being written; raises the error if that failed."""
        pending, self._pending_save = self._pending_save, None
        if pending is not None:
            pending.result()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore model and optimisers, and return the rest. No code in it is run, whatever `weights_only` says.

        Raises:
            ValueError: It is no checkpoint, broken, or holds code.
        """
        assert self.model is not None
        path = Path(self.broadcast(str(checkpoint_path)))
        if is_sharded_checkpoint(path):
            return self._load_shards(path)
        content = load_plain(path, mmap=True)
        full = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(self.model, content.pop("state_dict"), options=full)
        for optimizer, state in zip(self.optimizers, content.pop("optimizer_states", []), strict=False):
            # Lightning's own way assumes that the optimiser has its parameters in the model's order.
            named = name_parameters(state, optimizer, self.model)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=named, options=full)
        return content

    def _load_shards(self, path: Path) -> dict[str, Any]:
        """As Lightning's own strategy does, but without its unpickling."""
        assert self.model is not None and self.lightning_module is not None
        content = load_plain(path / META)

        def fill(name: str, state: Any) -> Any:
            loaded = {name: state}
            with naming(path):
                dist.checkpoint.load(loaded, storage_reader=PlainReader(path), planner=PlainPlanner())
            return loaded[name]

        state = fill("state_dict", get_model_state_dict(self.model))
        self.model.load_state_dict(state, strict=self.lightning_module.strict_loading)
        for number, optimizer in enumerate(self.optimizers):
            state = fill(f"optimizer_{number}", get_optimizer_state_dict(self.model, optimizer))
            options = StateDictOptions(cpu_offload=True)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=state, options=options)
        return content

    def teardown(self) -> None:
        try:
            self.finish_saving()
        finally:
            if self._save_group is not None:
                dist.destroy_process_group(self._save_group)
                self._save_group = None
            super().teardown()


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2 over all ranks")


def is_fsdp2(strategy: Any) -> bool:
    """Whether a strategy, or its configuration (a name, or a mapping with `class_path`), shards by FSDP2."""
    if isinstance(strategy, Strategy):
        return isinstance(strategy, ModelParallelStrategy)
    name = strategy["class_path"] if isinstance(strategy, Mapping) else getattr(strategy, "class_path", strategy)
    return str(name).rpartition(".")[2] in ("fsdp2", "FSDP2Strategy", "ModelParallelStrategy")


def weights_on_rank_zero(strategy: Any) -> AbstractContextManager[None]:
    """Build a stage inside: with FSDP2, only rank 0 gets weights, which it sends to the others later.

    Args:
        strategy: As for `is_fsdp2`.
    """
    receives = getattr(rank_zero_only, "rank", 0) != 0 and is_fsdp2(strategy)
    return without_weights() if receives else nullcontext()


def wrap_blocks(strategy: FSDPStrategy, model: nn.Module) -> None:
    """Let FSDP1 gather a model layer by layer, unless the configuration has a policy of its own."""
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    if "auto_wrap_policy" not in strategy.kwargs:
        components = [part for part in model.children() if isinstance(part, Component)]
        kinds = {type(block) for part in components for block in part.blocks()}
        strategy.kwargs["auto_wrap_policy"] = ModuleWrapPolicy(kinds)
        rank_zero_info(f"FSDP gathers one layer at a time: {', '.join(sorted(kind.__name__ for kind in kinds))}")
