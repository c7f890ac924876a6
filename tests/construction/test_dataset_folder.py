"""Dialogues as a folder for the package datasets: what is written is what is loaded, sound and all."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from lightning_s2s.construction.dataset_folder import dataset_features, write_dataset
from lightning_s2s.construction.dialogue import Candidate, Dialogue, DialogueTurn
from lightning_s2s.construction.speech.opus import encode_opus

CLIPS = {
    "a-sad": "questions/1.opus",
    "a-happy": "questions/2.opus",
    "b": "questions/3.opus",
    "b-turn2": "questions/4.opus",
}
UNITS = {"tts/1.flac": [3, 1], "tts/2.flac": [7], "tts/3.flac": []}
SAMPLES = 8000
"""Samples of a question are this times its number; half of them of a reply's, which is at 24 kHz."""


@pytest.fixture
def work(tmp_path) -> Path:
    folder = tmp_path / "work"
    (folder / "questions").mkdir(parents=True)
    (folder / "tts").mkdir()
    for number in range(1, 5):
        noise = np.random.default_rng(number).uniform(-0.3, 0.3, number * SAMPLES).astype(np.float32)
        (folder / f"questions/{number}.opus").write_bytes(encode_opus(noise, 16_000))
        sf.write(folder / f"tts/{number}.flac", noise[: number * SAMPLES // 2], 24_000)
    return folder


def candidates() -> list[Candidate]:
    first = Dialogue(
        "a-sad", "train", "am_adam", (DialogueTurn("It rains.", "sad", "I see."),), "a", True, {"topic": "weather"}
    )
    second = Dialogue(
        "a-happy", "train", "am_adam", (DialogueTurn("It rains.", "happy", "Hurray!", "happy", "loud"),), "a"
    )
    turns = (DialogueTurn("Stop it!", "angry", "I see."), DialogueTurn("Thanks.", "neutral", "Gladly."))
    third = Dialogue("b", "test", "af_bella", turns, "b", False)
    left_out = Dialogue("c", "validation", "af_sky", (DialogueTurn("No.", "sad", "Yes."),), "c")
    clean = ["not/read.opus"]
    return [
        Candidate(first, {"reply_mos": 4.5, "heard": ["sad"]}, clips=clean, replies=["tts/1.flac"]),
        Candidate(left_out, rejected_by="duration", reason="too short"),
        Candidate(second, clips=clean, replies=["tts/2.flac"]),
        Candidate(third, clips=clean * 2, replies=["tts/1.flac", "tts/3.flac"]),
    ]


def load(folder: Path, **options) -> dict[str, list[dict]]:
    """Split -> rows, sound as it lies in the files."""
    import datasets

    loaded = datasets.load_dataset(str(folder), cache_dir=str(folder.parent / "cache"), **options)
    assert all(part.features == dataset_features() for part in loaded.values())
    features = dataset_features()
    for name in ("question", "reply_audio"):
        features["turns"].feature[name].decode = False
    return {split: list(part.cast(features)) for split, part in loaded.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_written_is_loaded(work, tmp_path, streaming):
    write_dataset(tmp_path / "dataset", candidates(), CLIPS, UNITS, work)
    loaded = load(tmp_path / "dataset", streaming=streaming)

    def sound(name: str, path: str) -> dict:
        return {"bytes": (work / path).read_bytes(), "path": name}

    assert list(loaded) == ["train", "test"]
    assert [row["id"] for row in loaded["train"]] == ["a-sad", "a-happy"]
    sad, happy = loaded["train"]
    assert json.loads(sad.pop("seed")) == {"topic": "weather"} and json.loads(happy.pop("seed")) == {}
    assert json.loads(sad.pop("figures")) == {"reply_mos": 4.5, "heard": ["sad"]}
    assert sad == {
        "id": "a-sad",
        "speaker": "am_adam",
        "pair": "a",
        "ambiguous": True,
        "turns": [
            {
                "text": "It rains.",
                "emotion": "sad",
                "style": "",
                "question": sound("a-sad.opus", "questions/1.opus"),
                "reply": "I see.",
                "reply_emotion": "neutral",
                "reply_audio": sound("a-sad-reply.flac", "tts/1.flac"),
                "reply_units": [3, 1],
            }
        ],
    }
    assert (happy["turns"][0]["style"], happy["turns"][0]["reply_emotion"]) == ("loud", "happy")
    (two_turns,) = loaded["test"]
    assert two_turns["ambiguous"] is False
    assert [turn["text"] for turn in two_turns["turns"]] == ["Stop it!", "Thanks."]
    assert [turn["reply_units"] for turn in two_turns["turns"]] == [[3, 1], []]
    assert [turn["question"] for turn in two_turns["turns"]] == [
        sound("b.opus", "questions/3.opus"),
        sound("b-turn2.opus", "questions/4.opus"),
    ]
    assert two_turns["turns"][1]["reply_audio"] == sound("b-turn2-reply.flac", "tts/3.flac")


def test_sound_is_decoded_as_it_was(work, tmp_path):
    write_dataset(tmp_path / "dataset", candidates(), CLIPS, UNITS, work)
    turn = load(tmp_path / "dataset")["test"][0]["turns"][1]
    question, rate = sf.read(io.BytesIO(turn["question"]["bytes"]))
    assert (rate, len(question)) == (16_000, 4 * SAMPLES)
    reply, rate = sf.read(io.BytesIO(turn["reply_audio"]["bytes"]))
    assert (rate, len(reply)) == (24_000, 3 * SAMPLES // 2)
    np.testing.assert_array_equal(reply, sf.read(work / "tts/3.flac")[0])


def test_units_are_null_without_a_vocoder(work, tmp_path):
    write_dataset(tmp_path / "dataset", candidates(), CLIPS, None, work)
    rows = [row for split in load(tmp_path / "dataset").values() for row in split]
    assert [turn["reply_units"] for row in rows for turn in row["turns"]] == [None] * 4


def test_shards_are_bounded(work, tmp_path):
    folder = tmp_path / "dataset"
    write_dataset(folder, candidates(), CLIPS, UNITS, work, shard_bytes=1)
    assert sorted(path.name for path in folder.rglob("*.*")) == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    assert [row["id"] for row in load(folder)["train"]] == ["a-sad", "a-happy"]


def test_a_shard_takes_what_fits(work, tmp_path):
    sizes = [
        (work / clip).stat().st_size for clip in ("questions/1.opus", "tts/1.flac", "questions/2.opus", "tts/2.flac")
    ]
    write_dataset(tmp_path / "one", candidates(), CLIPS, UNITS, work, shard_bytes=sum(sizes))
    write_dataset(tmp_path / "two", candidates(), CLIPS, UNITS, work, shard_bytes=sum(sizes) - 1)
    assert len(list(tmp_path.glob("one/data/train*"))) == 1
    assert len(list(tmp_path.glob("two/data/train*"))) == 2


def test_the_same_input_gives_the_same_bytes(work, tmp_path):
    for name in ("one", "two"):
        write_dataset(tmp_path / name, candidates(), CLIPS, UNITS, work, shard_bytes=1)
    assert len(contents(tmp_path / "one")) == 3
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_an_older_folder_is_replaced_whole(work, tmp_path):
    out = tmp_path / "corpus"
    folder = out / "dataset"
    write_dataset(folder, candidates(), CLIPS, UNITS, work, shard_bytes=1)
    write_dataset(folder, candidates()[:1], CLIPS, UNITS, work)
    assert [path.name for path in folder.rglob("*.*")] == ["train-00000-of-00001.parquet"]
    assert list(out.iterdir()) == [folder]


def test_after_an_error_the_older_folder_is_there(work, tmp_path):
    out = tmp_path / "corpus"
    write_dataset(out / "dataset", candidates(), CLIPS, UNITS, work)
    before = contents(out / "dataset")
    (work / "tts/3.flac").unlink()
    with pytest.raises(FileNotFoundError):
        write_dataset(out / "dataset", candidates(), CLIPS, UNITS, work)
    assert contents(out / "dataset") == before
    assert list(out.iterdir()) == [out / "dataset"]


def test_what_a_killed_run_left_is_cleared_away(work, tmp_path):
    out = tmp_path / "corpus"
    half = out / ".dataset.new" / "data"
    half.mkdir(parents=True)
    (half / "train-00000-of-00009.parquet").write_bytes(b"half")
    (out / ".dataset.old").mkdir()
    write_dataset(out / "dataset", candidates(), CLIPS, UNITS, work)
    assert list(out.iterdir()) == [out / "dataset"]
    assert len(contents(out / "dataset")) == 2


def test_a_run_killed_while_it_replaced_loses_nothing(work, tmp_path):
    out = tmp_path / "corpus"
    write_dataset(out / "dataset", candidates(), CLIPS, UNITS, work)
    before = contents(out / "dataset")
    (out / "dataset").rename(out / ".dataset.old")
    with pytest.raises(KeyError):
        write_dataset(out / "dataset", candidates(), CLIPS, {}, work)
    assert contents(out / "dataset") == before
    assert list(out.iterdir()) == [out / "dataset"]


def test_nothing_to_write(work, tmp_path):
    with pytest.raises(ValueError, match="no dialogue is kept"):
        write_dataset(tmp_path / "dataset", candidates()[1:2], CLIPS, UNITS, work)
    assert not (tmp_path / "dataset").exists()
