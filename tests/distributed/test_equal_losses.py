"""Every stage on two processes, by DDP and by FSDP2, has the losses of one process that accumulates two batches."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, write_tiny_corpus
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("train_small.py")
STAGES = ("1", "1 with ctc", "2a", "2b", "3")


Run = tuple[list[float], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Run]]:
    """Train in processes of their own -> for each stage the losses in the order of the epoch, and the weights."""
    folder = tmp_path_factory.mktemp("runs")
    byte_tokenizer().save_pretrained(folder / "tokenizer")

    def train(manifest: Path, stages: Sequence[str], strategy: str, **options: object) -> dict[str, Run]:
        out = folder / str(len(list(folder.iterdir())))
        alone = strategy == "auto"
        given = {
            "manifest": manifest, "strategy": strategy, "tokenizer": folder / "tokenizer", "out": out,
            "processes": 1 if alone else 2, "accumulate": 2 if alone else 1, **options,
        }  # fmt: skip
        arguments = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
        run = subprocess.run(
            [sys.executable, SCRIPT, "--stages", *stages, *arguments], capture_output=True, text=True, timeout=1800
        )
        assert run.returncode == 0, run.stderr[-3000:]
        return {stage: read_run(out / stage) for stage in stages}

    return train


def read_run(folder: Path) -> Run:
    losses = [json.loads(path.read_text()) for path in sorted(folder.glob("losses-*.json"))]
    joined = [loss for step in zip(*losses, strict=True) for loss in step]
    return joined, load_file(folder / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_tiny_corpus(tmp_path_factory.mktemp("corpus")).train)


@pytest.fixture(scope="module")
def all_stages(train, manifest) -> dict[str, dict[str, Run]]:
    """Strategy -> the runs of all stages."""
    return {strategy: train(manifest, STAGES, strategy, clip=1.0) for strategy in ("auto", "ddp", "fsdp2")}


def assert_equal_runs(run, other) -> None:
    (losses, weights), (other_losses, other_weights) = run, other
    assert len(losses) == 8 and len(set(losses)) >= 4
    assert losses == pytest.approx(other_losses, abs=1e-5)
    assert weights.keys() == other_weights.keys()
    # The mean: a single weight with next to no gradient goes where Adam takes the rounding of it to.
    differences = torch.cat([(weights[name].float() - other_weights[name].float()).flatten() for name in weights])
    assert float(differences.abs().mean()) < 1e-6


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_have_the_losses_of_one(stage, strategy, all_stages):
    assert_equal_runs(all_stages[strategy][stage], all_stages["auto"][stage])


def test_a_process_whose_batch_has_neither_audio_nor_units(train, manifest, tmp_path):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows[::2]:
        row["messages"] = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello to you."}]
    for row in rows:
        for message in row["messages"]:
            for item in message["content"] if isinstance(message["content"], list) else []:
                if item.get("audio"):
                    name, *place = item["audio"].split(":")
                    item["audio"] = ":".join([str(manifest.parent / name), *place])
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone = train(mixed, "3", "auto", batch=1)["3"]
    for strategy in ("ddp", "fsdp2"):
        assert_equal_runs(train(mixed, "3", strategy, batch=1)["3"], alone)


def test_two_processes_compute_each_layer_of_the_llm_together(train, manifest):
    """Both see the same batches: each loss comes twice."""
    alone, weights = train(manifest, "3", "auto", clip=1.0, accumulate=1)["3"]
    losses, split_weights = train(manifest, "3", "tensor parallel", clip=1.0)["3"]
    assert losses[::2] == losses[1::2]
    assert_equal_runs((losses, split_weights), ([loss for loss in alone for _ in range(2)], weights))
