"""The throughput callback: positions, audio and FLOPs counted by hand, what is logged, and waiting for data."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_s2s.callbacks import Throughput
from lightning_s2s.callbacks.throughput import get_available_flops
from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
from lightning_s2s.components.vocoders.pocket import PocketVocoder
from lightning_s2s.data import batching
from lightning_s2s.data.batching import DurationBatchSampler, ResumableLoader
from lightning_s2s.data.datamodule import SpeechDialogueData
from lightning_s2s.stages import EmpatheticInstructionTuning
from parts.small_models import build
from parts.small_sizes import QWEN


class Logger(CSVLogger):
    """Keeps what is logged."""

    def __init__(self, folder):
        super().__init__(folder)
        self.seen: list[dict[str, float]] = []

    def log_metrics(self, metrics, step=None):
        if "throughput/steps_per_sec" in metrics:
            self.seen.append(dict(metrics) | {"step": step})


@pytest.fixture
def stage(tokenizer_folder) -> EmpatheticInstructionTuning:
    model = build(tokenizer_folder)
    parts = {name: getattr(model, name) for name in ("llm", "encoder", "adapter")}
    return EmpatheticInstructionTuning(
        **parts, speech_decoder=InterleavedSpeechDecoder("2:3", QWEN),
        vocoder=PocketVocoder(encoder_width=8, decoder_width=8), freeze=["encoder.*"], num_generated=0,
    )  # fmt: skip


def fit(stage, corpus, folder, callback: Throughput, **options) -> list[dict[str, float]]:
    logger = Logger(folder)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, default_root_dir=folder, logger=logger, callbacks=[callback],
        log_every_n_steps=2, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        **options,
    )  # fmt: skip
    trainer.fit(stage, SpeechDialogueData(corpus.train, corpus.validation, max_batch_size=3))
    return logger.seen


def test_what_is_logged(stage, tiny_corpus, tmp_path):
    seen = fit(stage, tiny_corpus, tmp_path, Throughput(peak_flops=1e12))
    assert [metrics["step"] for metrics in seen] == [2, 4, 6, 8]
    names = {
        "tokens_per_sec", "text_tokens_per_sec", "audio_positions_per_sec", "decoder_positions_per_sec",
        "audio_sec_per_sec", "steps_per_sec", "mfu", "data_wait_share", "memory_gib", "step",
    }  # fmt: skip
    for metrics in seen:
        rates = {name.removeprefix("throughput/"): value for name, value in metrics.items()}
        assert set(rates) == names and all(value > 0 for value in rates.values())
        assert rates["data_wait_share"] < 1 and rates["mfu"] < 1
    # Two batches each, two times two an epoch.
    for half in (seen[:2], seen[2:]):
        audio_sec = sum(m["throughput/audio_sec_per_sec"] * 2 / m["throughput/steps_per_sec"] for m in half)
        assert audio_sec == pytest.approx(questions_sec() + units_sec())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in stage.model.modules())


def questions_sec() -> float:
    return sum(0.6 + 0.1 * (number % 7) for number in range(12))


def units_sec() -> float:
    return sum(10 + number % 5 for number in range(12)) / 25


def test_without_a_peak_there_is_no_mfu(stage, tiny_corpus, tmp_path):
    (first, *_) = fit(stage, tiny_corpus, tmp_path, Throughput())
    assert "throughput/mfu" not in first and first["throughput/tokens_per_sec"] > 0


@pytest.mark.parametrize(
    ("gradients_pass", "trained", "factor"), [(False, False, 2), (True, False, 4), (False, True, 4), (True, True, 6)]
)
def test_flops_of_a_layer(gradients_pass, trained, factor):
    layer, callback = nn.Linear(3, 5, bias=False).requires_grad_(trained), Throughput()
    callback._hook(layer)
    layer(torch.zeros(2, 7, 3))
    assert callback._counts["flops"] == 0  # not between a batch's start and its end
    callback._counting = True
    layer(torch.zeros(2, 7, 3, requires_grad=gradients_pass))
    assert callback._counts["flops"] == 2 * 7 * 15 * factor


def test_flops_of_a_model(tokenizer_folder):
    """A frozen LLM of one layer, width 16: two heads of 8, one of keys and values, 24 in the middle."""
    model, callback = build(tokenizer_folder, hears=False, speaks=False).requires_grad_(False), Throughput()
    callback._hook(model)
    callback._counting = True
    with torch.no_grad():
        hidden = model.llm(torch.zeros(2, 5, 16), torch.ones(2, 5, dtype=torch.bool))
        assert callback._counts["tokens"] == 10
        matrices = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24
        attention = 4 * 2 * 5 * 5 * 16
        assert callback._counts["flops"] == 2 * 10 * matrices + attention
        model.llm.logits(hidden[:, 0])
        assert callback._counts["flops"] == 2 * 10 * matrices + attention + 2 * 2 * 16 * model.llm.vocabulary


def test_the_peak_of_a_gpu_is_lightnings(monkeypatch):
    """Of dense matrices, as the data sheet has it: half of what is advertised for sparse ones."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    assert get_available_flops(torch.device("cuda"), torch.bfloat16) == 312e12


def test_a_loader_tells_how_long_it_was_waited_for(monkeypatch):
    clock = [0.0]

    class Slow:
        def __getitem__(self, index):
            clock[0] += 0.25
            return index

    monkeypatch.setattr(batching.time, "perf_counter", lambda: clock[0])
    sampler = DurationBatchSampler([1.0] * 4, 2.0, 2)
    for _ in (loader := ResumableLoader(Slow(), sampler, lambda items: (items, []), lambda notes: None)):
        clock[0] += 10.0  # computing is not waiting
    assert loader.waited_sec == 1.0


def test_a_peak_must_be_positive():
    with pytest.raises(ValueError, match="peak_flops: got 0; must be positive"):
        Throughput(peak_flops=0)
