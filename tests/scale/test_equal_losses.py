"""Every stage on two processes, by DDP and by FSDP2, has the losses of one process that accumulates two batches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from parts.byte_tokenizer import byte_tokenizer
from parts.tiny_corpus import write_tiny_corpus
from parts.train_small import train

STAGES = ("1", "1 with ctc", "2a", "2b", "3")
STRATEGIES = ("auto", "ddp", "fsdp2")
MIXED = "3, rows without audio and units"
SPLIT = "3, layers split"

Run = tuple[list[float], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Run]:
    """(strategy, stage) -> the losses in the order of the epoch, and the weights.

    Those of one process are trained here, all others in one pair: to start processes takes longer than to train.
    """
    folder = tmp_path_factory.mktemp("runs")
    byte_tokenizer().save_pretrained(folder / "tokenizer")
    manifest = Path(write_tiny_corpus(folder / "corpus").train)
    mixed = write_mixed(manifest, folder / "mixed.jsonl")
    jobs = {(strategy, stage): {"manifest": manifest, "clip": 1.0} for strategy in STRATEGIES for stage in STAGES}
    jobs |= {(strategy, MIXED): {"manifest": mixed, "batch": 1} for strategy in STRATEGIES}
    jobs |= {(strategy, SPLIT): {"manifest": manifest, "clip": 1.0} for strategy in ("auto", "tensor parallel")}
    for (strategy, name), job in jobs.items():
        alone = strategy == "auto"
        job |= {
            "stage": name if name in STAGES else "3", "strategy": strategy, "tokenizer": str(folder / "tokenizer"),
            "manifest": str(job["manifest"]), "out": str(folder / strategy / name),
            "processes": 1 if alone else 2, "accumulate": 2 if alone and name != SPLIT else 1,
        }  # fmt: skip
    for (strategy, _), job in jobs.items():
        if strategy == "auto":
            train(job)
    todo = folder / "jobs.json"
    todo.write_text(json.dumps([job for (strategy, _), job in jobs.items() if strategy != "auto"]))
    run = subprocess.run([sys.executable, "-m", "parts.train_small", todo], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return {key: read_run(Path(job["out"])) for key, job in jobs.items()}


def write_mixed(manifest: Path, path: Path) -> Path:
    """The rows of a manifest, of which every other one has neither audio nor units."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows[::2]:
        row["messages"] = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello to you."}]
    for row in rows:
        for message in row["messages"]:
            for item in message["content"] if isinstance(message["content"], list) else []:
                if item.get("audio"):
                    name, *place = item["audio"].split(":")
                    item["audio"] = ":".join([str(manifest.parent / name), *place])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_run(folder: Path) -> Run:
    losses = [json.loads(path.read_text()) for path in sorted(folder.glob("losses-*.json"))]
    joined = [loss for step in zip(*losses, strict=True) for loss in step]
    return joined, load_file(folder / "model" / "model.safetensors")


def assert_equal_runs(run, other) -> None:
    (losses, weights), (other_losses, other_weights) = run, other
    assert len(losses) == 8 and len(set(losses)) >= 4
    eps = torch.finfo(torch.float32).eps
    assert losses == pytest.approx(other_losses, rel=100 * eps)
    assert weights.keys() == other_weights.keys()
    # A weight with next to no gradient goes where Adam takes the rounding of it to, by a step of 1e-2: a few may.
    differences = torch.cat([(weights[name].float() - other_weights[name].float()).flatten() for name in weights])
    assert float((differences.abs() > 1e-5).float().mean()) < 0.01


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_have_the_losses_of_one(stage, strategy, runs):
    assert_equal_runs(runs[strategy, stage], runs["auto", stage])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_process_whose_batch_has_neither_audio_nor_units(strategy, runs):
    assert_equal_runs(runs[strategy, MIXED], runs["auto", MIXED])


def test_two_processes_compute_each_layer_of_the_llm_together(runs):
    """Both see the same batches: each loss comes twice."""
    alone, weights = runs["auto", SPLIT]
    losses, split_weights = runs["tensor parallel", SPLIT]
    assert losses[::2] == losses[1::2]
    assert_equal_runs((losses, split_weights), ([loss for loss in alone for _ in range(2)], weights))
