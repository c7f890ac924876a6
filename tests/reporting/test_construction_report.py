"""The report of a construction: what stands in it is read back from a hand-made outcome."""

from __future__ import annotations

import re
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
from lightning_s2s.reporting.construction_page import histogram
from lightning_s2s.reporting.construction_report import choose_pairs, group_pairs, heard_otherwise, spread, write_report
from parts.html_page import HTMLPage

RATE = 16_000
EVIL = "It's <script>alert('x')</script> & \"late\"."


class Page(HTMLPage):
    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag, name):
        return [attributes for t, attributes in self.tags if t == tag and name in attributes.get("class", "").split()]


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


def rows_of(page_source):
    """First column of every table -> the numbers beside it."""
    found = {}
    for row in re.findall(r"<tr><th scope='row'>(.*?)</tr>", page_source):
        cells = [re.sub(r"<.*?>", "", cell) for cell in re.split(r"</th>|</td>", row)]
        found[cells[0]] = cells[1:-1]
    return found


def test_the_page_counts_what_became_of_the_dialogues(tmp_path, outcome, config):
    path = write_report(tmp_path / "new" / "report.html", outcome, config)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]  # nothing temporary is left
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert "out/<corpus>" in page.text

    figures = re.findall(r"<span class='name'>(.*?)</span><strong>(.*?)</strong>", source)
    assert [value for _, value in figures] == ["6", "3", "1.5", "0.5", "1", "1"]
    assert "with two emotions or more, of 1 " in page.text

    # Filters that listen come behind the others and behind speech, in whatever order they are configured.
    rows = rows_of(source)
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
        "ann &amp; co": ["6", "3"],
    }

    charts = re.findall(r"role='img' aria-label='(.*?)'", source)
    assert charts == [
        "fewest_words: 1 to 5; 2 kept; 1 left out for this figure; 1 left out for something else; limit: below 3; "
        "median of those kept 3.5",
        "question_word_error: 0 to 0.5; 2 kept; 1 left out for this figure; limit: above 0.2; "
        "median of those kept 0.05",
    ]


def test_the_page_shows_and_plays_dialogues(tmp_path, outcome, config):
    page = Page(write_report(tmp_path / "report.html", outcome, config).read_text(encoding="utf-8"))
    cards = page.all("article", "answer")
    assert [(card["data-emotion"], card["data-status"]) for card in cards] == [
        ("neutral", "kept"),
        ("happy", "kept"),
        ("sad", "kept"),
        ("angry", "left out"),
        ("happy", "left out"),
        ("sad", "left out"),
    ]
    assert len(page.all("article", "pair")) == 1
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
    sounds = [attributes["src"] for tag, attributes in page.tags if tag == "audio"]
    assert len(sounds) == len(page.all("button", "play")) == 10
    assert all(sound.startswith("data:audio/mpeg;base64,") for sound in sounds)
    assert "Play the question of p2-sad, turn 2, 1.0 seconds" in [b["aria-label"] for b in page.all("button", "play")]


def test_the_page_is_complete_in_itself_and_nothing_in_it_runs(tmp_path, outcome, config):
    source = write_report(tmp_path / "report.html", outcome, config).read_text(encoding="utf-8")
    page = Page(source)
    assert "default-src 'none'" in source
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not {"b", "trains", "corpus"} & {tag for tag, _ in page.tags}
    assert not re.search(r"(https?:)?//\w", re.sub(r"base64,[\w+/=]*", "", source))
    loaded = [value for _, tag in page.tags for name, value in tag.items() if name in ("src", "href")]
    assert all(value.startswith(("data:", "#")) for value in loaded)


def test_the_same_outcome_gives_the_same_bytes(tmp_path, outcome, config):
    first = write_report(tmp_path / "a.html", outcome, config).read_bytes()
    assert write_report(tmp_path / "b.html", outcome, config).read_bytes() == first


@pytest.mark.parametrize(("dialogues", "rejected", "sounds"), [(2, 8, 6), (1, 8, 4), (2, 0, 4), (0, 0, 0)])
def test_no_more_is_shown_than_asked_for(tmp_path, outcome, config, dialogues, rejected, sounds):
    source = write_report(tmp_path / "report.html", outcome, config, dialogues, rejected).read_text(encoding="utf-8")
    assert source.count("<audio ") == sounds


def test_a_recording_too_short_to_be_a_sound_has_no_button(tmp_path, outcome, config):
    sf.write(tmp_path / "p1-sad.flac", np.zeros(10, np.float32), RATE)
    assert write_report(tmp_path / "report.html", outcome, config).read_text(encoding="utf-8").count("<audio ") == 9


def test_an_outcome_with_nothing_kept_has_a_page(tmp_path, outcome, config):
    outcome.candidates = [found for found in outcome.candidates if not found.kept]
    page = Page(write_report(tmp_path / "report.html", outcome, config).read_text(encoding="utf-8"))
    assert "Left out" in page.text
    outcome.candidates = []
    assert "asked for" in Page(write_report(tmp_path / "report.html", outcome, config).read_text("utf-8")).text


def test_dialogues_are_taken_evenly(tmp_path):
    assert spread("abcdefgh", 4) == list("aceg")
    assert spread("abc", 4) == list("abc")
    groups = group_pairs(
        candidate(tmp_path, f"p{n}", emotion, "Yes.", spoken=False) for n in range(10) for emotion in ("sad", "happy")
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
    made.figures["reply_heard"] = ["either, or!", "FINE"]
    assert heard_otherwise(made, "reply") == ["", ""]
    made.figures["reply_heard"] = ["either / or", "<fun>"]
    assert heard_otherwise(made, "reply") == ["", "<p class='heard'>heard as “&lt;fun&gt;”</p>"]


def test_bars_of_whole_numbers_are_centred_on_them():
    drawn = histogram("words", {"kept": [2, 3, 3], "lost": [1], "other": []}, {"below": 2})
    # Edges are -0.5, 0.5, 1.5, 2.5 and 3.5, 60 units wide each: the limit lies between 1 and 2.
    assert re.findall(r"<rect class='(\w+)' x='([\d.]+)'", drawn) == [
        ("lost", "60.00"),
        ("kept", "120.00"),
        ("kept", "180.00"),
    ]
    assert "<line class='limit' x1='120.00'" in drawn
    assert "<span>0</span><span>3</span>" in drawn
