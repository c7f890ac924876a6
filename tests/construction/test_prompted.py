"""Dialogues by an LLM: what is asked in which order, minimal pairs, further turns, and what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_s2s.construction.dialogue import DialogueTurn
from lightning_s2s.construction.openai_server import TransientError
from lightning_s2s.construction.running import Local
from lightning_s2s.construction.writing import PromptedWriter, WritingJob
from lightning_s2s.construction.writing.prompts import NAMES, Prompts
from lightning_s2s.construction.writing.seeds import Seeds
from parts.construction import Writer

pytest.importorskip("json_repair", reason="the package json-repair (extra: construction) is not installed")

VOICES = {"train": ["bob", "cleo"], "validation": ["dan"], "test": ["eve"]}


def write(writer: PromptedWriter, folder: Path):
    return writer.write(WritingJob(VOICES, {"cleo": {"gender": "female", "age": "old"}}, 1, Local(), folder))


def seeds(count: int = 2, **options) -> Seeds:
    return Seeds({"train": count}, topics=["rain"], situations=["at noon"], **options)


def test_a_minimal_pair(tmp_path):
    chat = Writer()
    script = write(PromptedWriter(chat, seeds(2, emotions_per_line=4)), tmp_path)
    dialogues = [candidate.dialogue for candidate in script.candidates]
    assert all(candidate.kept for candidate in script.candidates) and len(dialogues) == 8
    first = dialogues[:4]
    assert {d.pair for d in first} == {"train-00000"} and len({d.turns[0].emotion for d in first}) == 4
    for dialogue in first:
        emotion = dialogue.turns[0].emotion
        assert dialogue.turns == (DialogueTurn("Line 0.", emotion, "Reply to : Line 0.", "angry"),)
        assert dialogue.id == f"train-00000-{emotion}" and dialogue.seed["topic"] == "rain"
    assert len(chat.prompts) == 10  # a line and four replies, twice
    assert (script.usage.input_tokens, script.usage.output_tokens) == (100, 20)
    asked = "\n".join(chat.prompts)
    for words in ("Topic: rain", "Situation: at noon", "Language: English", "Speaker: female, old", "Speaker: anyone"):
        assert words in asked
    assert sum("User (sad): Line 0." in prompt for prompt in chat.prompts) == 2


def test_further_turns_follow_from_those_before(tmp_path):
    chat = Writer()
    script = write(PromptedWriter(chat, seeds(1), turns=3), tmp_path)
    (candidate,) = script.candidates
    first, second, third = candidate.dialogue.turns
    assert (first.text, second.text, third.text) == ("Line 0.", "Line 1.", "Line 2.")
    assert second.emotion == third.emotion == "angry" and len(chat.prompts) == 6
    conversation = [line for line in chat.prompts[-1].splitlines() if line.startswith(("User (", "Assistant: "))]
    assert conversation == [
        f"User ({first.emotion}): Line 0.", f"Assistant: {first.reply}", "User (angry): Line 1.",
        f"Assistant: {second.reply}", "User (angry): Line 2.",
    ]  # fmt: skip
    assert candidate.dialogue.clip_ids == [f"{candidate.dialogue.id}{end}" for end in ("", "-turn2", "-turn3")]


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_batches_and_threads_change_nothing(tmp_path, batch_size):
    expected = write(PromptedWriter(Writer(), seeds(7, emotions_per_line=2), turns=2), tmp_path / "a")
    chat = Writer(batch_size, concurrency=4)
    found = write(PromptedWriter(chat, seeds(7, emotions_per_line=2), turns=2), tmp_path / "b")
    assert found.candidates == expected.candidates and found.usage == expected.usage


def test_what_is_malformed_is_left_out_with_its_reason_and_not_asked_for_again(tmp_path):
    chat = Writer(**{"The voice was sad": "I am sorry!", "Speaker: female": '{"line": ""}'})
    writer = PromptedWriter(chat, seeds(2, emotions_per_line=4), attempts=2)
    script = write(writer, tmp_path)
    left_out = {c.dialogue.id: (c.rejected_by, c.reason, c.figures["answer"]) for c in script.candidates if not c.kept}
    speakers = {c.dialogue.id: c.dialogue.speaker for c in script.candidates}
    assert sum(speaker == "cleo" for speaker in speakers.values()) == 4
    for identity, found in left_out.items():
        if speakers[identity] == "cleo":
            assert found == ("writing", "malformed: line is empty", '{"line": ""}')
        else:
            assert found == ("writing", "malformed: no JSON object", "I am sorry!")
    assert len(left_out) == 5
    assert script.usage.problems == {"malformed: line is empty": 2, "malformed: no JSON object": 2}
    asked = len(chat.prompts)
    assert write(writer, tmp_path).candidates == script.candidates and len(chat.prompts) == asked


def test_what_may_pass_is_asked_for_by_the_next_run(tmp_path):
    chat = Writer(**{"Speaker: female": TransientError("the server answered 500")})
    script = write(PromptedWriter(chat, seeds(2)), tmp_path)
    lost = next(candidate for candidate in script.candidates if not candidate.kept)
    assert (lost.dialogue.speaker, lost.reason) == ("cleo", "not written: the server answered 500")
    assert lost.dialogue.turns == () and script.incomplete == {"writing: the server answered 500": 1}
    chat.spoil, asked = {}, len(chat.prompts)
    again = write(PromptedWriter(chat, seeds(2)), tmp_path)
    assert all(candidate.kept for candidate in again.candidates) and len(chat.prompts) == asked + 2


def test_other_prompts_write_anew(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "line.txt").write_text('Say something about $topic. {"line": "..."}')
    chat = Writer()
    write(PromptedWriter(chat, seeds(1)), tmp_path)
    write(PromptedWriter(chat, seeds(1), prompts=str(folder)), tmp_path)
    assert len(chat.prompts) == 4 and chat.prompts[2] == 'Say something about rain. {"line": "..."}'


def test_the_packages_prompts_are_complete():
    prompts = Prompts()
    assert set(prompts.texts) == set(NAMES) and all(text.strip() for text in prompts.texts.values())
    assert len(prompts.lines("topics")) >= 40 and not any("#" in topic for topic in prompts.lines("topics"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("lines.txt", "x", r"lines.txt: allowed names: system.txt, line.txt, reply.txt"),
        ("line.txt", "About $topik.", r"line.txt: 'topik': fields are \$emotions, \$language, \$situation, \$speaker"),
        ("line.txt", "It costs 5 $.", r"line.txt: Invalid placeholder .*; \$\$ is a dollar"),
    ],
)
def test_broken_prompts(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write(PromptedWriter(Writer(), seeds(1), prompts=str(tmp_path)), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"turns": 0}, "PromptedWriter: turns must be between 1 and 1,000; got 0"),
        ({"prompts": "/nowhere"}, "prompts: /nowhere: no such folder"),
        ({"price_per_million_tokens": {"in": 1.0}}, "price_per_million_tokens needs input and output; got in"),
    ],
)
def test_broken_settings(options, message):
    with pytest.raises(ValueError, match=message):
        PromptedWriter(Writer(), seeds(1), **options)
