"""The constructed corpus: a grammar that recognises its own replies, plans that repeat, and nothing leaked."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from lightning_s2s.construction import pipeline
from lightning_s2s.construction.augmentation import Augmentation
from lightning_s2s.construction.pipeline import _fingerprint, construct
from lightning_s2s.construction.plan import SPLITS, CorpusConfig, held_out, plan_questions, plan_replies
from lightning_s2s.construction.prosody import Prosody, analyse, render
from lightning_s2s.construction.speech import SpeechError, SpeechSynthesizer
from lightning_s2s.construction.writer import EMOTIONS, DialogueGrammar
from lightning_s2s.data import load_audio, read_manifest

RULES = {
    "topics": ["job", "house", "exam", "trip", "car", "party", "school", "garden"],
    "people": ["sister", "boss"],
    "times": ["today", "yesterday"],
    "lines": {
        "ambiguous": ["I heard about the {topic}.", "My {who} called about the {topic} {when}.", "It was the {topic}."],
        **{emotion: [f"I am {emotion} about the {{topic}}.", f"The {{topic}} is {emotion}."] for emotion in EMOTIONS},
    },
    "replies": {
        emotion: {
            "openings": [f"So {emotion}!", f"How {emotion}.", f"Truly {emotion}."],
            "sentences": ["Tell me of the {topic}.", "The {topic}, again?", "Is it the {topic}?"],
        }
        for emotion in EMOTIONS
    },
    "continuations": {emotion: [f"and I feel {emotion}"] for emotion in EMOTIONS},
}  # fmt: skip
COUNTS = {"train": 4, "validation": 1, "test": 1}


class Tone(SpeechSynthesizer):
    """Says everything by the same tone, except what is in `mute`."""

    identity, concurrency = "tone", 3

    def __init__(self, has_emotions: bool = False):
        self.has_emotions, self.mute, self.asked = has_emotions, set(), []

    def check(self, voices):
        self.voices = list(voices)

    def synthesise(self, text, voice, emotion="neutral", style="", speed=1.0):
        self.asked.append((text, voice, emotion))
        if text in self.mute:
            raise SpeechError("a sore throat")
        return np.sin(np.arange(24_000 * 6 // 10) * 0.05).astype(np.float32), 24_000


@pytest.fixture
def grammar_file(tmp_path) -> Path:
    path = tmp_path / "grammar.yaml"
    path.write_text(yaml.safe_dump(RULES))
    return path


@pytest.fixture
def grammar(grammar_file) -> DialogueGrammar:
    return DialogueGrammar(grammar_file)


@pytest.fixture
def config(grammar_file, tmp_path) -> CorpusConfig:
    return CorpusConfig(
        grammar=str(grammar_file), output_dir=str(tmp_path / "corpus"), work_dir=str(tmp_path / "work"),
        tts=Tone(), vocoder="codec", assistant_voice="anna", assistant_speed=1.0,
        user_voices={"train": ["bob", "cleo"], "validation": ["dan"], "test": ["eve"]}, user_speed=1.0,
        ambiguous_lines=dict(COUNTS), emotions_per_line={"train": 3, "validation": 4, "test": 4},
        explicit_lines={"train": 4, "validation": 4, "test": 4}, replies_per_emotion=72, held_out_share=0.3,
        prosody={emotion: Prosody() for emotion in EMOTIONS},
    )  # fmt: skip


def test_judge_knows_every_reply_and_nothing_else(grammar):
    for emotion in EMOTIONS:
        for reply in grammar.replies(emotion):
            assert grammar.judge(reply) == (emotion, grammar.topic_of(reply))
    assert grammar.judge("so HAPPY... tell me of the job") == ("happy", "job")
    for other in ("", "So happy!", "So happy! Tell me of the moon.", "So happy! Tell me of the job. Tell me."):
        assert grammar.judge(other) is None


def test_topic(grammar):
    assert grammar.topic_of("My boss called about the EXAM, today.") == "exam"
    assert grammar.find_topic("jobs and housing") is None


def test_lines_are_distinct_and_filled_in(grammar):
    lines = grammar.lines("ambiguous")
    assert len(lines) == len(set(lines)) == 8 + 32 + 8
    assert not [line for line in lines if "{" in line]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({key: RULES[key] for key in RULES if key != "topics"}, "the grammar lacks topics"),
        ({**RULES, "replies": {"happy": RULES["replies"]["happy"]}}, "no entry for the emotion 'neutral'"),
        (None, "the grammar lacks continuations, lines"),
    ],
)
def test_a_broken_grammar(tmp_path, broken, message):
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(broken))
    with pytest.raises(ValueError, match=message):
        DialogueGrammar(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("user_voices", {"train": ["bob"], "test": ["eve"]}, "user_voices: needs the keys train, validation, test"),
        ("ambiguous_lines", {"train": 1}, "ambiguous_lines: needs the keys"),
        ("augmentation", Augmentation(["training"], level_db=(0, 1)), "unknown split 'training'; did you mean train"),
        ("prosody", None, "prosody: Tone speaks every emotion alike"),
        ("prosody", {"happy": Prosody()}, "prosody: needs the keys neutral, happy, sad, angry; got happy"),
        ("user_voices", {"train": ["bob"], "validation": ["bob"], "test": ["eve"]}, r"shared: \['bob'\]"),
        ("user_voices", {"train": ["anna"], "validation": ["bob"], "test": ["eve"]}, "shared: .*anna"),
    ],
)
def test_a_broken_config(config, key, value, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **{key: value})


def test_the_plan_depends_on_the_seed_alone(grammar, config):
    plan = plan_questions(grammar, config)
    random.seed(123)
    assert plan_questions(grammar, config) == plan
    assert plan_questions(grammar, replace(config, seed=2)) != plan
    assert len({question.id for question in plan}) == len(plan) == 4 * 3 + 4 + 2 * (4 + 4)


def test_a_reply_fits_what_is_said_and_how(grammar, config):
    for question in plan_questions(grammar, config):
        assert grammar.judge(question.reply) == (question.emotion, grammar.topic_of(question.text))


def test_pairs_share_words_and_voice_and_differ_in_emotion(grammar, config):
    pairs: dict[str, list] = {}
    for question in plan_questions(grammar, config):
        if question.ambiguous:
            pairs.setdefault(question.pair, []).append(question)
    assert len(pairs) == sum(COUNTS.values())
    for group in pairs.values():
        assert len({(question.text, question.speaker) for question in group}) == 1
        assert len({question.emotion for question in group}) == len(group) >= 3


def test_no_line_reply_or_voice_of_the_test_is_trained_on(grammar, config):
    plan = plan_questions(grammar, config)
    split = {name: [question for question in plan if question.split == name] for name in SPLITS}
    for question in split["train"]:
        assert not held_out(question.text, 0.3) and not held_out(question.reply, 0.3)
    for unseen in ("validation", "test"):
        assert all(held_out(question.text, 0.3) for question in split[unseen])
        assert not {q.text for q in split[unseen]} & {q.text for q in split["train"]}
    voices = {name: {question.speaker for question in rows} for name, rows in split.items()}
    assert voices == {"train": {"bob", "cleo"}, "validation": {"dan"}, "test": {"eve"}}


def test_too_few_replies_for_a_topic_are_told(grammar, config):
    with pytest.raises(ValueError, match="replies_per_emotion 1: none of the .* replies is about .*; raise it"):
        plan_questions(grammar, replace(config, replies_per_emotion=1))


def test_replies_are_chosen_once(grammar, config):
    few = plan_replies(grammar, replace(config, replies_per_emotion=5))
    assert {emotion: len(set(replies)) for emotion, replies in few.items()} == dict.fromkeys(EMOTIONS, 5)
    more = plan_replies(grammar, config)
    assert all(more[emotion][:5] == few[emotion] for emotion in EMOTIONS)  # more replies keep those rendered


def test_dialogues_may_draw_from_the_first_replies_alone(grammar, config):
    some = plan_questions(grammar, replace(config, dialogue_replies_per_emotion=40))
    first = {
        reply
        for replies in plan_replies(grammar, replace(config, replies_per_emotion=40)).values()
        for reply in replies
    }
    assert {question.reply for question in some} <= first
    assert not {question.reply for question in plan_questions(grammar, config)} <= first
    assert some == plan_questions(grammar, replace(config, replies_per_emotion=40))


class FakeCodec:
    """Units that count up."""

    sample_rate, samples_per_unit = 16_000, 640

    def __init__(self, checkpoint):
        self.checkpoint = checkpoint

    def eval(self):
        return self

    def tokenize(self, waveform, lengths):
        import torch

        return torch.arange(waveform.shape[1] // 640).unsqueeze(0), lengths // 640


@pytest.fixture
def corpus(config, monkeypatch) -> CorpusConfig:
    monkeypatch.setattr("lightning_s2s.vocoders.pocket.PocketVocoder", FakeCodec)
    monkeypatch.setattr(pipeline, "analyse", lambda waveform, rate: waveform)
    monkeypatch.setattr(pipeline, "render", lambda analysis, rate, prosody: analysis)
    construct(config)
    return config


def test_a_constructed_corpus(corpus, grammar):
    folder = Path(corpus.output_dir)
    names = {path.name for path in folder.iterdir()}
    assert {"questions.zip", "train.jsonl.gz", "understanding_test.jsonl.gz", "speech_train.jsonl.gz"} <= names
    for name in sorted(name for name in names if name.endswith(".jsonl.gz")):
        assert len(read_manifest(str(folder / name))), name

    row = json.loads(gzip.decompress((folder / "test.jsonl.gz").read_bytes()).splitlines()[-1])
    question, reply = (message["content"][0] for message in row["messages"])
    waveform = load_audio(question["audio"], folder, 16_000)
    assert len(waveform) == pytest.approx(9600, abs=400)
    assert 0.02 < np.sqrt((waveform**2).mean()) < 0.2  # not silence; a low bit rate changes the level of a tone
    assert reply["speech_units"].startswith("<|audio_0|><|audio_1|>")
    assert grammar.judge(reply["text"]) == (question["emotion"], grammar.topic_of(question["transcript"]))

    for name in ("train", "understanding_train", "speech_train", "language_train"):
        for line in gzip.decompress((folder / f"{name}.jsonl.gz").read_bytes()).splitlines():
            user, answer = (message["content"][0] for message in json.loads(line)["messages"])
            heard = user.get("transcript") or user["audio_text"].partition(") ")[2]
            assert not held_out(heard, 0.3), name
            assert grammar.judge(answer["text"]) is None or not held_out(answer["text"], 0.3), name


def test_constructing_again_gives_the_same_bytes(corpus):
    folder = Path(corpus.output_dir)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    construct(corpus)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_pair_is_spoken_once_and_every_voice_checked_before(corpus, grammar):
    asked = corpus.tts.asked
    assert len(asked) == len(set(asked)) and {emotion for _, _, emotion in asked} == {"neutral"}
    questions = plan_questions(grammar, corpus)
    lines = {(question.text, question.speaker) for question in questions}
    replies = {reply for group in plan_replies(grammar, corpus).values() for reply in group}
    assert {(text, voice) for text, voice, _ in asked} == lines | {(reply, "anna") for reply in replies}
    assert corpus.tts.voices == ["bob", "cleo", "dan", "eve"]


def test_an_engine_with_emotions_is_asked_for_them(config, grammar, monkeypatch):
    """No prosody is laid over it; the replies may be another engine's."""
    monkeypatch.setattr("lightning_s2s.vocoders.pocket.PocketVocoder", FakeCodec)
    config = replace(config, tts=Tone(has_emotions=True), assistant_tts=Tone(), prosody=None)
    construct(config)
    expected = {(question.text, question.speaker, question.emotion) for question in plan_questions(grammar, config)}
    assert set(config.tts.asked) == expected and len(config.tts.asked) == len(expected)
    assert {voice for _, voice, _ in config.assistant_tts.asked} == {"anna"}


def test_augmentation_is_recorded_and_changes_the_training_questions_alone(corpus, tmp_path):
    augmented = replace(
        corpus, output_dir=str(tmp_path / "again"), augmentation=Augmentation(noise=["white"], snr_db=(0.0, 9.0))
    )
    construct(augmented)
    for split, changes in (("train", True), ("test", False)):
        for manifest in (f"{split}.jsonl.gz", f"understanding_{split}.jsonl.gz"):
            for clean, noisy in zip(
                *(read_rows(Path(c.output_dir) / manifest) for c in (corpus, augmented)), strict=True
            ):
                figures = noisy["messages"][0]["content"][0].pop("augmentation", None)
                sounds = [
                    load_audio(row["messages"][0]["content"][0].pop("audio"), c.output_dir, 16_000)
                    for c, row in ((corpus, clean), (augmented, noisy))
                ]
                assert clean == noisy and np.array_equal(*sounds) != changes
                assert (figures is None) != changes and (figures is None or 0 <= figures["snr_db"] <= 9)


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_what_can_not_be_spoken_is_counted_and_stops_nothing_else(corpus, tmp_path, grammar):
    """Once the engine is well, the same command speaks the rest and gives what an unbroken run gives."""
    broken = replace(corpus, output_dir=str(tmp_path / "again"), work_dir=str(tmp_path / "fresh"), tts=Tone())
    questions = plan_questions(grammar, broken)
    broken.tts.mute = {questions[0].text, questions[-1].reply}
    unsaid = len({question.pair for question in questions if question.text in broken.tts.mute}) + 1
    with pytest.raises(ValueError, match=f"{unsaid} texts could not be spoken, the first: '{questions[0].text}' in .*"):
        construct(broken)
    before = len(broken.tts.asked)
    broken.tts.mute = set()
    construct(broken)
    assert {text for text, *_ in broken.tts.asked[before:]} == {questions[0].text, questions[-1].reply}
    for path in Path(corpus.output_dir).iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_jitter_stays_within_its_amount():
    base = Prosody(1.2, 1.5, 1.1, 3.0, 2.0, 0.1)
    assert base.jitter(random.Random(1), 0.0) == base
    moved = base.jitter(random.Random(1), 0.5)
    assert moved == base.jitter(random.Random(1), 0.5) != base
    assert abs(moved.pitch - 1.2) <= 0.075 and abs(moved.energy_db - 3.0) <= 2.0


@pytest.fixture(scope="module")
def vowel():
    """WORLD's analysis of 0.4 s of an "ah" at 120 to 160 Hz."""
    pytest.importorskip("pyworld", reason="pyworld (extra: construction) can't be imported", exc_type=ImportError)
    time = np.arange(6400) / 16_000
    phase = 2 * np.pi * (120 * time + 50 * time**2)
    harmonics = sum(np.sin(k * phase) / (1 + abs(k * 140 - 700) / 300) for k in range(1, 40))
    return analyse((0.1 * harmonics).astype(np.float32), 16_000)


def pitch_of(waveform: np.ndarray) -> np.ndarray:
    pitch = analyse(waveform, 16_000)[0]
    return pitch[pitch > 0]


def level_db(waveform: np.ndarray) -> float:
    return float(10 * np.log10((waveform**2).mean()))


def test_neutral_prosody_keeps_the_voice(vowel):
    sound = render(vowel, 16_000, Prosody())
    assert len(sound) == pytest.approx(6400, abs=160)
    assert np.median(pitch_of(sound)) == pytest.approx(140, rel=0.05)


def test_prosody_changes_what_it_says(vowel):
    neutral = render(vowel, 16_000, Prosody())
    higher = pitch_of(render(vowel, 16_000, Prosody(pitch=1.3)))
    assert np.exp(np.log(higher).mean() - np.log(pitch_of(neutral)).mean()) == pytest.approx(1.3, rel=0.03)
    flat = pitch_of(render(vowel, 16_000, Prosody(pitch_range=0.2)))
    assert np.log(flat).std() < 0.6 * np.log(pitch_of(neutral)).std()
    assert len(render(vowel, 16_000, Prosody(tempo=0.8))) == pytest.approx(len(neutral) / 0.8, rel=0.03)
    louder = render(vowel, 16_000, Prosody(energy_db=-6.0))
    assert level_db(louder) - level_db(neutral) == pytest.approx(-6.0, abs=0.3)


def test_tilt_and_breath_change_the_colour(vowel):
    def share_above_2_khz(prosody: Prosody) -> float:
        spectrum = np.abs(np.fft.rfft(render(vowel, 16_000, prosody))) ** 2
        return float(spectrum[len(spectrum) // 4 :].sum() / spectrum.sum())

    assert share_above_2_khz(Prosody(tilt_db=10.0)) > 1.5 * share_above_2_khz(Prosody())
    breathy, clear = (render(vowel, 16_000, Prosody(breath=breath)) for breath in (0.9, 0.0))
    assert not np.allclose(breathy, clear)


def test_a_kept_clip_is_never_taken_for_other_words(grammar, config):
    """A question's id counts places in the plan: another grammar puts other words there."""
    question = plan_questions(grammar, config)[0]
    name = _fingerprint(question, config)
    assert _fingerprint(question, config) == name
    others = [
        _fingerprint(replace(question, text="Something else."), config),
        _fingerprint(replace(question, speaker="someone"), config),
        _fingerprint(question, replace(config, tts=Tone(has_emotions=True))),
        _fingerprint(question, replace(config, augmentation=Augmentation(level_db=(-3, 3)))),
        _fingerprint(question, replace(config, user_speed=config.user_speed + 0.5)),
        _fingerprint(question, replace(config, seed=config.seed + 1)),
    ]
    assert len({name, *others}) == 7
