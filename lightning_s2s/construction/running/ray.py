"""Steps on a Ray cluster."""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from lightning_s2s.construction.running.base import ItemFailure, PipelineStep, Runner
from lightning_s2s.construction.running.local import Local
from lightning_s2s.support.ranges import NonNegative, Processes, checked


@checked
@dataclass
class Ray(Runner):
    """Ray Data (extra `ray`): every step's batches stream through `workers` actors, anywhere in the cluster.

    All nodes must see `work_dir` and the models under the same paths. Results come back to this process, which keeps
    them.

    Args:
        workers: Number of actors, each with the step's model.
        address: Address of a running cluster, such as `auto` or `ray://head:10001`; None starts one on this machine.
        cpus: CPUs that each actor takes.
        gpus: GPUs that each actor takes; 0.5 puts two on one.
    """

    workers: Processes = 2
    address: str | None = None
    cpus: NonNegative = 1.0
    gpus: NonNegative = 0.0

    def run(
        self, step: PipelineStep, batches: Sequence[Sequence[Any]]
    ) -> Iterator[tuple[int, list[Any | ItemFailure]]]:
        if not batches or step.light:
            yield from Local().run(step, batches)
            return
        ray = self._start()
        rows = [{"number": number, "batch": pickle.dumps(batch)} for number, batch in enumerate(batches)]
        dataset = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // step.threads)).map_batches(
            _Actor,
            fn_constructor_args=(os.getcwd(), list(sys.path), pickle.dumps(step)),
            batch_size=step.threads,
            compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(rows))),
            num_cpus=self.cpus,
            num_gpus=self.gpus,
        )
        rows_done = iter(dataset.iter_rows())
        while True:
            try:
                row = next(rows_done, None)
            except (ray.exceptions.ActorDiedError, ray.exceptions.WorkerCrashedError) as error:
                raise ValueError(
                    f"{step.name}: a Ray worker died, perhaps for want of memory; what was done is kept: call again"
                ) from error
            if row is None:
                return
            results = pickle.loads(row["results"])
            if isinstance(results, ValueError):
                raise results
            yield int(row["number"]), results

    def _start(self) -> Any:
        import ray
        import ray.data

        if not ray.is_initialized():
            try:
                ray.init(address=self.address, include_dashboard=False, log_to_driver=False, configure_logging=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ValueError(f"runner: Ray can't be reached at {self.address or 'this machine'}: {error}") from None
        there = ray.cluster_resources()
        for name, wanted in (("CPU", self.cpus), ("GPU", self.gpus)):
            if wanted > there.get(name, 0):
                raise ValueError(
                    f"runner: {name.lower()}s {wanted:g} are wanted for each worker; the cluster has "
                    f"{there.get(name, 0):g}: Ray would wait for ever"
                )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # the step has its own
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        return ray


class _Actor:
    """A step on some node: `threads` batches at a time."""

    def __init__(self, folder: str, paths: list[str], step: bytes):
        os.chdir(folder)  # relative paths of the configuration start there
        sys.path += [path for path in paths if path not in sys.path]  # where a class of the user's own may be
        self.step: PipelineStep = pickle.loads(step)
        self.pool = ThreadPoolExecutor(self.step.threads)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        results = list(self.pool.map(self._run, rows["batch"]))
        return {"number": rows["number"], "results": results}

    def _run(self, batch: bytes) -> bytes:
        """Pickled results, or the ValueError that ends the run: Ray would wrap it."""
        try:
            return pickle.dumps(self.step.run(pickle.loads(batch)))
        except ValueError as error:
            return pickle.dumps(error)
