"""The lines of a corpus's manifests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_s2s.construction.augmentation import Drawn
from lightning_s2s.construction.corpora import Recording
from lightning_s2s.construction.dialogue import Dialogue, Reading, Turn
from lightning_s2s.data.tasks import CONTINUE_WORDS, TASKS
from lightning_s2s.support.files import write_bytes


def write_manifest(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write the rows as JSONL, compressed where the name ends in `.gz`; the same rows give the same bytes."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    write_bytes(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def voice_row(reply: str, clip: str) -> dict[str, Any]:
    """A line for the codec: the assistant's speech with its words."""
    said = {"text": reply, "audio": clip, "speech_units": "", "spk_emb": ""}
    return {"id": Path(clip).stem, "messages": [{"role": "assistant", "content": [said]}]}


def dialogue_row(
    dialogue: Dialogue,
    audio: Sequence[str],
    units: Sequence[str],
    drawn: Sequence[Drawn | None],
    figures: Mapping[str, Any],
) -> dict[str, Any]:
    """A line for stage 3: the spoken questions and the spoken replies.

    Args:
        dialogue: the words.
        audio: where each question's recording is.
        units: of each reply.
        drawn: how each question was augmented.
        figures: what the filters found.
    """
    messages = []
    for turn, where, spoken, change in zip(dialogue.turns, audio, units, drawn, strict=True):
        reply = {"text": turn.reply, "audio": "", "speech_units": spoken, "spk_emb": ""}
        messages += [_message("user", _heard(turn, where, change)), _message("assistant", reply)]
    known = {"speaker": dialogue.speaker, "pair": dialogue.pair, "ambiguous": dialogue.ambiguous}
    known |= {"seed": dialogue.seed} if dialogue.seed else {}
    known |= {"figures": dict(figures)} if figures else {}
    return {"id": dialogue.id, **known, "messages": messages}


def understanding_rows(
    dialogue: Dialogue, audio: Sequence[str], drawn: Sequence[Drawn | None]
) -> Iterable[dict[str, Any]]:
    """Lines for stage 1: transcribe, name the emotion, continue, and, where nothing came before, reply in text."""
    for number, (name, turn) in enumerate(zip(dialogue.clip_ids, dialogue.turns, strict=True)):
        for task, prompt, answer in task_answers(turn):
            if number and task == "reply":
                continue
            user = _heard(turn, audio[number], drawn[number]) | {"text": prompt}
            yield _row(f"{name}-{task}", user, {"text": answer}, task=task, speaker=dialogue.speaker)


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


def task_answers(turn: Turn) -> Iterable[tuple[str, str, str]]:
    """(task, prompt, answer) of a line, for the tasks whose answer is known."""
    answers = {"reply": turn.reply, "emotion": turn.emotion, "transcribe": turn.text, "continue": turn.continuation}
    return [(task, prompt, answers[task]) for task, prompt in TASKS.items() if answers[task]]


def speech_row(reading: Reading, units: str) -> dict[str, Any]:
    """A line for stage 2: a spoken reply behind a line, in words, that it fits."""
    user = {"text": "", "audio_text": f"({reading.emotion}) {reading.text}"}
    return _row(reading.id, user, {"text": reading.reply, "audio": "", "speech_units": units, "spk_emb": ""})


def language_rows(dialogue: Dialogue, speak: bool) -> Iterable[dict[str, Any]]:
    """Lines for the LLM: what is heard stands there in words, with its emotion.

    Args:
        dialogue: of which the first turn is taken.
        speak: mark the reply as a spoken one.
    """
    turn = dialogue.turns[0]
    for task, prompt, answer in task_answers(turn):
        user = {"text": prompt, "audio_text": f"({turn.emotion}) {turn.text}"}
        spoken = {"text": answer} | ({"speak": True} if task == "reply" and speak else {})
        yield _row(f"{dialogue.id}-{task}", user, spoken, task=task)


def _heard(turn: Turn, audio: str, drawn: Drawn | None) -> dict[str, Any]:
    return {
        "text": "",
        "audio": audio,
        "speech_units": "",
        "spk_emb": "",
        "transcript": turn.text,
        "emotion": turn.emotion,
    } | ({"augmentation": drawn.figures()} if drawn else {})


def _row(identity: str, user: dict[str, Any], assistant: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return {"id": identity, **extra, "messages": [_message("user", user), _message("assistant", assistant)]}


def _message(role: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": [content]}
