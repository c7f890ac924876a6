"""Every component of every registry, by its name: built, trained, frozen, stored, and part of a streamed answer.

A component that is registered and has no row here fails `test_no_component_is_left_out`. What is particular to one
(parity, chunks, batches) is in its own test file.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_s2s.checkpoints.model_folder import load_model
from lightning_s2s.components import contracts as interfaces
from lightning_s2s.components.registry import REGISTRY
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.stages import (
    EmpatheticInstructionTuning,
    SpeechGenerationPretraining,
    SpeechUnderstandingPretraining,
)
from lightning_s2s.stages.optim import OptimizerOptions
from lightning_s2s.streaming.events import AudioChunk, Done, TextDelta, Units
from lightning_s2s.streaming.session import stream_reply
from parts.every_component import DEFAULTS, SMALL, WITHOUT_WEIGHTS, build_component
from parts.fitting import changed_parts, fit
from parts.sounds import sweep
from parts.tolerances import assert_equal_but_for_rounding

TRAINED = [part for part in SMALL if part[0] != "vocoder" and part not in WITHOUT_WEIGHTS]
STAGES = {
    "1": (SpeechUnderstandingPretraining, {}, {"encoder", "adapter", "llm"}),
    "2a": (SpeechGenerationPretraining, {"condition": "text"}, {"speech_decoder"}),
    "2b": (SpeechGenerationPretraining, {}, {"encoder", "adapter", "llm", "speech_decoder"}),
    "3": (EmpatheticInstructionTuning, {}, {"encoder", "adapter", "llm", "speech_decoder"}),
}
"""Class, options, and the slots that the stage trains; a vocoder is never trained."""


def rows_for(corpus, vocoder: interfaces.Vocoder) -> None:
    """Give the corpus units of the vocoder, in complete frames."""
    for path in (corpus.train, corpus.validation):
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        size, books = vocoder.num_units // vocoder.codebooks_per_frame, vocoder.codebooks_per_frame
        for number, row in enumerate(rows):
            units = [(i % books) * size + (7 * number + 3 * i) % size for i in range(6 * books)]
            row["messages"][-1]["content"][0]["speech_units"] = "".join(f"<|audio_{unit}|>" for unit in units)
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_no_component_is_left_out():
    assert {(info.kind, info.name) for info in REGISTRY.list() if info.module.startswith("lightning_s2s.")} == set(
        SMALL
    )


@pytest.mark.parametrize("stage", STAGES)
def test_it_is_built_trained_stored_and_answers(stage, component, tokenizer_folder, tiny_corpus, tmp_path):
    """One training step changes the slots that the stage trains; the folder it writes gives the same reply."""
    cls, options, reached = STAGES[stage]
    torch.manual_seed(0)
    names = DEFAULTS | {component[0]: component}
    parts = {slot: build_component(*name, tokenizer_folder) for slot, name in names.items()}
    rows_for(tiny_corpus, parts["vocoder"])
    module = cls(**parts, **options, optimizer=OptimizerOptions(lr=1e-2, warmup_steps=1))
    before = fit(module, tiny_corpus, tmp_path, steps=1)
    assert changed_parts(module, before) == reached - {
        slot for slot, name in WITHOUT_WEIGHTS if names[slot] == (slot, name)
    }

    written = load_model(tmp_path / "model")
    answers = [streamed(model.eval()) for model in (module.model, written)]
    assert answers[0].text_ids and answers[0].text_ids == answers[1].text_ids
    assert answers[0].unit_ids == answers[1].unit_ids
    assert_equal_but_for_rounding(answers[0].waveform, answers[1].waveform)


def streamed(model: SpeechToSpeechModel):
    """Stream a reply, check it against the events, and return it."""
    events = list(stream_reply(model, sweep(0.6), 16_000, greedy=True, max_text_tokens=6))
    reply = events[-1].reply
    assert isinstance(events[-1], Done) and isinstance(events[0], TextDelta)
    assert [token for event in events if isinstance(event, TextDelta) for token in event.token_ids] == reply.text_ids
    assert [unit for event in events if isinstance(event, Units) for unit in event.units] == reply.unit_ids
    chunks = [event.waveform for event in events if isinstance(event, AudioChunk)]
    assert reply.waveform.equal(torch.cat(chunks) if chunks else torch.zeros(0))
    assert reply.waveform.isfinite().all()
    assert len(reply.waveform) or len(reply.unit_ids) < model.vocoder.codebooks_per_frame
    return reply


@pytest.mark.parametrize("component", TRAINED, indirect=True, ids="-".join)
def test_it_can_be_frozen(component, tokenizer_folder, tiny_corpus, tmp_path):
    slot = component[0]
    torch.manual_seed(0)
    parts = {name[0]: build_component(*name, tokenizer_folder) for name in (DEFAULTS | {slot: component}).values()}
    module = EmpatheticInstructionTuning(
        **parts, optimizer=OptimizerOptions(lr=1e-2, warmup_steps=1), freeze=[f"{slot}.*"]
    )
    before = fit(module, tiny_corpus, tmp_path, steps=1)
    assert changed_parts(module, before) == {"encoder", "adapter", "llm", "speech_decoder"} - {slot}
    assert all(parameter.grad is None for parameter in getattr(module.model, slot).parameters())
