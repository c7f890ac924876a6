"""How long a step of stage 3 takes beside one in the published manner, with the same weights and the same batch.

    python benchmarks/train_step.py [--rows 8] [--question-sec 4] [--repetitions 5] [--threads 2]

The reference is written below as the published code works: questions are encoded in 30 s of padding (then cut off), a
Python loop splices the audio into every row, another one interleaves conditions and units, and logits of the whole
vocabulary are made at every position before the loss ignores most of them. Ours is the model of this package:

- `published`: the same encoding. The losses must be equal, and are compared.
- `real frames`: `real_frames_only: true`. Other numbers than the published encoding, so another loss.
- `cached`: `encoder_cache`, hidden states of the published encoding read from the disk. The loss is equal again.

A step is forward, backward and AdamW (with a learning rate of 0, so that all measure the same weights). The encoder is
frozen and weights are random. The four take turns in every repetition; printed are the medians, and how many times
faster than the reference each is. Read the ratios: seconds depend on the machine, which is named.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.encoders.whisper import WhisperEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
from lightning_s2s.data.batch import AUDIO_PLACEHOLDER, IGNORE_INDEX, SPEAKER_WIDTH, DialogueBatch
from lightning_s2s.evaluation.hardware import describe_hardware
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.scale.encoder_cache import EncoderCache
from lightning_s2s.stages.losses import cross_entropy_and_hits

TOKENIZER = str(Path(__file__).parents[1] / "experiments/tiny/language_model")
ENCODER = {
    "d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048, "num_mel_bins": 80,
}  # fmt: skip
"""Whisper-base."""
NUM_UNITS = 4096


def decoder_config(width: int, num_layers: int) -> dict[str, Any]:
    """Of a Qwen3."""
    return {
        "model_type": "qwen3", "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": num_layers,
        "num_attention_heads": width // 64, "num_key_value_heads": width // 64, "head_dim": 64,
        "tie_word_embeddings": True,
    }  # fmt: skip


def build_model(vocabulary: int, width: int = 320, num_layers: int = 6) -> SpeechToSpeechModel:
    """About 51M parameters with 32,000 tokens, Whisper-base's encoder included; random weights, encoder frozen."""
    torch.manual_seed(0)
    llm = CausalLanguageModel(
        config=decoder_config(width, num_layers) | {"vocab_size": vocabulary}, tokenizer=TOKENIZER
    )
    model = SpeechToSpeechModel(
        llm,
        WhisperEncoder(checkpoint=None, config=ENCODER),
        ConvAdapter(inner_width=512),
        InterleavedSpeechDecoder("4:8", decoder_config(width, num_layers), num_units=NUM_UNITS, text_conditions=False),
    )
    model.train()
    model.encoder.eval().requires_grad_(False)
    return model


def make_batch(rows: int, question_sec: float, text_tokens: int, units: int, vocabulary: int) -> DialogueBatch:
    """Questions, replies and units of slightly different lengths, as `lightning_s2s.data.collate` gives them."""
    draw = torch.Generator().manual_seed(1)
    shares = torch.linspace(0.8, 1.0, rows)
    waveform_lengths = (shares * question_sec * 16_000).long()
    text_lengths, unit_lengths = (shares * text_tokens).long().clamp(min=1), (shares * units).long().clamp(min=1)
    prompt = 24
    ids, labels, segments = [], [], []
    for row, count in enumerate(text_lengths.tolist()):
        tokens = torch.randint(0, min(vocabulary, 500), (prompt + count,), generator=draw)
        tokens[prompt // 2] = AUDIO_PLACEHOLDER
        ids.append(tokens)
        labels.append(torch.cat([torch.full((prompt,), IGNORE_INDEX), tokens[prompt:]]))
        segments.append(torch.cat([torch.full((prompt - 1,), -1), torch.full((count + 1,), row)]))
    return DialogueBatch(
        input_ids=pad_sequence(ids, batch_first=True),
        input_lengths=torch.tensor([len(row) for row in ids]),
        labels=pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        segments=pad_sequence(segments, batch_first=True, padding_value=-1),
        waveform=0.1 * torch.randn(rows, int(waveform_lengths.max()), generator=draw),
        waveform_lengths=waveform_lengths,
        units=torch.randint(0, NUM_UNITS, (rows, int(unit_lengths.max())), generator=draw),
        unit_lengths=unit_lengths,
        speaker_embedding=torch.zeros(rows, SPEAKER_WIDTH),
        rows=[{}] * rows,
    )


# --- the published manner ---------------------------------------------------------------------------------------------


def reference_loss(model: SpeechToSpeechModel, batch: DialogueBatch) -> Tensor:
    """Text loss plus unit loss, with loops over rows and logits everywhere."""
    encoder, lengths = model.encoder, batch.waveform_lengths
    hidden = encoder.encoder(encoder.log_mel(batch.waveform, lengths)).last_hidden_state
    hidden = hidden.unflatten(1, (-1, 2)).mean(2)
    frames = encoder.count_frames((-(-lengths // 160) + 1) // 2)
    audio, audio_lengths = model.adapter(hidden[:, : int(frames.max())], frames)
    inputs, mask, labels, segments = splice_in_a_loop(model, batch, audio, audio_lengths)
    states = model.llm(inputs, mask)
    text_loss = shifted_loss(model.llm.logits(states), labels)
    decoder = model.speech_decoder
    decoder_inputs, decoder_mask, decoder_labels = interleave_in_a_loop(model, batch, states, segments)
    logits = decoder.lm.get_output_embeddings()(decoder.read(decoder_inputs, decoder_mask))
    return text_loss + shifted_loss(logits, decoder_labels)


def shifted_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over all positions, those without a label ignored."""
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)


def splice_in_a_loop(
    model: SpeechToSpeechModel, batch: DialogueBatch, audio: Tensor, audio_lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs (B, L, D), mask, labels and segments (B, L), row by row."""
    rows = []
    for row, length in enumerate(batch.input_lengths.tolist()):
        ids = batch.input_ids[row, :length]
        place = int((ids == AUDIO_PLACEHOLDER).nonzero())
        heard = audio[row, : int(audio_lengths[row])]
        before, after = model.llm.embed(ids[:place]), model.llm.embed(ids[place + 1 :])
        spread = [
            torch.cat([values[row, :place], torch.full((len(heard),), -1 if name == "segments" else IGNORE_INDEX),
                       values[row, place + 1 : length]])
            for name, values in (("labels", batch.labels), ("segments", batch.segments))
        ]  # fmt: skip
        rows.append((torch.cat([before, heard, after]), torch.ones(length - 1 + len(heard), dtype=torch.bool), *spread))
    inputs, masks, labels, segments = zip(*rows, strict=True)
    return (
        pad_sequence(inputs, batch_first=True),
        pad_sequence(masks, batch_first=True),
        pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        pad_sequence(segments, batch_first=True, padding_value=-1),
    )


def interleave_in_a_loop(
    model: SpeechToSpeechModel, batch: DialogueBatch, states: Tensor, segments: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The speech decoder's inputs (M, L, D), mask and labels (M, L), turn by turn and group by group."""
    decoder, rows = model.speech_decoder, []
    num_conditions, num_units = decoder.chunk_conditions, decoder.chunk_units
    for row in range(len(batch.units)):
        conditions = decoder.project(states[row][segments[row] == row], torch.zeros(0, dtype=torch.long))
        units = torch.cat([batch.units[row, : int(batch.unit_lengths[row])], torch.tensor([decoder.eos_unit])])
        embedded = decoder.lm.get_input_embeddings()(units)
        inputs, labels = (
            [decoder.embed_speaker(batch.speaker_embedding[row : row + 1])[0]],
            [torch.tensor([IGNORE_INDEX])],
        )
        text = spoken = 0
        while text < len(conditions) or spoken < len(units):
            inputs.append(conditions[text : text + num_conditions])
            labels.append(torch.full((len(inputs[-1]),), IGNORE_INDEX))
            inputs.append(embedded[spoken : spoken + num_units])
            labels.append(units[spoken : spoken + num_units])
            text, spoken = text + num_conditions, spoken + num_units
        rows.append((torch.cat(inputs), torch.cat(labels)))
    inputs, labels = zip(*rows, strict=True)
    masks = [torch.ones(len(row), dtype=torch.bool) for row in labels]
    return (
        pad_sequence(inputs, batch_first=True),
        pad_sequence(masks, batch_first=True),
        pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
    )


# --- ours -------------------------------------------------------------------------------------------------------------


def our_loss(model: SpeechToSpeechModel, batch: DialogueBatch) -> Tensor:
    """Text loss plus unit loss, as stage 3 computes them."""
    output = model(batch)
    text = model.llm.sum_over_logits(cross_entropy_and_hits, output.text_states, output.text_labels)
    units = cross_entropy_and_hits(output.units.logits, output.units.labels)
    return text[0] / len(output.text_labels) + units[0] / len(output.units.labels)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--question-sec", type=float, default=4.0)
    parser.add_argument("--text-tokens", type=int, default=24)
    parser.add_argument("--units", type=int, default=100)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = build_model(options.vocabulary)
    batch = make_batch(options.rows, options.question_sec, options.text_tokens, options.units, options.vocabulary)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    print(", ".join(describe_hardware().values()))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters, {options.rows} questions of up to "
          f"{options.question_sec:g} s")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        cache = EncoderCache(folder, model.encoder)

        def ours(real_frames_only: bool = False) -> Tensor:
            model.encoder.real_frames_only = real_frames_only
            return our_loss(model, batch)

        def cached() -> Tensor:
            return our_loss(model, replace(batch, encoded=cache(batch.waveform, batch.waveform_lengths)))

        steps: dict[str, Callable[[], Tensor]] = {
            "reference": lambda: reference_loss(model, batch),
            "published": ours,
            "real frames": lambda: ours(real_frames_only=True),
            "cached": cached,
        }
        times: dict[str, list[float]] = {name: [] for name in steps}
        losses = {}
        for repetition in range(options.repetitions + 1):
            for name, step in steps.items():
                model.encoder.real_frames_only = False
                start = time.perf_counter()
                loss = step()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if repetition:  # the first warms up and fills the cache
                    times[name].append(time.perf_counter() - start)
                losses[name] = loss.item()
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, median in medians.items():
        print(f"{name:12} {median:7.3f} s a step, {medians['reference'] / median:5.2f} x, loss {losses[name]:.6f}")
    for name in ("published", "cached"):
        if abs(losses[name] - losses["reference"]) > 1e-4 * losses["reference"]:
            raise SystemExit(f"{name}: loss {losses[name]:.6f}, the reference has {losses['reference']:.6f}")


if __name__ == "__main__":
    main()
