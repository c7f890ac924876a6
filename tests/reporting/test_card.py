"""The data card: counts by hand, licences that are stated or not, and limits that follow from what ran."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import soundfile

from lightning_s2s.construction.chat.base import ChatModel
from lightning_s2s.construction.config import CorpusConfig
from lightning_s2s.construction.dialogue import Candidate, Dialogue, DialogueTurn
from lightning_s2s.construction.filters import (
    Duration,
    FeelingWords,
    NearDuplicates,
    ProsodyAgreement,
    Quality,
    ReplyFits,
    SafetyWords,
    SpeakerSimilarity,
    WordCount,
    WordError,
)
from lightning_s2s.construction.outcome import Outcome
from lightning_s2s.construction.speech import SpeechSynthesizer
from lightning_s2s.construction.speech.prosody import Prosody
from lightning_s2s.construction.usage import Usage
from lightning_s2s.construction.writing import GrammarWriter, PromptedWriter
from lightning_s2s.construction.writing.seeds import Seeds
from lightning_s2s.data.augmentation import CorpusAugmentation
from lightning_s2s.data.tasks import EMOTIONS
from lightning_s2s.reporting.construction_card import card, metadata, size_category, write_card
from parts.data_cards import bullet, metadata_of, table

EVERY = {"train": 1, "validation": 1, "test": 1}


@dataclass
class _Flat(SpeechSynthesizer):
    identity = "flat 1|2"
    licence = "MIT"

    def check(self, voices) -> None: ...

    def synthesise(self, text, voice, emotion="neutral", style="", speed=1.0):
        return np.zeros(1), 16_000


class _Actor(_Flat):
    identity = "actor"
    licence = ""
    has_emotions = True


@dataclass
class _Parrot(ChatModel):
    identity = "parrot 0.7"

    def ask(self, requests):
        return []


class TinyCodec:
    licence = "Apache-2.0"
    unit_rate_hz = 12.5
    num_units = 2000


CLIPS = {"a-sad": "1", "a-happy": "2", "b": "3", "b-turn2": "4", "d": "5"}
SECONDS = {"1": 60.0, "2": 30.0, "3": 12.0, "4": 6.0, "5": 600.0, "r1": 90.0, "r2": 18.0, "lost": 1e6}


def candidates() -> list[Candidate]:
    def said(name: str, split: str, voice: str, *turns: DialogueTurn) -> Dialogue:
        return Dialogue(name, split, voice, turns, name.partition("-")[0], True, {"language": "English"})

    sad = said("a-sad", "train", "adam", DialogueTurn("It rains.", "sad", "I see."))
    happy = said("a-happy", "train", "adam", DialogueTurn("It rains.", "happy", "Oh!"))
    two_turns = said(
        "b", "test", "bella", DialogueTurn("Stop!", "angry", "I see."), DialogueTurn("Well.", "sad", "Oh!")
    )
    lost = said("c-sad", "train", "adam", DialogueTurn("Well.", "sad", "Yes."))
    return [
        Candidate(sad, replies=["r1"]),
        Candidate(happy, replies=["r2"]),
        Candidate(two_turns, replies=["r1", "r2"]),
        Candidate(lost, {"reply_mos": 1.0}, "quality", "reply_mos 1 is below 3.5", ["lost"], ["lost"]),
        Candidate(replace(lost, id="c-happy"), rejected_by="speech", reason="not spoken: got silence"),
        Candidate(replace(lost, id="e", turns=()), rejected_by="writing", reason="not written: no JSON"),
    ]


def outcome(found: Sequence[Candidate] | None = None, usage: Usage | None = None, **options) -> Outcome:
    return Outcome(
        list(candidates() if found is None else found), usage or Usage(), clips=CLIPS, seconds=SECONDS, **options
    )


def config(**changes) -> CorpusConfig:
    settings = {
        "output_dir": "/somewhere/corpus",
        "work_dir": "/somewhere/work",
        "writer": GrammarWriter("my/grammar.yaml", EVERY, EVERY, dict.fromkeys(EVERY, 4), 10, 0.1),
        "tts": _Flat(),
        "user_voices": {"train": ["adam"], "validation": ["sky"], "test": ["bella"]},
        "assistant_voice": "heart",
        "prosody": dict.fromkeys(EMOTIONS, Prosody()) | {"sad": Prosody(pitch=0.9, energy_db=-6.0)},
        "user_speed": 1.1,
        "seed": 7,
    }
    return CorpusConfig(**settings | changes)


def written(changes: dict | None = None, **options) -> str:
    return card(outcome(**options), config(**changes or {}))


def prompted(**changes) -> PromptedWriter:
    return PromptedWriter(_Parrot(), Seeds(lines={"train": 1}), **changes)


def limits(text: str) -> str:
    return text.partition("## Limits\n")[2]


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_counts():
    text = written()
    assert table(text, "split")[0][3:5] == ["minimal pairs", "users' voices"]
    assert table(text, "split")[1:] == [
        ["train", "2", "2", "1", "1", "1.5", "1.8"],
        ["test", "1", "2", "0", "1", "0.3", "1.8"],
        ["all", "3", "4", "1", "2", "1.8", "3.6"],
    ]
    assert "2 replies are distinct" in text and "No user's voice is in more than one split" in text
    assert table(text, "emotion")[1:] == [["sad", "1", "1"], ["happy", "1", "0"], ["angry", "0", "1"]]


def test_a_pair_of_which_one_is_left_is_none():
    text = card(outcome(candidates()[1:3]), config())
    assert table(text, "split")[1] == ["train", "1", "1", "0", "1", "0.5", "0.3"]


def test_one_split_has_no_sum():
    text = card(outcome(candidates()[:2]), config())
    assert [row[0] for row in table(text, "split")] == ["split", "train"]
    assert "more than one split" not in text and "distinct" not in text
    assert "2 spoken dialogues of one turn each, in English:" in text


def test_a_voice_of_two_splits_is_not_said_to_be_in_one():
    found = candidates()
    found[2] = replace(found[2], dialogue=replace(found[2].dialogue, speaker="adam"))
    text = card(outcome(found), config())
    assert table(text, "split")[3][:5] == ["all", "3", "4", "1", "1"] and "more than one split" not in text


# --- the header ------------------------------------------------------------------------------------------------------


def test_header():
    head = metadata_of(written({"licences": {"corpus": "CC-BY-4.0"}}, dataset="dataset"))
    files = [{"split": split, "path": f"dataset/data/{split}-*.parquet"} for split in ("train", "test")]
    assert head == {
        "pretty_name": "Synthetic spoken dialogues",
        "language": ["en"],
        "license": "cc-by-4.0",
        "task_categories": ["audio-to-audio"],
        "size_categories": ["n<1K"],
        "configs": [{"config_name": "default", "data_files": files}],
    }


def test_what_is_not_known_is_not_in_the_header():
    found = [replace(c, dialogue=replace(c.dialogue, seed={})) for c in candidates()]
    assert set(metadata(outcome(found), config()).to_dict()) == {"pretty_name", "task_categories", "size_categories"}


def test_a_licence_that_the_hub_has_no_name_for():
    head = metadata(outcome(), config(licences={"corpus": "My own, no. 1"}))
    assert (head["license"], head["license_name"]) == ("other", "My own, no. 1")


@pytest.mark.parametrize(
    ("count", "size"), [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (123_456, "100K<n<1M"), (10**7, "n>10M")]
)
def test_sizes(count, size):
    assert size_category(count) == size


@pytest.mark.parametrize(("language", "codes"), [("German", ["de"]), ("de", ["de"]), ("Klingon", None)])
def test_languages(language, codes):
    found = [replace(c, dialogue=replace(c.dialogue, seed={"language": language})) for c in candidates()]
    assert metadata(outcome(found), config()).language == codes
    assert f", in {language}:" in card(outcome(found), config())


# --- how it was made -------------------------------------------------------------------------------------------------


def test_a_grammar_and_prosody():
    text = written()
    assert bullet(text, "Words") == "grammar `my/grammar.yaml`"
    assert bullet(text, "Users' voices") == "_Flat (flat 1|2), speed 1.1; train adam; test bella"
    assert bullet(text, "Prosody") == (
        "changed with WORLD, with a random share (jitter 0.4) for each line; neutral: unchanged; "
        "happy: unchanged; sad: pitch 0.9, energy_db -6; angry: unchanged"
    )
    assert bullet(text, "Replies") == "_Flat (flat 1|2), voice heart, speed 1"
    assert bullet(text, "Seed") == "7"
    assert "Tokens" not in text and "Augmentation" not in text and "Units" not in text
    assert "random share" not in written({"jitter": 0.0})


def test_an_llm_its_tokens_and_their_cost():
    usage = Usage(1_000_000, 250_000)
    writer = prompted(turns=2, price_per_million_tokens={"input": 0.5, "output": 2.0})
    text = card(outcome(usage=usage), config(writer=writer))
    assert bullet(text, "Words").startswith("LLM, parrot 0.7;") and bullet(text, "Words").endswith("turns: 2")
    tokens = "1,000,000 read, 250,000 written"
    assert bullet(text, "Tokens of all LLMs") == f"{tokens}; cost 1.0000, at the prices of the configuration"
    assert bullet(card(outcome(usage=usage), config(writer=prompted())), "Tokens of all LLMs") == tokens


def test_an_engine_with_emotions_and_another_for_the_replies():
    text = written({"tts": _Actor(), "assistant_tts": _Flat(), "prosody": None})
    assert bullet(text, "Emotion") == "the engine is asked for it" and "Prosody" not in text
    assert bullet(text, "Users' voices").startswith("_Actor (actor), speed 1.1;")
    assert bullet(text, "Replies").startswith("_Flat (")
    found = candidates()
    turn = replace(found[0].dialogue.turns[0], style="in a whisper")
    found[0] = replace(found[0], dialogue=replace(found[0].dialogue, turns=(turn,)))
    text = card(outcome(found), config(tts=_Actor(), prosody=None))
    assert bullet(text, "Emotion") == "the engine is asked for it, and for a style"


def test_augmentation_and_units():
    augmentation = CorpusAugmentation(
        share=0.5, room_sec=(0.1, 0.6), noise=["pink"], snr_db=(5, 25), bands_hz=[(300, 3400), (50, 7000)]
    )
    text = written({"augmentation": augmentation, "vocoder": TinyCodec()}, weights="abc123")
    room = "50% of the questions of train; simulated room, reverberation 0.1 to 0.6 s"
    noise = "noise (pink) at 5 to 25 dB; band 300 to 3400 or 50 to 7000 Hz"
    assert bullet(text, "Augmentation") == f"{room}; {noise}"
    units = "TinyCodec, 12.5 per second from a vocabulary of 2,000, weights abc123"
    assert bullet(text, "Units of the replies") == units


def test_filters_with_what_they_left_out():
    chosen = [WordCount(min_words=2), ReplyFits(_Parrot()), Quality(min_mos=2.0, device="cuda")]
    text = written({"filters": chosen})
    assert "3 of 6 dialogues were kept." in text and "No filter ran" not in text
    assert table(text, "step") == [
        ["step", "settings", "left out"],
        ["not spoken", "", "1"],
        ["not written", "", "1"],
        ["WordCount", "min_words 2, max_words 40", "0"],
        ["ReplyFits", "chat parrot 0.7, min_score 3", "0"],
        ["Quality", "min_mos 2.0, min_reply_mos 3.5", "1"],
    ]


def test_no_filters():
    text = card(outcome(candidates()[:3]), config())
    assert "3 of 3 dialogues were kept. No filter ran." in text and "left out" not in text


def test_files_are_named_as_far_as_they_are_there():
    assert "manifests" not in written() and "`datasets`" not in written()
    text = written({"vocoder": TinyCodec()}, dataset="dataset")
    assert "the `.jsonl.gz` files are the manifests" in text and "`dataset` holds" in text


# --- licences --------------------------------------------------------------------------------------------------------


def licences(text: str) -> dict[str, str]:
    return dict(table(text, "part")[1:])


def test_licences_of_the_engines_are_the_default():
    assert licences(written()) == {"corpus": "not stated", "writer": "not stated", "tts": "MIT"}
    text = written({"tts": _Actor(), "prosody": None, "assistant_tts": _Flat(), "vocoder": TinyCodec()})
    assert licences(text) == {
        "corpus": "not stated",
        "writer": "not stated",
        "tts": "not stated",
        "assistant_tts": "MIT",
        "vocoder": "Apache-2.0 (of its published weights)",
    }


def test_licences_of_the_configuration_come_first():
    stated = {"tts": "CC-BY-4.0", "corpus": "CC0-1.0", "topics": "mine", "vocoder": "MIT"}
    found = licences(written({"licences": stated, "vocoder": TinyCodec()}))
    assert found == stated | {"writer": "not stated"}


def test_noise_of_files_has_a_licence_of_its_own(tmp_path):
    soundfile.write(tmp_path / "street.wav", np.full(1600, 0.1), 16_000)
    assert "noise" not in licences(written({"augmentation": CorpusAugmentation(noise=["pink"])}))
    recorded = CorpusAugmentation(noise=["pink", str(tmp_path)])
    assert licences(written({"augmentation": recorded}))["noise"] == "not stated"


# --- limits ----------------------------------------------------------------------------------------------------------


def test_without_filters_nothing_was_checked():
    unchecked = bullet(limits(written()), "Not checked by any filter").split("; ")
    assert len(unchecked) == 9 and unchecked[-1] == "whether dialogues repeat each other."


def test_what_a_filter_checked_is_no_limit():
    some = [WordError(), ProsodyAgreement(), ReplyFits(_Parrot()), SafetyWords(), NearDuplicates(), FeelingWords()]
    assert bullet(limits(written({"filters": some})), "Not checked by any filter") == (
        "whether recordings sound like their voice; how good they sound; "
        "whether some are too long, too short or silent."
    )
    assert "Not checked" not in written({"filters": [*some, SpeakerSimilarity(), Quality(), Duration()]})


def test_feelings_may_be_named_where_there_are_no_minimal_pairs():
    found = [replace(c, dialogue=replace(c.dialogue, ambiguous=False)) for c in candidates()]
    assert "name a feeling" not in card(outcome(found), config())


def test_limits_follow_from_the_parts():
    text = limits(written())
    assert bullet(text, "Synthetic voices").startswith("_Flat, 2 of users and one of the assistant.")
    assert "The words are a grammar's, whose patterns repeat." in text
    assert "**Emotion by signal processing**" in text
    assert "**No dialogues for validation**." in text
    assert "Emotion as asked for" not in text and "spoken neutrally" not in text
    assert "One turn" not in text and "before augmentation" not in text

    text = limits(written({"writer": prompted(), "tts": _Actor(), "prosody": None}))
    assert "The words are an LLM's" in text and "**Emotion as asked for**" in text
    assert "signal processing" not in text


def test_replies_whose_emotion_is_not_heard():
    found = candidates()
    turn = replace(found[0].dialogue.turns[0], reply_emotion="sad")
    found[0] = replace(found[0], dialogue=replace(found[0].dialogue, turns=(turn,)))
    assert "**Replies are spoken neutrally**" in card(outcome(found), config())
    assert "spoken neutrally" not in card(outcome(found), config(assistant_tts=_Actor()))


def test_filters_did_not_hear_the_augmentation():
    augmented = {"augmentation": CorpusAugmentation(level_db=(-6, 0))}
    text = limits(written(augmented | {"filters": [Quality()]}))
    assert "**Filters heard the recordings before augmentation**" in text
    assert "before augmentation" not in limits(written(augmented | {"filters": [WordCount()]}))


# --- what strangers wrote --------------------------------------------------------------------------------------------


WILD = "x`y | <b> **z** [a](b) \\ _u_\n---\nlicense: mit\n\n# Mine\n| a | b |\n---\n"


def test_names_add_neither_markup_nor_metadata():
    found = [replace(c, dialogue=replace(c.dialogue, speaker=WILD, seed={"language": WILD})) for c in candidates()]
    tts = _Flat()
    tts.identity = WILD
    changes = {"licences": {"corpus": WILD, WILD: WILD}, "tts": tts, "assistant_voice": WILD}
    text, tame = card(outcome(found), config(**changes)), written({"licences": {"corpus": "a", "b": "c"}})
    assert set(metadata_of(text)) == {*metadata_of(tame), "license_name"} - {"language"}
    assert metadata_of(text)["license"] == "other"
    assert re.findall("^#.*", text, re.MULTILINE) == re.findall("^#.*", tame, re.MULTILINE)
    shown = " ".join(WILD.split())
    assert licences(text)["corpus"] == licences(text)[shown] == shown
    assert f"voice {shown}, speed 1" in bullet(text, "Replies") and f"train {shown}" in bullet(text, "Users' voices")
    outside_code = re.sub(r"(?<!\\)`[^`\n]+`", "", text.partition("# Synthetic")[2])
    assert not re.search(r"(?<!\\)[<\[]", outside_code)


def test_nothing_is_asked_of_the_hub(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    assert written()


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_same_run_gives_the_same_file_wherever_it_lies(tmp_path):
    for name in ("one", "two"):
        made = config(output_dir=str(tmp_path / name), work_dir=str(tmp_path / "work"))
        timed = replace(outcome(), timing={"questions": (3, float(len(name)))})
        write_card(tmp_path / name / "README.md", timed, made)
    one, two = ((tmp_path / name / "README.md").read_bytes() for name in ("one", "two"))
    assert one == two and str(tmp_path).encode() not in one
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["README.md"]
