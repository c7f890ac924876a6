"""Every component of every registry, by its name: built, trained, frozen, stored, and part of a streamed answer.

A component that is registered and has no row here fails `test_no_component_is_left_out`. What is particular to one
(parity, chunks, batches) is in its own test file.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from conftest import sweep
from jsonargparse import ArgumentParser
from small_parts import MIMI, WHISPER
from test_model import QWEN
from test_stages import changed_parts, fit
from tolerances import assert_equal_but_for_rounding

from lightning_s2s.checkpoints.model_folder import load_model
from lightning_s2s.components import contracts as interfaces
from lightning_s2s.components.registry import REGISTRY
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.stages import (
    EmpatheticInstructionTuning,
    SpeechGenerationPretraining,
    SpeechUnderstandingPretraining,
)
from lightning_s2s.streaming.events import AudioChunk, Done, TextDelta, Units
from lightning_s2s.streaming.session import stream_reply

HUBERT = {
    "model_type": "hubert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
GLM4_VOICE = {
    "flow": {
        "vocab_size": 50, "input_size": 12, "output_size": 8, "spk_embed_dim": 6, "encoder_size": 16,
        "attention_heads": 2, "linear_units": 24, "num_blocks": 1, "regulator_convolutions": 2,
        "estimator_in_channels": 32, "channels": [16, 24], "attention_head_dim": 8, "n_blocks": 1, "num_mid_blocks": 1,
        "num_heads": 2,
    },
    "hift": {
        "in_channels": 8, "base_channels": 16, "nb_harmonics": 3, "f0_channels": 8, "resblock_kernel_sizes": [3, 7, 11],
    },
}  # fmt: skip
UNIT_HIFIGAN = {
    "vocoder": {
        "model_type": "seamless_m4t_v2", "unit_hifi_gan_vocab_size": 20, "unit_embed_dim": 8, "lang_embed_dim": 3,
        "spkr_embed_dim": 2, "vocoder_num_langs": 4, "vocoder_num_spkrs": 5, "upsample_initial_channel": 32,
    },
}  # fmt: skip

SMALL = {
    ("encoder", "mel"): {"width": 16, "num_layers": 1, "num_heads": 2},
    ("encoder", "qwen2_audio"): {"checkpoint": None, "config": WHISPER, "real_frames_only": True},
    ("encoder", "s3prl"): {"upstream": "fbank"},
    ("encoder", "ssl"): {"checkpoint": None, "config": HUBERT, "layers": "weighted"},
    ("encoder", "whisper"): {"checkpoint": None, "config": WHISPER, "real_frames_only": True},
    ("adapter", "conv"): {"inner_width": 8},
    ("adapter", "linear"): {"hidden_width": 8},
    ("adapter", "qformer"): {"window_sec": 0.2, "num_queries": 2, "width": 8, "num_heads": 2},
    ("llm", "causal"): {"config": QWEN},
    ("speech_decoder", "interleaved"): {"interleave": "2:4", "config": QWEN, "max_units": 16},
    ("speech_decoder", "mtp"): {"interleave": "2:4", "units_per_step": 2, "config": QWEN, "max_units": 16},
    ("speech_decoder", "ctc"): {"upsampling": 3, "config": QWEN},
    ("vocoder", "pocket"): {"encoder_width": 8, "decoder_width": 8},
    ("vocoder", "glm4_voice"): {"config": GLM4_VOICE, "num_steps": 2, "left_context_units": 10},
    ("vocoder", "encodec"): {"bandwidth": 1.5, "config": {"n_filters": 2, "dimension": 8, "lstm": 1}},
    ("vocoder", "hf_codec"): {"config": MIMI},
    ("vocoder", "unit_hifigan"): {"config": UNIT_HIFIGAN},
}
"""(slot, name) -> arguments that make it tiny, with random weights. A slot's first stands in elsewhere."""
DEFAULTS = {slot: (slot, name) for slot, name in reversed(SMALL)}
WITHOUT_WEIGHTS = {("encoder", "s3prl")}
"""This upstream, log-mel, has nothing to train."""
TRAINED = [part for part in SMALL if part[0] != "vocoder" and part not in WITHOUT_WEIGHTS]
PACKAGES = {"s3prl": "s3prl", "encodec": "encodec"}
STAGES = {
    "1": (SpeechUnderstandingPretraining, {}, {"encoder", "adapter", "llm"}),
    "2a": (SpeechGenerationPretraining, {"condition": "text"}, {"speech_decoder"}),
    "2b": (SpeechGenerationPretraining, {}, {"encoder", "adapter", "llm", "speech_decoder"}),
    "3": (EmpatheticInstructionTuning, {}, {"encoder", "adapter", "llm", "speech_decoder"}),
}
"""Class, options, and the slots that its loss reaches; a vocoder is never trained."""


def build(slot: str, name: str, tokenizer_folder: Path) -> interfaces.Component:
    """What a YAML makes of a name and its arguments."""
    REGISTRY.load()
    registry = next(registry for registry in REGISTRY if registry.kind == slot)
    init_args = SMALL[slot, name] | ({"tokenizer": str(tokenizer_folder)} if slot == "llm" else {})
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=getattr(interfaces, registry.contract))
    return parser.instantiate(parser.parse_object({"part": {"class_path": name, "init_args": init_args}})).part


def rows_for(corpus, vocoder: interfaces.Vocoder) -> None:
    """Give the corpus units that the vocoder knows, whole frames of them."""
    for path in (corpus.train, corpus.validation):
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        size, books = vocoder.num_units // vocoder.codebooks_per_frame, vocoder.codebooks_per_frame
        for number, row in enumerate(rows):
            units = [(i % books) * size + (7 * number + 3 * i) % size for i in range(6 * books)]
            row["messages"][-1]["content"][0]["speech_units"] = "".join(f"<|audio_{unit}|>" for unit in units)
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(params=SMALL, ids="-".join)
def component(request) -> tuple[str, str]:
    package = PACKAGES.get(request.param[1])
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{'-'.join(request.param)} needs the package {package}")
    return request.param


def test_no_component_is_left_out():
    assert {(info.kind, info.name) for info in REGISTRY.list() if info.module.startswith("lightning_s2s.")} == set(
        SMALL
    )


@pytest.mark.parametrize("stage", STAGES)
def test_it_is_built_trained_stored_and_answers(stage, component, tokenizer_folder, tiny_corpus, tmp_path):
    """One training step changes the slots that the stage's loss reaches; the folder it writes answers as it does."""
    cls, options, reached = STAGES[stage]
    torch.manual_seed(0)
    names = DEFAULTS | {component[0]: component}
    parts = {slot: build(*name, tokenizer_folder) for slot, name in names.items()}
    rows_for(tiny_corpus, parts["vocoder"])
    module = cls(**parts, **options, lr=1e-2, warmup_steps=1)
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
    """Stream an answer, check the events against the reply, and give it."""
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
    parts = {name[0]: build(*name, tokenizer_folder) for name in (DEFAULTS | {slot: component}).values()}
    module = EmpatheticInstructionTuning(**parts, lr=1e-2, warmup_steps=1, freeze=[f"{slot}.*"])
    before = fit(module, tiny_corpus, tmp_path, steps=1)
    assert changed_parts(module, before) == {"encoder", "adapter", "llm", "speech_decoder"} - {slot}
    assert all(parameter.grad is None for parameter in getattr(module.model, slot).parameters())
