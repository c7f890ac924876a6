"""The report of a construction: what stands in it is read back from a hand-made outcome."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf

from lightning_s2s.construction.config import CorpusConfig
from lightning_s2s.construction.dialogue import Candidate, Dialogue, DialogueTurn, Limit
from lightning_s2s.construction.filters import Duration, WordCount, WordError
from lightning_s2s.construction.outcome import Outcome
from lightning_s2s.construction.speech.opus import encode_opus
from lightning_s2s.construction.usage import Usage
from lightning_s2s.reporting.construction_report import choose_pairs, heard_otherwise, pairs_of, spread, write_report
from lightning_s2s.reporting.histograms import histogram
from parts.html_page import HTMLPage

RATE = 16_000
EVIL = "It's <script>alert('x')</script> & \"late\"."


def read_page(path):
    return HTMLPage(path.read_text(encoding="utf-8"))


def candidate(folder, pair, emotion, *replies, text=EVIL, spoken=True, split="train", **figures):
    """A dialogue with a turn for each reply; recordings are tones."""
    turns = tuple(
        DialogueTurn(text if n == 0 else f"Line {n + 1}.", emotion, reply, "sad") for n, reply in enumerate(replies)
    )
    dialogue = Dialogue(f"{pair}-{emotion}", split, "ann & co", turns, pair, seed={"topic": "<trains>"})
    made = Candidate(dialogue, figures)
    for number, clip in enumerate(dialogue.clip_ids if spoken else ()):
        tone = (0.3 * np.sin(np.arange(RATE // 2 * (number + 1)) / 8)).astype(np.float32)
        made.clips.append(f"{clip}.opus")
        made.replies.append(f"{clip}.flac")
        (folder / made.clips[-1]).write_bytes(encode_opus(tone, RATE))
        sf.write(folder / made.replies[-1], tone, RATE)
    return made


@pytest.fixture
def outcome(tmp_path):
    """A pair of two emotions, one with two turns and one whose third emotion was lost; three that were left out."""
    unwritten = candidate(tmp_path, "p3", "angry", spoken=False, answer="{'emotion': <b>bold}")
    unwritten.reject("writing", "no JSON & so on")
    short = candidate(tmp_path, "p4", "happy", "Oh.", spoken=False, split="test", fewest_words=1)
    short.reject("word_count", "fewest_words 1 is below 3", Limit("fewest_words", "below", 3))
    misheard = candidate(
        tmp_path, "p1", "sad", "Sorry.", fewest_words=5, question_word_error=0.5, question_heard=["Eh?"]
    )
    limit = Limit("question_word_error", "above", 0.2)
    misheard.reject("word_error", "question_word_error 0.5 is above 0.2", limit)
    return Outcome(
        [
            candidate(tmp_path, "p1", "happy", "Nice.", fewest_words=4, question_word_error=0.1, question_heard=[EVIL]),
            candidate(
                tmp_path, "p1", "neutral", "I see.", fewest_words=3, question_word_error=0.0, voice_heard=["sad"]
            ),
            misheard,
            candidate(
                tmp_path, "p2", "sad", "Why?", "Oh dear.", text="Two turns.", question_heard=["Two terns.", "Line 2"]
            ),
            unwritten,
            short,
        ],
        Usage(),
        question_sec=90,
        reply_sec=30,
    )


@pytest.fixture
def config(tmp_path):
    voices = {"train": ["ann & co"], "validation": ["bob"], "test": ["cy"]}
    filters = [Duration(), WordCount(), WordError(asr="tiny")]
    tts = SimpleNamespace(has_emotions=True)
    return CorpusConfig("out/<corpus>", str(tmp_path), None, tts, voices, "eve", filters=filters)


def test_the_page_counts_what_became_of_the_dialogues(tmp_path, outcome, config):
    path = write_report(tmp_path / "new" / "report.html", outcome, config)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]  # nothing temporary is left
    page = read_page(path)
    assert "out/<corpus>" in page.text
    for words in (
        "dialogues asked for 6 ",
        "dialogues kept 3 50\N{NO-BREAK SPACE}% of them",
        "minutes of users' speech kept 1.5 ",
        "minutes of replies kept 0.5 ",
        "minimal pairs kept 1 with two emotions or more, of 1 ",
        "users' voices kept 1 of 1 ",
    ):
        assert words.replace("\N{NO-BREAK SPACE}", " ") in page.text, words

    # Filters that listen come behind the others and behind speech, in whatever order they are configured.
    rows = {row[0]: row[1:] for row in page.rows if len(row) == 4 and row[1].isdecimal()}
    assert list(rows)[:5] == ["writing", "word_count", "speech", "duration", "word_error"]
    assert list(rows.values())[:5] == [
        ["6", "1", "5"],
        ["5", "1", "4"],
        ["4", "0", "4"],
        ["4", "0", "4"],
        ["4", "1", "3"],
    ]
    assert "Lines and replies must have so many words. (min_words 3, max_words 40)" in page.text
    counts = {name: cells[:2] for name, cells in list(rows.items())[5:]}
    assert counts == {
        "neutral": ["1", "1"],
        "happy": ["2", "1"],
        "sad": ["2", "1"],
        "angry": ["1", "0"],  # was never written, so that only its id tells
        "train": ["5", "3"],
        "test": ["1", "0"],
        "ann & co": ["6", "3"],
    }

    charts = [chart["aria-label"] for chart in page.all("svg", role="img")]
    assert charts == [
        "fewest_words: 1 to 5; 2 kept; 1 left out for this figure; 1 left out for something else; limit: below 3; "
        "median of those kept 3.5",
        "question_word_error: 0 to 0.5; 2 kept; 1 left out for this figure; limit: above 0.2; "
        "median of those kept 0.05",
    ]


def test_the_page_shows_and_plays_dialogues(tmp_path, outcome, config):
    page = read_page(write_report(tmp_path / "report.html", outcome, config))
    cards = page.all("article", data_emotion="")
    assert [(card["data-emotion"], card["data-status"]) for card in cards] == [
        ("neutral", "kept"),
        ("happy", "kept"),
        ("sad", "kept"),
        ("angry", "left out"),
        ("happy", "left out"),
        ("sad", "left out"),
    ]
    for words in (
        f"“{EVIL}”",
        "sad was left out by word_error",
        "turn 2 of 2",
        "heard as “Two terns.”",
        "✗ no JSON & so on",
        "{'emotion': <b>bold}",
        "1 × fewest_words is below 3",
        "ann & co · train · <trains>",
        "voice_heard",
    ):
        assert words in page.text, words
    assert page.text.count("heard as") == 2  # the other is the one that was left out for it
    # Two of a pair, two turns, and the one that a filter had heard: a user's and a reply's recording each.
    sounds = [sound["src"] for sound in page.all("audio")]
    assert len(sounds) == 10 and all(sound.startswith("data:audio/mpeg;base64,") for sound in sounds)
    assert page.all("button", aria_label="Play the question of p2-sad, turn 2, 1.0 seconds")


def test_the_page_is_complete_in_itself_and_nothing_in_it_runs(tmp_path, outcome, config):
    page = read_page(write_report(tmp_path / "report.html", outcome, config))
    page.assert_self_contained()
    assert len(page.all("script")) == 1
    assert not {"b", "trains", "corpus"} & {tag for tag, _ in page.tags}


def test_the_same_outcome_gives_the_same_bytes(tmp_path, outcome, config):
    first = write_report(tmp_path / "a.html", outcome, config).read_bytes()
    assert write_report(tmp_path / "b.html", outcome, config).read_bytes() == first


@pytest.mark.parametrize(("dialogues", "rejected", "sounds"), [(2, 8, 6), (1, 8, 4), (2, 0, 4), (0, 0, 0)])
def test_no_more_is_shown_than_asked_for(tmp_path, outcome, config, dialogues, rejected, sounds):
    page = read_page(write_report(tmp_path / "report.html", outcome, config, dialogues, rejected))
    assert len(page.all("audio")) == sounds


def test_a_recording_too_short_to_be_a_sound_has_no_button(tmp_path, outcome, config):
    sf.write(tmp_path / "p1-sad.flac", np.zeros(10, np.float32), RATE)
    assert len(read_page(write_report(tmp_path / "report.html", outcome, config)).all("audio")) == 9


def test_an_outcome_with_nothing_kept_has_a_page(tmp_path, outcome, config):
    outcome.candidates = [found for found in outcome.candidates if not found.kept]
    assert "Left out" in read_page(write_report(tmp_path / "report.html", outcome, config)).text
    outcome.candidates = []
    assert "asked for" in read_page(write_report(tmp_path / "report.html", outcome, config)).text


def test_dialogues_are_taken_evenly(tmp_path):
    assert spread("abcdefgh", 4) == list("aceg")
    assert spread("abc", 4) == list("abc")
    groups = pairs_of(
        [candidate(tmp_path, f"p{n}", emotion, "Yes.", spoken=False) for n in range(10) for emotion in ("sad", "happy")]
    )
    chosen = choose_pairs(groups, 7)
    assert [[c.dialogue.id for c in group] for group in chosen] == [
        ["p0-happy", "p0-sad"],
        ["p3-happy", "p3-sad"],
        ["p6-happy", "p6-sad"],
    ]
    assert [len(group) for group in choose_pairs(groups, 1)] == [1]
    assert choose_pairs([], 7) == []


def test_what_was_heard_is_shown_where_it_differs(tmp_path):
    made = candidate(tmp_path, "p", "sad", "Either / or.", "Fine.", spoken=False)
    assert heard_otherwise(made, "reply") == ["", ""]  # nobody listened
    made.figures["reply_heard"] = ["either, or!", "FUN"]
    assert heard_otherwise(made, "reply") == ["", "FUN"]


def test_bars_of_whole_numbers_are_centred_on_them():
    drawn = histogram("words", {"kept": [2, 3, 3], "lost": [1], "other": []}, {"below": 2})
    # Edges are -0.5, 0.5, 1.5, 2.5 and 3.5, 60 units wide each: the limit lies between 1 and 2.
    assert [(bar["kind"], bar["x"]) for bar in drawn["bars"]] == [("lost", 60), ("kept", 120), ("kept", 180)]
    assert drawn["limits"] == [120] and drawn["ends"] == ["0", "3"]
    assert drawn["bars"][2]["height"] == 2 * drawn["bars"][1]["height"]
