"""The contract of all speech decoders: training, streaming, folders, stages and the session."""

from __future__ import annotations

import json
import math
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.nn import functional as F

from lightning_s2s.checkpoints.model_folder import load_model, save_model
from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.ctc import collapse
from lightning_s2s.components.unit_logits import CtcLogits, UnitLogits
from lightning_s2s.data.datamodule import SpeechDialogueData
from lightning_s2s.generation.sampling import Sampler
from lightning_s2s.stages import EmpatheticInstructionTuning, SpeechGenerationPretraining
from lightning_s2s.stages.losses import ctc_accuracy, ctc_loss
from lightning_s2s.streaming.engine import StreamingEngine
from lightning_s2s.streaming.events import Done, TextDelta, Units
from lightning_s2s.streaming.session import respond, stream_reply
from lightning_s2s.streaming.speak import speak_text
from parts.small_decoders import DECODERS, NUM_UNITS, Endless, connected, flat, spoken, whole_model
from parts.small_sizes import DEEP_QWEN
from parts.sounds import sweep
from parts.tolerances import assert_equal_but_for_rounding, assert_same_pocket_sound

every_kind = pytest.mark.parametrize("kind", DECODERS)


def turns(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Units that all decoders support: complete frames of three codebooks with four units each."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 4, (len(lengths), max(lengths)), generator=generator)
    return codes + 4 * (torch.arange(max(lengths)) % 3), torch.tensor(lengths)


def losses(given: UnitLogits) -> torch.Tensor:
    """The losses of all labels, or of all turns, in ascending order."""
    if isinstance(given, CtcLogits):
        turns = zip(given.logits, given.labels, given.logit_lengths, given.label_lengths, strict=True)
        values = [ctc_loss(CtcLogits(*(part.unsqueeze(0) for part in turn))) for turn in turns]
        return torch.stack(values).sort().values
    return F.cross_entropy(given.logits, given.labels, reduction="none").sort().values


@every_kind
@torch.inference_mode()
def test_batched_equals_single(kind):
    decoder = connected(kind)
    conditions, lengths, speaker = torch.randn(3, 7, 16), torch.tensor([7, 4, 5]), torch.randn(3, 512)
    units, counts = turns(6, 9, 3)
    together = losses(decoder(conditions, lengths, units, counts, speaker))
    alone = [
        losses(decoder(conditions[row : row + 1, :size], lengths[row : row + 1], units[row : row + 1, :count],
                       counts[row : row + 1], speaker[row : row + 1]))
        for row, (size, count) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True))
    ]  # fmt: skip
    assert_equal_but_for_rounding(together, torch.cat(alone).sort().values)
    assert together.isfinite().all() and together.min() > 0


@every_kind
def test_no_turns(kind):
    decoder = connected(kind)
    none = torch.zeros(0, dtype=torch.long)
    given = decoder(torch.zeros(0, 0, 16), none, none.reshape(0, 0), none, torch.zeros(0, 512))
    assert given.logits.numel() == given.labels.numel() == 0


@every_kind
@pytest.mark.parametrize("num_conditions", [1, 4, 7])
def test_units_do_not_depend_on_how_conditions_are_cut(kind, num_conditions):
    decoder = connected(kind)
    conditions = 3 * torch.randn(1, num_conditions, 16)
    whole = flat(spoken(decoder, conditions, [num_conditions], Endless()))
    assert (whole or num_conditions == 1) and all(0 <= unit < NUM_UNITS for unit in whole)
    for sizes in ([1] * num_conditions, [1, num_conditions - 1], [3, num_conditions - 3], [num_conditions, 0]):
        if min(sizes) >= 0:
            given = spoken(decoder, conditions, sizes, Endless())
            assert flat(given) == whole
            assert all(len(group) <= decoder.chunk_units for groups in given for group in groups)


@every_kind
@torch.inference_mode()
def test_what_is_said_greedily_is_most_likely_while_training(kind):
    decoder = connected(kind)
    for num_conditions in (1, 3, 4, 7):
        conditions = 3 * torch.randn(1, num_conditions, 16)
        units = flat(spoken(decoder, conditions, [num_conditions]))
        given = decoder(
            conditions, torch.tensor([num_conditions]), torch.tensor([units]), torch.tensor([len(units)]),
            torch.zeros(1, 512),
        )  # fmt: skip
        best = given.logits.argmax(-1)
        if isinstance(given, CtcLogits):
            assert collapse(best[0], NUM_UNITS, NUM_UNITS).tolist() == units
            assert ctc_accuracy(given) == 1.0
        else:
            eos = given.labels == given.logits.shape[-1] - 1  # not drawn if max_units ends the turn
            assert int(eos.sum()) == 1 and int((~eos).sum()) == len(units)
            assert torch.equal(best[~eos], given.labels[~eos])
            assert bool(best[eos] == given.labels[eos]) or len(units) in (12, 14)


@every_kind
def test_a_folder_gives_the_same_answer(kind, tokenizer_folder, tmp_path):
    model = whole_model(tokenizer_folder, kind)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    replies = [respond(who, sweep(0.6), 16_000, max_text_tokens=9) for who in (model, again)]
    assert replies[0].unit_ids and replies[0].unit_ids == replies[1].unit_ids
    assert replies[0].text_ids == replies[1].text_ids


@every_kind
def test_answers_of_a_batch_equal_those_alone(kind, tokenizer_folder):
    """Three sessions in two slots, each with its own seed; the third enters when another leaves."""
    model = whole_model(tokenizer_folder, kind)
    settings = [{"greedy": False, "seed": seed, "max_text_tokens": 5 + 3 * seed} for seed in range(3)]
    expected = [respond(model, sweep(0.6), 16_000, **options) for options in settings]
    engine = StreamingEngine(model, 2)
    running, replies = [stream_reply(model, sweep(0.6), 16_000, engine=engine, **options) for options in settings], {}
    while len(replies) < 3:
        for number, stream in enumerate(running):
            if isinstance(event := next(stream, None), Done):
                replies[number] = event.reply
    for number, reply in enumerate(expected):
        assert (replies[number].text_ids, replies[number].unit_ids) == (reply.text_ids, reply.unit_ids)
        assert_same_pocket_sound(replies[number].waveform, reply.waveform)
    assert len({tuple(reply.text_ids) for reply in expected}) == 3


@every_kind
def test_an_answer_is_streamed(kind, tokenizer_folder):
    model = whole_model(tokenizer_folder, kind)
    *events, done = stream_reply(model, sweep(0.6), 16_000, max_text_tokens=9, unit_sampler=Endless())
    groups = [event.units for event in events if isinstance(event, Units)]
    assert sum(groups, []) == done.reply.unit_ids and len(groups) > 1
    assert max(map(len, groups)) <= model.speech_decoder.chunk_units
    kinds = [type(event) for event in events]
    assert kinds.index(Units) < len(kinds) - 1 - kinds[::-1].index(TextDelta)  # speech begins before the text ends
    expected = model.vocoder.synthesize(torch.tensor([done.reply.unit_ids]))[0]
    assert_same_pocket_sound(done.reply.waveform, expected)


@every_kind
def test_a_text_is_spoken(kind, tokenizer_folder):
    units = speak_text(whole_model(tokenizer_folder, kind), "Hi there", Sampler(temperature=0.0))
    assert units and max(units) < NUM_UNITS


@every_kind
@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (SpeechGenerationPretraining, {"condition": "text", "freeze": ["llm.*", "encoder.*", "adapter.*"]}),
        (SpeechGenerationPretraining, {"freeze": ["llm.*", "encoder.*", "adapter.*"]}),
        (EmpatheticInstructionTuning, {"freeze": ["encoder.*"]}),
    ],
    ids=["2a", "2b", "3"],
)
def test_stages_train_it(kind, recipe, options, tokenizer_folder, tiny_corpus, tmp_path):
    for path in (tiny_corpus.train, tiny_corpus.validation):
        speak_in_frames(Path(path))
    parts = dict(whole_model(tokenizer_folder, kind).named_children())
    # A decoder can be connected to one model only.
    stage = recipe(**parts | {"speech_decoder": DECODERS[kind](), "adapter": ConvAdapter(inner_width=8)}, **options)
    before = {name: tensor.clone() for name, tensor in stage.model.speech_decoder.state_dict().items()}
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, default_root_dir=tmp_path, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=1, num_sanity_val_steps=0,
        val_check_interval=2,
    )  # fmt: skip
    trainer.fit(stage, SpeechDialogueData(tiny_corpus.train, tiny_corpus.validation, max_batch_size=4))
    figures = {name: float(value) for name, value in trainer.callback_metrics.items() if "unit" in name}
    assert figures.keys() == {f"{split}/unit_{name}" for split in ("train", "val") for name in ("loss", "accuracy")}
    assert all(math.isfinite(value) for value in figures.values()) and figures["train/unit_loss"] > 0
    changed = {n for n, tensor in stage.model.speech_decoder.state_dict().items() if not torch.equal(before[n], tensor)}
    read = "text_" if options.get("condition") == "text" else "llm_"
    assert any(name.startswith(read) for name in changed) and any(name.startswith("lm.") for name in changed)
    again = load_model(tmp_path / "model")
    assert all(torch.equal(t, stage.model.state_dict()[n]) for n, t in again.state_dict().items())


def speak_in_frames(manifest: Path) -> None:
    """Give every reply nine units that all decoders support."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        row["messages"][-1]["content"][0]["speech_units"] = turns(9)[0][0].tolist()
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))


@every_kind
def test_it_learns_to_say_what_it_is_taught(kind):
    """Two texts with their units, overfitted within seconds, then spoken in a stream."""
    decoder = connected(kind, config=DEEP_QWEN | {"hidden_size": 32, "initializer_range": 0.05}).train()
    texts, lengths = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 0, 0]]), torch.tensor([6, 4])
    units, counts = turns(12, 9)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(150):
        given = decoder(decoder.embed_text(texts), lengths, units, counts, torch.zeros(2, 512))
        loss = ctc_loss(given) if isinstance(given, CtcLogits) else F.cross_entropy(given.logits, given.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    decoder.eval()
    for row in range(2):
        conditions = decoder.embed_text(texts[row : row + 1, : lengths[row]])
        assert flat(spoken(decoder, conditions, [1] * int(lengths[row]))) == units[row, : counts[row]].tolist()
