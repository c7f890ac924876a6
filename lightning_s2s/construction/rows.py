"""The lines of a corpus's manifests."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning_s2s.construction.corpora import Recording
from lightning_s2s.construction.plan import CorpusConfig, Question, draw_augmentation, held_out, plan_replies
from lightning_s2s.construction.writer import EMOTIONS, DialogueGrammar
from lightning_s2s.files import write_bytes


def write_manifest(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write the rows as JSONL, compressed where the name ends in `.gz`; the same rows give the same bytes."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    write_bytes(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def voice_row(reply: str, path: Path, work_dir: str) -> dict[str, Any]:
    """A line for the codec: the assistant's speech with its words."""
    said = {"text": reply, "audio": str(path.relative_to(work_dir)), "speech_units": "", "spk_emb": ""}
    return {"id": path.stem, "messages": [{"role": "assistant", "content": [said]}]}


def dialogue_row(question: Question, audio: str, units: str, config: CorpusConfig) -> dict[str, Any]:
    """A line for stage 3: the spoken question and the spoken reply."""
    user = _heard(question, audio, config)
    reply = {"text": question.reply, "audio": "", "speech_units": units, "spk_emb": ""}
    return _row(question.id, user, reply, speaker=question.speaker, pair=question.pair, ambiguous=question.ambiguous)


def understanding_rows(
    question: Question, audio: str, grammar: DialogueGrammar, config: CorpusConfig
) -> Iterable[dict[str, Any]]:
    """Lines for stage 1: transcribe, name the emotion, continue, and reply in text."""
    for task, prompt, answer in task_answers(grammar, question.text, question.emotion, question.reply, config):
        user = _heard(question, audio, config) | {"text": prompt}
        yield _row(f"{question.id}-{task}", user, {"text": answer}, task=task, speaker=question.speaker)


TASKS = {
    "reply": "",
    "emotion": "What emotion does the speaker convey? ",
    "transcribe": "Repeat what the speaker says. ",
    "continue": "Continue the following sentence based on the conveyed emotion tone in a coherent style: ",
}

CONTINUE_WORDS = "Continue the following sentence in a coherent style: "
"""Of `continue`, where no emotion is known."""


def recording_rows(
    recording: Recording, audio: str, tasks: Sequence[str], continuation: str
) -> Iterable[dict[str, Any]]:
    """Lines for stage 1 from a recording of a corpus: those of the `tasks` whose answer is known.

    Args:
        recording: with its words, its emotion or both.
        audio: where it is, for the manifest.
        tasks: of `transcribe`, `emotion` and `continue`.
        continuation: what an LLM said to its words; "" where none was asked.
    """
    answers = {"transcribe": recording.text, "emotion": recording.emotion, "continue": continuation}
    prompts = TASKS if recording.emotion else TASKS | {"continue": CONTINUE_WORDS}
    heard = {"audio": audio, "audio_sec": recording.audio_sec}
    known = {"transcript": recording.text, "emotion": recording.emotion}
    heard |= {key: value for key, value in known.items() if value}
    for task in tasks:
        if answers[task]:
            user = {"text": prompts[task], **heard}
            yield _row(f"{recording.id}-{task}", user, {"text": answers[task]}, task=task, speaker=recording.speaker)


def reading_row(recording: Recording, audio: str) -> dict[str, Any]:
    """A line for stage 2: words to say, and how they were said; `lightning-s2s units` adds the units."""
    user = {"text": f"Say the following sentence: {recording.text}"}
    said = {"text": recording.text, "audio": audio, "audio_sec": recording.audio_sec}
    return _row(recording.id, user, said, speaker=recording.speaker)


def task_answers(
    grammar: DialogueGrammar, text: str, emotion: str, reply: str, config: CorpusConfig
) -> Iterable[tuple[str, str, str]]:
    """(task, prompt, answer) for one line said with one emotion."""
    rng = random.Random(f"{config.seed}-{text}-{emotion}")
    continuation = rng.choice(grammar.rules["continuations"][emotion])
    answers = {"reply": reply, "emotion": emotion, "transcribe": text, "continue": continuation}
    return [(task, prompt, answers[task]) for task, prompt in TASKS.items()]


def speech_rows(
    grammar: DialogueGrammar, config: CorpusConfig, units: dict[str, str], unseen: bool
) -> Iterable[dict[str, Any]]:
    """Lines for stage 2: every spoken reply behind a line, in words, that it fits."""
    rng = random.Random(f"{config.seed}-speech-{unseen}")
    lines = _lines_by_topic(grammar, config, unseen)
    for emotion, replies in plan_replies(grammar, config).items():
        for number, reply in enumerate(replies):
            if held_out(reply, config.held_out_share) == unseen:
                text = rng.choice(lines[grammar.topic_of(reply)])
                user = {"text": "", "audio_text": f"({emotion}) {text}"}
                spoken = {"text": reply, "audio": "", "speech_units": units[reply], "spk_emb": ""}
                yield _row(f"speech-{emotion}-{number:04d}", user, spoken)


def language_rows(grammar: DialogueGrammar, config: CorpusConfig, unseen: bool) -> Iterable[dict[str, Any]]:
    """Lines for the LLM: what is heard stands there in words, with its emotion; some replies are marked as spoken."""
    rng = random.Random(f"{config.seed}-language-{unseen}")
    lines = _lines_by_topic(grammar, config, unseen)
    pools: dict[tuple[str, str], list[str]] = {}
    for emotion in EMOTIONS:
        for reply in grammar.replies(emotion):
            if held_out(reply, config.held_out_share) == unseen:
                pools.setdefault((emotion, grammar.topic_of(reply)), []).append(reply)
    for topic, texts in sorted(lines.items()):
        for number, text in enumerate(texts):
            for emotion in EMOTIONS:
                if (emotion, topic) not in pools:
                    continue
                reply = rng.choice(pools[emotion, topic])
                for task, prompt, answer in task_answers(grammar, text, emotion, reply, config):
                    user = {"text": prompt, "audio_text": f"({emotion}) {text}"}
                    spoken = {"text": answer} | ({"speak": True} if task == "reply" and number % 4 else {})
                    yield _row(f"language-{topic}-{number}-{emotion}-{task}", user, spoken, task=task)


def _lines_by_topic(grammar: DialogueGrammar, config: CorpusConfig, unseen: bool) -> dict[str, list[str]]:
    """The lines that training sees, or those it doesn't; a topic has its seen lines where none is held out."""
    lines: dict[str, list[str]] = _lines_by_topic(grammar, config, False) if unseen else {}
    fresh: dict[str, list[str]] = {}
    for line in grammar.lines("ambiguous"):
        if held_out(line, config.held_out_share) == unseen:
            fresh.setdefault(grammar.topic_of(line), []).append(line)
    return lines | fresh


def _heard(question: Question, audio: str, config: CorpusConfig) -> dict[str, Any]:
    drawn = draw_augmentation(question, config)
    return {
        "text": "",
        "audio": audio,
        "speech_units": "",
        "spk_emb": "",
        "transcript": question.text,
        "emotion": question.emotion,
    } | ({"augmentation": drawn.figures()} if drawn else {})


def _row(identity: str, user: dict[str, Any], assistant: dict[str, Any], **extra: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": [user]}, {"role": "assistant", "content": [assistant]}]
    return {"id": identity, **extra, "messages": messages}
