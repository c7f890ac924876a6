"""How a stage runs on many devices: the strategy `fsdp2`, and what Lightning's other sharding strategies need."""

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
from lightning_s2s.scale.plain_pieces import PlainPlanner, PlainReader
from lightning_s2s.scale.sharded_checkpoint import META, is_sharded_checkpoint, next_folder, publish, with_names
from lightning_s2s.support.files import saying_no_space
from lightning_s2s.support.plain import first_cause, load_plain, naming, save_plain


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all processes: each keeps a piece of every weight, gradient and optimiser state.

    Lightning's ModelParallelStrategy with other defaults (all processes see different batches), a model that may lie on
    process 0 alone until it is sharded, and checkpoints that are written whole or not at all, by option while the
    training goes on. A checkpoint of a single process can be resumed from, too, and one of any number of processes by
    any other number.

    Args:
        tensor_parallel_size: processes that compute each layer of the LLM together, on the same batch.
        timeout_sec: a process that waits longer for the others ends the run.

    Attributes:
        asynchronous: go on with the training while a checkpoint is written.
    """

    asynchronous = False

    def __init__(self, tensor_parallel_size: int = 1, timeout_sec: float = 1800.0):
        if tensor_parallel_size < 1:
            raise ValueError(f"tensor_parallel_size: got {tensor_parallel_size}; at least 1 is needed")
        super().__init__("auto", tensor_parallel_size, timeout=timedelta(seconds=timeout_sec))
        self._writing: Future[None] | None = None
        self._waiter = ThreadPoolExecutor(1, "checkpoint")
        self._writers: dist.ProcessGroup | None = None

    def setup_environment(self) -> None:
        processes, together = self.num_nodes * self.num_processes, int(self._tensor_parallel_size)
        if processes % together:
            raise ValueError(f"tensor_parallel_size: got {together}; must divide the number of processes, {processes}")
        self._data_parallel_size = processes // together
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write the pieces of all processes; what `filepath` meant before stays there until they are complete."""
        if storage_options is not None:
            raise TypeError(f"{type(self).__name__}: storage_options are not supported")
        self.finish_saving()
        path = Path(self.broadcast(str(filepath)))
        folder = Path(self.broadcast(str(next_folder(path)) if self.is_global_zero else ""))
        tensors = {"state_dict": checkpoint.pop("state_dict")}
        for number, state in enumerate(checkpoint.pop("optimizer_states", [])):
            tensors[f"optimizer_{number}"] = state
        try:
            with saying_no_space(path, folder):
                if self.is_global_zero:
                    save_plain(checkpoint, folder / META)
                if self.asynchronous:
                    self._save_behind(tensors, folder, path)
                else:
                    with _by_its_cause():
                        dist.checkpoint.save(tensors, checkpoint_id=folder)
                    self._publish(folder, path)
        except BaseException:
            self._discard(folder)
            raise

    def _publish(self, folder: Path, path: Path) -> None:
        if self.is_global_zero:
            publish(folder, path)

    def _discard(self, folder: Path) -> None:
        """What could not be written whole gives its space back."""
        if self.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)

    def _save_behind(self, tensors: dict[str, Any], folder: Path, path: Path) -> None:
        if self._writers is None:  # of its own, so that nothing comes between the training's messages
            self._writers = dist.new_group(backend="gloo")
        written = dist.checkpoint.async_save(tensors, checkpoint_id=folder, process_group=self._writers)
        assert isinstance(written, Future)

        def finish() -> None:
            try:
                with saying_no_space(path, folder):
                    with _by_its_cause():
                        written.result()
                    self._publish(folder, path)
            except BaseException:
                self._discard(folder)
                raise

        # Not as a callback of `written`, whose result is there before its callbacks have run.
        self._writing = self._waiter.submit(finish)

    def finish_saving(self) -> None:
        """Wait for a checkpoint that is still being written; raises what went wrong with it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore model and optimisers; gives the rest. Nothing in the checkpoint is run, whatever `weights_only` says.

        Raises:
            ValueError: it is no checkpoint, broken, or holds code.
        """
        assert self.model is not None
        path = Path(self.broadcast(str(checkpoint_path)))
        if is_sharded_checkpoint(path):
            return self._load_pieces(path)
        # Of a single process. Lightning's own way takes the optimiser's parameters to be in the model's order.
        content = load_plain(path, mmap=True)
        whole = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(self.model, content.pop("state_dict"), options=whole)
        for optimizer, state in zip(self.optimizers, content.pop("optimizer_states", []), strict=False):
            named = with_names(state, optimizer, self.model)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=named, options=whole)
        return content

    def _load_pieces(self, path: Path) -> dict[str, Any]:
        """As Lightning's own, which unpickles."""
        assert self.model is not None and self.lightning_module is not None
        content = load_plain(path / META)

        def fill(name: str, state: Any) -> Any:
            pieces = {name: state}
            with naming(path):
                dist.checkpoint.load(pieces, storage_reader=PlainReader(path), planner=PlainPlanner())
            return pieces[name]

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
            if self._writers is not None:
                dist.destroy_process_group(self._writers)
                self._writers = None
            super().teardown()


@contextmanager
def _by_its_cause() -> Iterator[None]:
    """Raise what went wrong in the first process that failed; torch's own error is no Exception and many lines."""
    try:
        yield
    except CheckpointException as error:
        raise first_cause(error) from None


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2 over all processes")


def is_fsdp2(strategy: Any) -> bool:
    """Whether a strategy, or a configuration's word for one (a name, a mapping with `class_path`), shards by FSDP2."""
    if isinstance(strategy, Strategy):
        return isinstance(strategy, ModelParallelStrategy)
    name = strategy["class_path"] if isinstance(strategy, Mapping) else getattr(strategy, "class_path", strategy)
    return str(name).rpartition(".")[2] in ("fsdp2", "FSDP2Strategy", "ModelParallelStrategy")


def built_for(strategy: Any) -> AbstractContextManager[None]:
    """Build a stage in it: without weights where another process is to send them.

    Args:
        strategy: as for `is_fsdp2`.
    """
    sent = getattr(rank_zero_only, "rank", 0) != 0 and is_fsdp2(strategy)
    return without_weights() if sent else nullcontext()


def wrap_blocks(strategy: FSDPStrategy, model: nn.Module) -> None:
    """Let FSDP of the first version gather a model layer by layer, where the configuration says nothing else."""
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    if "auto_wrap_policy" not in strategy.kwargs:
        components = [part for part in model.children() if isinstance(part, Component)]
        kinds = {type(block) for part in components for block in part.blocks()}
        strategy.kwargs["auto_wrap_policy"] = ModuleWrapPolicy(kinds)
        rank_zero_info(f"FSDP gathers one at a time: {', '.join(sorted(kind.__name__ for kind in kinds))}")
