"""The constructed corpus: a grammar that recognises its own replies, plans that repeat, and nothing leaked."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import yaml

from lightning_s2s.commands.construct import make_corpus
from lightning_s2s.construction.config import CorpusConfig
from lightning_s2s.construction.filters import WordCount
from lightning_s2s.construction.pipeline import lines_of
from lightning_s2s.construction.speech import speaking
from lightning_s2s.construction.speech.prosody import Prosody
from lightning_s2s.construction.speech.speaking import Delivery, SpeakLines, SpeakTexts
from lightning_s2s.construction.writing import GrammarWriter
from lightning_s2s.data.audio import load_audio
from lightning_s2s.data.augmentation import CorpusAugmentation
from lightning_s2s.data.manifest import read_manifest
from lightning_s2s.data.tasks import EMOTIONS, SPLITS
from lightning_s2s.evaluation.grammar import DialogueGrammar
from parts.construction import RULES, FakeCodec, Tone, read_rows

COUNTS = {"train": 4, "validation": 1, "test": 1}


@pytest.fixture
def grammar_file(tmp_path) -> Path:
    path = tmp_path / "grammar.yaml"
    path.write_text(yaml.safe_dump(RULES))
    return path


@pytest.fixture
def grammar(grammar_file) -> DialogueGrammar:
    return DialogueGrammar(grammar_file)


@pytest.fixture
def writer(grammar_file) -> GrammarWriter:
    return GrammarWriter(
        str(grammar_file), dict(COUNTS), {"train": 3, "validation": 4, "test": 4},
        {"train": 4, "validation": 4, "test": 4}, replies_per_emotion=72, held_out_share=0.3,
    )  # fmt: skip


@pytest.fixture
def config(writer, tmp_path) -> CorpusConfig:
    return CorpusConfig(
        output_dir=str(tmp_path / "corpus"), work_dir=str(tmp_path / "work"), writer=writer, tts=Tone(),
        vocoder=FakeCodec(), assistant_voice="anna", prosody={emotion: Prosody() for emotion in EMOTIONS},
        user_voices={"train": ["bob", "cleo"], "validation": ["dan"], "test": ["eve"]},
    )  # fmt: skip


def plan(config: CorpusConfig) -> list:
    """What is said: the dialogues, all of one turn."""
    return config.writer.dialogues(config.user_voices, config.seed)


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
        (
            "augmentation",
            CorpusAugmentation(level_db=(0, 1), splits=["training"]),
            "unknown split 'training'; did you mean train",
        ),
        ("prosody", None, "prosody: Tone speaks every emotion alike"),
        ("prosody", {"happy": Prosody()}, "prosody: lacks neutral, sad, angry, which the writer's lines are said with"),
        ("user_voices", {"train": ["bob"], "validation": ["bob"], "test": ["eve"]}, r"shared: \['bob'\]"),
        ("user_voices", {"train": ["anna"], "validation": ["bob"], "test": ["eve"]}, "shared: .*anna"),
    ],
)
def test_a_broken_config(config, key, value, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **{key: value})


def test_a_broken_writer(writer):
    with pytest.raises(ValueError, match="explicit_lines: validation: got 6; a multiple of 4 is needed"):
        replace(writer, explicit_lines={"train": 4, "validation": 6, "test": 4})
    with pytest.raises(ValueError, match="emotions_per_line: test: got 5; allowed: 1 to 4, the number of emotions"):
        replace(writer, emotions_per_line={"train": 3, "validation": 4, "test": 5})
    with pytest.raises(ValueError, match=r"GrammarWriter: explicit_lines\.train must be at least 0; got -4"):
        replace(writer, explicit_lines={"train": -4, "validation": 4, "test": 4})
    with pytest.raises(ValueError, match="ambiguous_lines: needs the keys train, validation, test; got train"):
        replace(writer, ambiguous_lines={"train": 1})


def test_the_plan_depends_on_the_seed_alone(config):
    first = plan(config)
    random.seed(123)
    assert plan(config) == first
    assert plan(replace(config, seed=2)) != first
    assert len({dialogue.id for dialogue in first}) == len(first) == 4 * 3 + 4 + 2 * (4 + 4)


def test_a_reply_fits_what_is_said_and_how(grammar, config):
    for dialogue in plan(config):
        (turn,) = dialogue.turns
        assert grammar.judge(turn.reply) == (turn.emotion, grammar.topic_of(turn.text))
        assert turn.continuation == f"and I feel {turn.emotion}"


def test_pairs_share_words_and_voice_and_differ_in_emotion(config):
    pairs: dict[str, list] = {}
    for dialogue in plan(config):
        if dialogue.ambiguous:
            pairs.setdefault(dialogue.pair, []).append(dialogue)
    assert len(pairs) == sum(COUNTS.values())
    for group in pairs.values():
        assert len({(dialogue.turns[0].text, dialogue.speaker) for dialogue in group}) == 1
        assert len({dialogue.turns[0].emotion for dialogue in group}) == len(group) >= 3


def test_no_line_reply_or_voice_of_the_test_is_trained_on(config):
    split = {name: [dialogue for dialogue in plan(config) if dialogue.split == name] for name in SPLITS}
    said = {name: {dialogue.turns[0].text for dialogue in dialogues} for name, dialogues in split.items()}
    assert not any(config.writer.held_out(text) for text in said["train"])
    assert not any(config.writer.held_out(dialogue.turns[0].reply) for dialogue in split["train"])
    for unseen in ("validation", "test"):
        assert all(config.writer.held_out(text) for text in said[unseen]) and not said[unseen] & said["train"]
    voices = {name: {dialogue.speaker for dialogue in dialogues} for name, dialogues in split.items()}
    assert voices == {"train": {"bob", "cleo"}, "validation": {"dan"}, "test": {"eve"}}


def test_too_few_replies_for_a_topic_are_told(config):
    config.writer.replies_per_emotion = 1
    with pytest.raises(ValueError, match="replies_per_emotion 1: none of the .* replies is about .*; raise it"):
        plan(config)


def test_replies_are_chosen_once(writer):
    few, more = replace(writer, replies_per_emotion=5).replies(), writer.replies()
    assert {emotion: len(set(replies)) for emotion, replies in few.items()} == dict.fromkeys(EMOTIONS, 5)
    assert all(more[emotion][:5] == few[emotion] for emotion in EMOTIONS)  # more replies keep those rendered


def test_dialogues_may_draw_from_the_first_replies_alone(config):
    some = plan(replace(config, writer=replace(config.writer, dialogue_replies_per_emotion=40)))
    only = replace(config.writer, replies_per_emotion=40)
    first = {reply for replies in only.replies().values() for reply in replies}
    assert {dialogue.turns[0].reply for dialogue in some} <= first
    assert not {dialogue.turns[0].reply for dialogue in plan(config)} <= first
    assert some == plan(replace(config, writer=only))


@pytest.fixture
def corpus(config, monkeypatch) -> CorpusConfig:
    monkeypatch.setattr(speaking, "analyse", lambda waveform, rate: waveform)
    monkeypatch.setattr(speaking, "render", lambda analysis, rate, prosody: analysis)
    make_corpus(config)
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

    held_out = corpus.writer.held_out
    for name in ("train", "understanding_train", "speech_train", "language_train"):
        for line in gzip.decompress((folder / f"{name}.jsonl.gz").read_bytes()).splitlines():
            user, answer = (message["content"][0] for message in json.loads(line)["messages"])
            heard = user.get("transcript") or user["audio_text"].partition(") ")[2]
            assert not held_out(heard), name
            assert grammar.judge(answer["text"]) is None or not held_out(answer["text"]), name


def test_constructing_again_gives_the_same_bytes_and_speaks_nothing(corpus):
    folder = Path(corpus.output_dir)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    spoken = len(corpus.tts.asked)
    make_corpus(corpus)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert len(corpus.tts.asked) == spoken


def test_a_recording_that_was_deleted_is_made_again(corpus):
    clip = sorted((Path(corpus.work_dir) / "questions").iterdir())[0]
    before = clip.read_bytes()
    clip.unlink()
    make_corpus(corpus)
    assert clip.read_bytes() == before


def test_a_pair_is_spoken_once_and_every_voice_checked_before(corpus):
    asked = corpus.tts.asked
    assert len(asked) == len(set(asked)) and {emotion for _, _, emotion in asked} == {"neutral"}
    lines = {(dialogue.turns[0].text, dialogue.speaker) for dialogue in plan(corpus)}
    replies = {reply for group in corpus.writer.replies().values() for reply in group}
    assert {(text, voice) for text, voice, _ in asked} == lines | {(reply, "anna") for reply in replies}
    assert corpus.tts.voices == ["bob", "cleo", "dan", "eve"]


def test_an_engine_with_emotions_is_asked_for_them(config):
    """No prosody is laid over it; the replies may be another engine's."""
    config = replace(config, tts=Tone(has_emotions=True), assistant_tts=Tone(), prosody=None)
    make_corpus(config)
    expected = {(d.turns[0].text, d.speaker, d.turns[0].emotion) for d in plan(config)}
    assert set(config.tts.asked) == expected and len(config.tts.asked) == len(expected)
    assert {voice for _, voice, _ in config.assistant_tts.asked} == {"anna"}


def test_replies_get_the_prosody_of_their_emotion(config, tmp_path, monkeypatch):
    monkeypatch.setattr(speaking, "analyse", lambda waveform, rate: waveform)
    monkeypatch.setattr(
        speaking, "render", lambda analysis, rate, prosody: analysis[: int(len(analysis) * prosody.tempo)]
    )
    items = [("anna", "Hello.", emotion) for emotion in ("sad", "happy", "neutral")]
    changed = {"sad": Prosody(tempo=0.5), "happy": Prosody(tempo=0.25)}
    step = SpeakTexts("replies", Tone(), 1.0, tmp_path, changed)
    results = step.run(items)
    assert [result["sec"] for result in results] == [0.3, 0.15, 0.6]
    assert [round(sf.info(tmp_path / result["clip"]).duration, 2) for result in results] == [0.3, 0.15, 0.6]
    assert len(step.tts.asked) == 1  # one rendering serves all
    assert results[2] == SpeakTexts("replies", Tone(), 1.0, tmp_path).run(items)[0]
    other = SpeakTexts("replies", Tone(), 1.0, tmp_path, {"sad": Prosody(tempo=0.6)})
    assert other.key(items[0]) != step.key(items[0]) and other.key(items[2]) == step.key(items[2])


def test_where_nothing_is_left_the_report_says_why(config):
    config = replace(config, tts=Tone(has_emotions=True), prosody=None, filters=[WordCount(min_words=100)])
    with pytest.raises(
        ValueError, match="no dialogue is left of 32: .* x word_count: .* is below 100; .*see .*report.html"
    ):
        make_corpus(config)
    assert "is below 100" in (Path(config.work_dir) / "report.html").read_text()
    assert {voice for _, voice, _ in config.tts.asked} == {"anna"}  # stage 2's replies, and no user
    assert not list(Path(config.output_dir).iterdir())


def test_a_vocoder_without_a_tokenizer_is_told_before_anything_is_spoken(config):
    class Mute(FakeCodec):
        def tokenize(self, waveform, lengths):
            raise ValueError("this vocoder can't tokenize")

    with pytest.raises(ValueError, match="this vocoder can't tokenize"):
        make_corpus(replace(config, vocoder=Mute()))
    assert not config.tts.asked


def test_without_a_vocoder_it_ends_with_the_replies(config, capsys):
    make_corpus(replace(config, vocoder=None, tts=Tone(has_emotions=True), prosody=None))
    assert "train a codec on" in capsys.readouterr().out
    rows = read_manifest(str(Path(config.work_dir) / "replies_train.jsonl.gz"))
    item = rows[0]["messages"][0]["content"][0]
    assert len(load_audio(item["audio"], config.work_dir, 16_000)) and not config.writer.held_out(item["text"])
    assert not list(Path(config.output_dir).glob("*.jsonl.gz"))


def test_augmentation_is_recorded_and_changes_the_training_questions_alone(corpus, tmp_path):
    augmented = replace(
        corpus, output_dir=str(tmp_path / "again"), augmentation=CorpusAugmentation(noise=["white"], snr_db=(0.0, 9.0))
    )
    make_corpus(augmented)
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


def test_what_can_not_be_spoken_is_counted_and_stops_nothing_else(corpus, tmp_path):
    """Once the engine is well, the same command speaks the rest and gives what an unbroken run gives."""
    broken = replace(corpus, output_dir=str(tmp_path / "again"), work_dir=str(tmp_path / "fresh"), tts=Tone())
    dialogues = plan(broken)
    text, reply = dialogues[0].turns[0].text, dialogues[-1].turns[0].reply
    broken.tts.mute = {text, reply}
    outcome = make_corpus(broken)
    lost = [dialogue for dialogue in dialogues if {dialogue.turns[0].text, dialogue.turns[0].reply} & {text, reply}]
    assert [c.dialogue for c in outcome.candidates if not c.kept] == lost and outcome.rejections() == {
        "speech": len(lost)
    }
    assert outcome.candidates[0].reason == f"not spoken: {text!r} in the voice bob: a sore throat"
    pairs = len({dialogue.pair for dialogue in lost if dialogue.turns[0].text == text})
    assert sum(outcome.incomplete.values()) == pairs + 1
    assert len(read_rows(tmp_path / "again" / "test.jsonl.gz")) < len(
        read_rows(Path(corpus.output_dir) / "test.jsonl.gz")
    )
    before = len(broken.tts.asked)
    broken.tts.mute = set()
    assert not make_corpus(broken).incomplete
    assert {text for text, *_ in broken.tts.asked[before:]} == {text, reply}
    for path in Path(corpus.output_dir).glob("*.jsonl.gz"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_kept_clip_is_never_taken_for_other_words(config, tmp_path):
    """A line's id counts places in the plan: another grammar puts other words there."""
    line = lines_of(plan(config)[0])[0]
    delivery = Delivery(1.0, config.prosody, 0.4, None, 1)

    def key(line, delivery=delivery, tts=config.tts):
        return SpeakLines(tts, delivery, tmp_path).key([line])

    others = [
        key(replace(line, text="Something else.")),
        key(replace(line, voice="someone")),
        key(line, tts=Tone(has_emotions=True)),
        key(line, replace(delivery, augmentation=CorpusAugmentation(level_db=(-3, 3)))),
        key(line, replace(delivery, speed=1.5)),
        key(line, replace(delivery, seed=2)),
    ]
    assert key(line) == key(line) and len({key(line), *others}) == 7
