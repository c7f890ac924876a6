"""Examples and batches, written by hand, and rows that can't be used: reported with their place, or counted."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import soundfile
import torch

from lightning_s2s.data.batch import TranscribedBatch
from lightning_s2s.data.collate import collate_dialogues, collate_vocoder
from lightning_s2s.data.dataset import SpeechDialogueDataset
from lightning_s2s.data.requirements import DataRequirements

RATE = 16_000
SYSTEM = [256, *b"system\nYou are a helpful assistant.", 257, 10]


@pytest.fixture
def requirements(chat_tokenizer) -> DataRequirements:
    return DataRequirements(chat_tokenizer, sample_rate=RATE, unit_rate_hz=25.0, num_units=1000)


@pytest.fixture
def wav(tmp_path):
    """Write constant audio of a value and a length, and give its name."""

    def write(name: str, value: float, samples: int, rate: int = RATE) -> str:
        soundfile.write(tmp_path / name, np.full(samples, value, dtype=np.float32), rate, subtype="FLOAT")
        return name

    return write


def user(*items) -> dict:
    return {"role": "user", "content": list(items)}


def assistant(text: str, units: str = "", **more) -> dict:
    return {"role": "assistant", "content": [{"text": text, "speech_units": units, **more}]}


@pytest.fixture
def three_rows(write_manifest, wav):
    """Two audios and two spoken turns; no audio and no units; one audio and one spoken turn."""
    first, second, third = wav("a.wav", 0.1, 8000), wav("b.wav", 0.2, 12000), wav("c.wav", 0.3, 4000, rate=8000)
    two_turns = [
        user({"audio": first}), assistant("A", "<|audio_7|><|audio_8|><|audio_9|>", spk_emb=[0.5] * 512),
        user({"text": "t"}, {"audio": second}), assistant("B", "<|audio_1|>"),
    ]  # fmt: skip
    text_alone = [{"role": "user", "content": "x"}, assistant("yes")]
    one_turn = [user({"audio": third}), assistant("C", "<|audio_5|><|audio_6|>")]
    return write_manifest([{"id": str(i), "messages": m} for i, m in enumerate([two_turns, text_alone, one_turn])])


def test_a_batch_by_hand(three_rows, requirements):
    dataset = SpeechDialogueDataset([three_rows], requirements)
    batch = collate_dialogues([dataset[0], dataset[1], dataset[2]], pad_id=262)
    heard, opens, closes = [258, -200, 259, 257, 10], [256, *b"assistant\n"], [257, 10]
    rows = [
        [*SYSTEM, 256, *b"user\n", *heard, *opens, 260, 65, 261, *closes,
         256, *b"user\nt", *heard, *opens, 260, 66, 261, *closes],
        [*SYSTEM, 256, *b"user\nx", 257, 10, *opens, *b"yes", *closes],
        [*SYSTEM, 256, *b"user\n", *heard, *opens, 260, 67, 261, *closes],
    ]  # fmt: skip
    longest = len(rows[0])
    assert batch.input_ids.tolist() == [row + [262] * (longest - len(row)) for row in rows]
    assert batch.input_lengths.tolist() == [len(row) for row in rows]
    spoken = [[i for i in range(longest) if batch.segments[b, i] == m] for b, m in ((0, 0), (0, 1), (2, 2))]
    assert [batch.input_ids[b, at].tolist() for b, at in zip((0, 0, 2), spoken, strict=True)] == [
        [260, 65, 261], [260, 66, 261], [260, 67, 261]
    ]  # fmt: skip
    assert int((batch.segments >= 0).sum()) == 9
    assert batch.segments[1].unique().tolist() == [-1]
    learnt = [[i for i in row.tolist() if i != -100] for row in batch.labels]
    assert learnt == [[65, 261, 257, 66, 261, 257], [*b"yes", 257], [67, 261, 257]]
    assert torch.equal(batch.labels[batch.labels != -100], batch.input_ids[batch.labels != -100])
    assert batch.waveform.shape == (3, 12000)
    assert batch.waveform.dtype == torch.float32
    assert batch.waveform_lengths.tolist() == [8000, 12000, 8000]
    np.testing.assert_allclose(batch.waveform[:2, 7999], [0.1, 0.2], atol=1e-6)
    assert batch.waveform[0, 8000:].abs().max() == 0
    np.testing.assert_allclose(batch.waveform[2, 1000:7000], 0.3, atol=1e-3)
    assert batch.units.tolist() == [[7, 8, 9], [1, 0, 0], [5, 6, 0]]
    assert batch.unit_lengths.tolist() == [3, 1, 2]
    assert batch.speaker_embedding.shape == (3, 512)
    assert batch.speaker_embedding.mean(dim=1).tolist() == [0.5, 0.0, 0.0]
    assert [row["id"] for row in batch.rows] == ["0", "1", "2"]
    assert {key: value.dtype for key, value in vars(batch).items() if torch.is_tensor(value)} == {
        "input_ids": torch.int64, "input_lengths": torch.int64, "labels": torch.int64, "segments": torch.int64,
        "waveform": torch.float32, "waveform_lengths": torch.int64, "units": torch.int64, "unit_lengths": torch.int64,
        "speaker_embedding": torch.float32,
    }  # fmt: skip


def test_a_batch_without_audio_and_units(three_rows, requirements):
    batch = collate_dialogues([SpeechDialogueDataset([three_rows], requirements)[1]], pad_id=262)
    shapes = {key: tuple(value.shape) for key, value in vars(batch).items() if torch.is_tensor(value)}
    assert shapes["waveform"] == shapes["units"] == (0, 0)
    assert shapes["waveform_lengths"] == shapes["unit_lengths"] == (0,)
    assert shapes["speaker_embedding"] == (0, 512)


def test_durations_by_hand(three_rows, requirements):
    # Audio + units / 25 Hz + 0.1 s for 4 bytes of text.
    expected = [0.5 + 0.75 + 4 / 25 + 0.025 * 3, 0.025 * 4, 0.5 + 2 / 25 + 0.025]
    assert SpeechDialogueDataset([three_rows], requirements).durations == pytest.approx(expected)


def test_audio_sec_saves_opening_the_file(write_manifest, requirements):
    path = write_manifest([{"messages": [user({"audio": "absent.wav", "audio_sec": 3.5}), assistant("A")]}])
    dataset = SpeechDialogueDataset([path], requirements)
    assert dataset.durations == pytest.approx([3.525])
    with pytest.raises(ValueError, match=r"rows.jsonl:1: audio .*there is no file"):
        dataset[0]


def test_without_encoder_the_words_stand_in_for_audio(write_manifest, chat_tokenizer):
    good = {"messages": [user({"audio": "absent.wav", "transcript": "hm"}), assistant("A")]}
    silent = {"messages": [user({"audio": "absent.wav"}), assistant("A")]}
    text_alone = DataRequirements(chat_tokenizer)
    dataset = SpeechDialogueDataset([write_manifest([good])], text_alone)
    assert dataset.durations == pytest.approx([0.025 * 3])
    example = dataset[0]
    assert example.waveforms == []
    turn = [256, *b"user\n", 258, *b"hm", 259, 257, 10]
    assert example.input_ids == [*SYSTEM, *turn, 256, *b"assistant\nA", 257, 10]
    with pytest.raises(ValueError, match=r"rows.jsonl:2: audio 'absent.wav': has no transcript"):
        SpeechDialogueDataset([write_manifest([good, silent])], text_alone)


def test_vocoder_items(write_manifest, wav):
    rows = [
        {"messages": [user({"audio": wav("a.wav", 0.1, 8000), "transcript": "heard", "text": "prompt"}),
                      assistant("Said.", audio=wav("b.wav", 0.2, 16000))]},
        {"messages": [user({"audio": wav("c.wav", 0.3, 8000)}), assistant("D", audio=wav("d.wav", 0.4, 8000))]},
    ]  # fmt: skip
    dataset = SpeechDialogueDataset([write_manifest(rows)], DataRequirements(sample_rate=RATE, task="vocoder"))
    assert dataset.durations == [0.5, 1.0, 0.5]
    batch = collate_vocoder([dataset[i] for i in range(3)])
    assert isinstance(batch, TranscribedBatch)
    assert batch.texts == ["heard", "Said.", "D"]
    assert batch.waveform.shape == (3, 16000)
    assert batch.waveform_lengths.tolist() == [8000, 16000, 8000]
    np.testing.assert_allclose(batch.waveform[:, 100], [0.1, 0.2, 0.4], atol=1e-6)
    assert [row["line"] for row in batch.rows] == [1, 1, 2]
    text_alone = write_manifest([{"messages": [assistant("A")]}], "text.jsonl")
    with pytest.raises(ValueError, match=r"text.jsonl:1: has no content with both audio and text"):
        SpeechDialogueDataset([text_alone], DataRequirements(sample_rate=RATE, task="vocoder"))


BROKEN = [
    ("{", "not JSON", "is not JSON"),
    ({"messages": [user({"audio": "none.wav"}), assistant("A")]}, "missing audio", "there is no file .*none.wav"),
    ({"messages": [user({"audio": "text.wav"}), assistant("A")]}, "unreadable audio", "expected a wav, flac"),
    ({"messages": [user({"audio": "empty.wav"}), assistant("A")]}, "empty audio", "has no samples"),
    ({"messages": [user({"text": "b"}), assistant("A", "<|audio_1000|>")]}, "wrong units", "allowed: 0..999"),
    ({"messages": [user({"text": "b"})]}, "no assistant turn", "no assistant turn to learn from"),
    ({"messages": [user({"audio": "long.wav"}), assistant("A")]}, "longer than a batch", "batch_duration_sec is 10 s"),
]


def broken_files(folder, wav):
    (folder / "text.wav").write_text("not audio")
    wav("empty.wav", 0.0, 0)
    wav("long.wav", 0.1, 20 * RATE)
    wav("short.wav", 0.1, 7999)
    wav("fine.wav", 0.1, 8000)
    wav("nan.wav", np.nan, 8000)


FINE = {"messages": [user({"audio": "fine.wav"}), assistant("A")]}
SHORT = {"messages": [user({"audio": "short.wav"}), assistant("A")]}
NAN = {"messages": [user({"audio": "nan.wav"}), assistant("A")]}


@pytest.mark.parametrize(("line", "reason", "message"), BROKEN)
def test_a_broken_row_is_fatal_with_its_place(tmp_path, write_manifest, wav, requirements, line, reason, message):
    broken_files(tmp_path, wav)
    path = write_manifest([FINE, line])
    with pytest.raises(ValueError, match=message) as caught:
        SpeechDialogueDataset([path], requirements, max_duration_sec=10.0)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert caught.value.reason == reason


def test_broken_rows_are_skipped_and_counted(tmp_path, write_manifest, wav, requirements, caplog):
    broken_files(tmp_path, wav)
    path = write_manifest([FINE, *(line for line, _, _ in BROKEN), SHORT, SHORT, FINE])
    with caplog.at_level(logging.WARNING):
        dataset = SpeechDialogueDataset([path], requirements, on_error="skip", max_duration_sec=10.0)
    assert [dataset[i].row["line"] for i in range(len(dataset))] == [1, 11]
    assert dataset.problems == {reason: 1 for _, reason, _ in BROKEN} | {"audio shorter than min_audio_sec": 2}
    assert "9 of 11 rows left out: 2 x audio shorter than min_audio_sec; 1 x empty audio;" in caplog.text


SPOKEN = "<|audio_1|><|audio_2|>"


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (assistant("A", SPOKEN, spk_emb="none.npy"), "spk_emb: can't read '.*none.npy' .there is no file"),
        (assistant("A", SPOKEN, spk_emb="~/s.npy"), "spk_emb: .*~ isn't expanded here"),
        (assistant("A", SPOKEN, spk_emb="fine.wav"), "spk_emb: can't read '.*fine.wav'"),
        (assistant("A", SPOKEN, spk_emb=[float("nan")] * 512), "512 finite numbers are needed"),
        (assistant("A", SPOKEN, spk_emb=[0.5] * 511), "512 finite numbers are needed"),
    ],
)
def test_a_speaker_is_looked_for_at_the_start(tmp_path, write_manifest, wav, requirements, reply, message):
    broken_files(tmp_path, wav)
    good = {"messages": [user({"audio": "fine.wav"}), assistant("A", SPOKEN, spk_emb=[0.5] * 512)]}
    path = write_manifest([good, {"messages": [user({"audio": "fine.wav"}), reply]}])
    with pytest.raises(ValueError, match=message) as caught:
        SpeechDialogueDataset([path], requirements)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert caught.value.reason == "wrong speaker embedding"
    dataset = SpeechDialogueDataset([path], requirements, on_error="skip")
    assert dataset.problems == {"wrong speaker embedding": 1} and dataset.num_spoken == 1


@pytest.mark.parametrize(("stated", "fits"), [(0.5, True), (1.0, True), (1.01, False), (30.0, False)])
def test_a_stated_duration_is_compared_with_the_audio(write_manifest, wav, requirements, stated, fits):
    """A batch is made for what is stated; half a second is forgiven."""
    audio = {"audio": wav("a.wav", 0.1, 8000), "audio_sec": stated}
    dataset = SpeechDialogueDataset([write_manifest([{"messages": [user(audio), assistant("A")]}])], requirements)
    assert dataset.durations == pytest.approx([stated + 0.025])
    if fits:
        assert len(dataset[0].waveforms[0]) == 8000
        return
    with pytest.raises(
        ValueError, match=rf"rows.jsonl:1: audio_sec: got {stated:g}, but 'a.wav' lasts 0.500 s"
    ) as caught:
        dataset[0]
    assert caught.value.reason == "wrong audio_sec"


def test_transcripts_are_looked_for_at_the_start(write_manifest, wav, chat_tokenizer):
    heard = {"audio": wav("a.wav", 0.1, 8000)}
    path = write_manifest([{"messages": [user(heard | {"transcript": "a"}), assistant("A")]},
                           {"messages": [user(heard), assistant("A")]}])  # fmt: skip
    needed = DataRequirements(chat_tokenizer, sample_rate=RATE, needs_transcripts=True)
    with pytest.raises(ValueError, match=r"rows.jsonl:2: audio 'a.wav': has no transcript, which the CTC loss reads"):
        SpeechDialogueDataset([path], needed)


def test_costs_equal_what_is_decoded(tmp_path, write_manifest, requirements):
    """By the header of every format, and of an mp3 whose bit rate varies and which no tag describes."""
    noise = np.random.default_rng(0).normal(0, 0.1, 3 * RATE).astype(np.float32)
    noise[: 2 * RATE] *= 1e-4
    for name, options in {
        "a.wav": {}, "a.flac": {}, "a.ogg": {}, "a.opus": {"format": "OGG", "subtype": "OPUS"},
        "a.mp3": {"bitrate_mode": "VARIABLE"},
    }.items():  # fmt: skip
        soundfile.write(tmp_path / name, noise, RATE, **options)
    tagged = (tmp_path / "a.mp3").read_bytes()
    first = tagged.index(b"Xing") - 13  # behind the header and the side information of mono MPEG-2
    (tmp_path / "bare.mp3").write_bytes(tagged[tagged.index(b"\xff\xf3", first + 4) :])
    names = ["a.wav", "a.flac", "a.ogg", "a.opus", "a.mp3", "bare.mp3"]
    path = write_manifest([{"messages": [user({"audio": name}), assistant("A")]} for name in names])
    dataset = SpeechDialogueDataset([path], requirements)
    for index, name in enumerate(names):
        decoded_sec = len(dataset[index].waveforms[0]) / RATE
        assert dataset.durations[index] == pytest.approx(decoded_sec + 0.025, abs=1e-9), name
        assert decoded_sec >= 3.0


def test_short_audio_is_dropped_and_counted_even_when_errors_are_fatal(tmp_path, write_manifest, wav, requirements):
    broken_files(tmp_path, wav)
    dataset = SpeechDialogueDataset([write_manifest([FINE, SHORT])], requirements, on_error="raise")
    assert len(dataset) == 1
    assert dataset.problems == {"audio shorter than min_audio_sec": 1}
    with pytest.raises(ValueError, match=r"short.jsonl: nothing is left to use of 1 rows"):
        SpeechDialogueDataset([write_manifest([SHORT], "short.jsonl")], requirements)
    assert len(SpeechDialogueDataset([tmp_path / "short.jsonl"], requirements, min_audio_sec=0.4)) == 1


def test_what_only_decoding_shows(tmp_path, write_manifest, wav, requirements):
    broken_files(tmp_path, wav)
    path = write_manifest([FINE, NAN])
    with pytest.raises(ValueError, match=r"rows.jsonl:2: audio '.*nan.wav': has NaN or infinite samples"):
        SpeechDialogueDataset([path], requirements, on_error="raise")[1]
    skipped = SpeechDialogueDataset([path], requirements, on_error="skip")[1]
    assert skipped.reason == "not finite audio"
    assert skipped.line == 2


def test_several_manifests_and_a_cache(tiny_corpus, requirements):
    paths = [tiny_corpus.train, tiny_corpus.validation]
    dataset = SpeechDialogueDataset(paths, requirements, cache_audio=True)
    assert [dataset[i].row["id"] for i in range(16)] == [f"d{i:02d}" for i in range(16)]
    assert dataset[3].waveforms[0] is dataset[3].waveforms[0]
    fresh = SpeechDialogueDataset(paths, requirements)
    for i in range(16):
        np.testing.assert_array_equal(dataset[i].waveforms[0], fresh[i].waveforms[0])
        assert len(fresh[i].waveforms[0]) == int((0.6 + 0.1 * (i % 7)) * RATE)


def test_requirements_are_checked(chat_tokenizer):
    with pytest.raises(ValueError, match="task: got 'asr'; allowed: dialogue, vocoder"):
        DataRequirements(chat_tokenizer, task="asr")
    with pytest.raises(ValueError, match="tokenizer: is None"):
        DataRequirements(sample_rate=RATE)
    with pytest.raises(ValueError, match="sample_rate: is None"):
        DataRequirements(chat_tokenizer, task="vocoder")
