"""How fast audio is loaded, and how much of a training waits for it: the tiny corpus, several numbers of workers.

    python benchmarks/data.py [--workers '0 1 2'] [--batches 40] [--steps 40]

First the loader alone, nothing else running: seconds of questions (decoded, tokenised and padded) a second, of its
first batches; the workers' start counts. Then steps of stage 3 on the tiny model with each number of workers: the share
of the time that the training waits for its next batch, which should be at most 2 %. The tiny model's steps are short: a
larger one waits less.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from models import DECODER

from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
from lightning_s2s.components.vocoders.pocket import PocketVocoder
from lightning_s2s.data.datamodule import SpeechDialogueData
from lightning_s2s.data.requirements import DataRequirements
from lightning_s2s.evaluation.hardware import describe_hardware
from lightning_s2s.stages import EmpatheticInstructionTuning

TINY = Path(__file__).parents[1] / "experiments/tiny"


class WaitShare(L.Callback):
    """The share of a training that waits for batches; its first step, in which workers start, is left out."""

    share = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter(), trainer.train_dataloader.waited_sec
        if batch_idx == 0:
            self.start = now
        else:
            self.share = (now[1] - self.start[1]) / (now[0] - self.start[0])


def data(workers: int) -> SpeechDialogueData:
    """Stage 3's batches, as `experiments/tiny/3_tuning.yaml` has them, from the disk."""
    return SpeechDialogueData(
        str(TINY / "corpus/train.jsonl.gz"), max_batch_size=24, batch_duration_sec=200, num_workers=workers
    )


def loading_speed(requirements: DataRequirements, workers: int, num_batches: int) -> float:
    """Seconds of questions a second."""
    module = data(workers)
    module.prepare_split("train", requirements)
    start, seconds = time.perf_counter(), 0.0
    for batch in itertools.islice(module.loader("train", shuffle=True), num_batches):
        seconds += float(batch.waveform_lengths.sum()) / requirements.sample_rate
    return seconds / (time.perf_counter() - start)


def wait_share(workers: int, num_steps: int) -> float:
    """Of a training of the tiny model."""
    torch.manual_seed(0)
    stage = EmpatheticInstructionTuning(
        CausalLanguageModel(checkpoint=str(TINY / "language_model")),
        MelEncoder(checkpoint=str(TINY / "encoder")),
        ConvAdapter(kernel_sizes=(5,), inner_width=256),
        InterleavedSpeechDecoder("4:12", DECODER),
        PocketVocoder(checkpoint=str(TINY / "pocket")),
        freeze=["encoder.*"],
    )
    waiting = WaitShare()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="auto", devices=1, max_steps=num_steps, default_root_dir=folder, callbacks=[waiting],
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(stage, data(workers))
    return waiting.share


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="0 1 2", help="numbers of processes")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(", ".join(describe_hardware().values()))
    tokenizer = CausalLanguageModel(checkpoint=str(TINY / "language_model")).tokenizer
    requirements = DataRequirements(tokenizer, sample_rate=16_000, unit_rate_hz=25.0, num_units=1000)
    for workers in map(int, options.workers.split()):
        speed = loading_speed(requirements, workers, options.batches)
        share = wait_share(workers, options.steps)
        print(
            f"{workers} workers: {speed:6.0f} s of audio a second; a training waits {share:.1%} of its time", flush=True
        )


if __name__ == "__main__":
    main()
