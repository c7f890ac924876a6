"""Seeds: sampled so that everything is covered, or read from a file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lightning_s2s.construction.running import Local
from lightning_s2s.construction.writing import WritingJob
from lightning_s2s.construction.writing.seeds import Seeds
from lightning_s2s.data.tasks import EMOTIONS

VOICES = {"train": ["af_one", "am_two", "bf_three"], "validation": ["af_four"], "test": ["bm_five"]}
TRAITS = {"?f_*": {"gender": "female"}, "?m_*": {"gender": "male"}, "b*": {"accent": "British"}}


def order(seed: int = 1, voices=VOICES) -> WritingJob:
    return WritingJob(voices, TRAITS, seed, Local(), Path("."))


def test_later_patterns_come_before_earlier_ones():
    traits = {"*": {"age": "adult", "gender": "any"}, "af_*": {"gender": "female"}}
    assert WritingJob(VOICES, traits, 1, Local(), Path(".")).traits_of("af_one") == {"age": "adult", "gender": "female"}


def test_sampled_seeds_cover_everything_evenly():
    seeds = Seeds({"train": 24, "test": 2}, topics=["a", "b", "c", "d"], situations=["x", "y"]).make(order())
    assert [seed.split for seed in seeds] == ["train"] * 24 + ["test"] * 2
    train = seeds[:24]
    assert Counter(seed.about["topic"] for seed in train) == dict.fromkeys("abcd", 6)
    assert Counter(seed.about["situation"] for seed in train) == dict.fromkeys("xy", 12)
    assert Counter(seed.speaker for seed in train) == dict.fromkeys(VOICES["train"], 8)
    assert Counter(seed.emotions for seed in train) == {(emotion,): 6 for emotion in EMOTIONS}
    assert {seed.about["language"] for seed in train} == {"English"}
    for seed in seeds:
        gender = "female" if seed.speaker[1] == "f" else "male"
        assert seed.about["gender"] == gender and ("accent" in seed.about) == (seed.speaker[0] == "b")
    assert len({seed.id for seed in seeds}) == 26


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_minimal_pairs_have_different_emotions_and_all_equally_often(count):
    seeds = Seeds({"train": 16}, emotions_per_line=count, topics=["a"], situations=["b"]).make(order())
    assert all(len(set(seed.emotions)) == count for seed in seeds)
    drawn = Counter(emotion for seed in seeds for emotion in seed.emotions)
    assert max(drawn.values()) - min(drawn.values()) <= 1 and sum(drawn.values()) == 16 * count


def test_the_same_order_gets_the_same_and_more_lines_keep_those_before():
    some, more = (Seeds({"train": n}, emotions_per_line=3, topics=list("abc"), situations=["b"]) for n in (5, 9))
    assert some.make(order()) == more.make(order())[:5]
    assert some.make(order(2)) != some.make(order())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Seeds(), "seeds: give either lines .* or file"),
        (lambda: Seeds({"train": 1}, file="x.csv"), "seeds: give either lines .* or file"),
        (lambda: Seeds({"trian": 1}), "lines: unknown split 'trian'; did you mean train"),
        (lambda: Seeds({"train": 1}, emotions_per_line=5), "emotions_per_line must be 1 to 4, .* got 5"),
        (
            lambda: Seeds({"test": 1}, topics=["a"]).make(order(voices=VOICES | {"test": []})),
            "user_voices: test has none, but seeds asks for 1 lines of it",
        ),
    ],
)
def test_broken_settings(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_given_seeds_choose_a_voice_that_fits(tmp_path):
    path = tmp_path / "seeds.csv"
    path.write_text(
        "emotion,split,gender,topic,mood,speaker\n"
        "sad|happy,train,male,a lost key,,\n"
        "angry,,,,stormy,bf_three\n"
        "neutral,test,,rain,,\n"
    )
    first, second, third = Seeds(file=str(path)).make(order())
    assert (first.id, first.speaker, first.emotions) == ("train-00000", "am_two", ("sad", "happy"))
    assert first.about == {"language": "English", "gender": "male", "topic": "a lost key"}
    assert (second.id, second.speaker, second.about["mood"]) == ("train-00001", "bf_three", "stormy")
    assert (third.id, third.split, third.speaker) == ("test-00000", "test", "bm_five")
    jsonl = tmp_path / "seeds.jsonl"
    jsonl.write_text('{"emotion": "sad|happy", "gender": "male", "topic": "a lost key", "split": "train"}\n')
    assert Seeds(file=str(jsonl)).make(order()) == [first]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.csv", "emotion\nsadd\n", r"s.csv:2: unknown emotion 'sadd'; did you mean sad"),
        ("s.csv", "topic\nrain\n", "s.csv:2: emotion is missing"),
        ("s.csv", "emotion,split\nsad,dev\n", "s.csv:2: unknown split 'dev'"),
        (
            "s.csv",
            "emotion,speaker\nsad,af_on\n",
            "unknown speaker among the train voices 'af_on'; did you mean af_one",
        ),
        (
            "s.csv",
            "emotion,gender,split\nsad,male,validation\n",
            "no voice of validation has gender male; see voice_tr",
        ),
        ("s.jsonl", "{\n", "s.jsonl:1: not valid JSON"),
        ("s.jsonl", "[1]\n", "s.jsonl:1: must be an object"),
        ("s.txt", "", "seeds must be a .jsonl or a .csv file"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        Seeds(file=str(tmp_path / name)).make(order())


def test_a_missing_file():
    with pytest.raises(ValueError, match="nowhere.csv: can't be read: No such file"):
        Seeds(file="nowhere.csv").make(order())
