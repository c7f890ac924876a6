"""The lines of a corpus's manifests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_s2s.construction.dialogue import Candidate, Dialogue, DialogueTurn, SpokenReply
from lightning_s2s.construction.readers import Recording
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


def units_text(units: Iterable[int]) -> str:
    """Units as OpenS2S's manifests have them: `<|audio_12|><|audio_7|>`."""
    return "".join(f"<|audio_{unit}|>" for unit in units)


def dialogue_row(candidate: Candidate, audio: Sequence[str], units: Sequence[Sequence[int]]) -> dict[str, Any]:
    """A line for stage 3: the spoken questions and the spoken replies.

    Args:
        candidate: The dialogue, with what happened to its recordings and what filters found.
        audio: Reference of each question's recording.
        units: Units of each reply.
    """
    dialogue, messages = candidate.dialogue, []
    for turn, where, spoken, change in zip(dialogue.turns, audio, units, candidate.augmentations, strict=True):
        reply = {"text": turn.reply, "audio": "", "speech_units": units_text(spoken), "spk_emb": ""}
        messages += [_message("user", _question(turn, where, change)), _message("assistant", reply)]
    known = {"speaker": dialogue.speaker, "pair": dialogue.pair, "ambiguous": dialogue.ambiguous}
    known |= {"seed": dialogue.seed} if dialogue.seed else {}
    known |= {"figures": candidate.figures} if candidate.figures else {}
    return {"id": dialogue.id, **known, "messages": messages}


def understanding_rows(candidate: Candidate, audio: Sequence[str]) -> Iterable[dict[str, Any]]:
    """Lines for stage 1: transcribe, name the emotion, continue, and, where nothing came before, reply in text."""
    dialogue = candidate.dialogue
    for number, (name, turn) in enumerate(zip(dialogue.clip_ids, dialogue.turns, strict=True)):
        for task, prompt, answer in task_answers(turn):
            if number and task == "reply":
                continue
            user = _question(turn, audio[number], candidate.augmentations[number]) | {"text": prompt}
            yield _row(f"{name}-{task}", user, {"text": answer}, task=task, speaker=dialogue.speaker)


def recording_rows(
    recording: Recording, audio: str, tasks: Sequence[str], continuation: str
) -> Iterable[dict[str, Any]]:
    """Lines for stage 1 from a recording of a corpus: those of the `tasks` whose answer is known.

    Args:
        recording: Recording with its words, its emotion or both.
        audio: Reference of it for the manifest.
        tasks: Any of `transcribe`, `emotion` and `continue`.
        continuation: What an LLM said to its words; "" where none was asked.
    """
    answers = {"transcribe": recording.text, "emotion": recording.emotion, "continue": continuation}
    prompts = TASKS if recording.emotion else TASKS | {"continue": CONTINUE_WORDS}
    question = {"audio": audio, "audio_sec": recording.audio_sec}
    known = {"transcript": recording.text, "emotion": recording.emotion}
    question |= {key: value for key, value in known.items() if value}
    for task in tasks:
        if answers[task]:
            user = {"text": prompts[task], **question}
            yield _row(f"{recording.id}-{task}", user, {"text": answers[task]}, task=task, speaker=recording.speaker)


def reading_row(recording: Recording, audio: str) -> dict[str, Any]:
    """A line for stage 2: words to say, and how they were said; `lightning-s2s units` adds the units."""
    user = {"text": f"Say the following sentence: {recording.text}"}
    said = {"text": recording.text, "audio": audio, "audio_sec": recording.audio_sec}
    return _row(recording.id, user, said, speaker=recording.speaker)


def task_answers(turn: DialogueTurn) -> Iterable[tuple[str, str, str]]:
    """(task, prompt, answer) of a line, for the tasks whose answer is known."""
    answers = {"reply": turn.reply, "emotion": turn.emotion, "transcribe": turn.text, "continue": turn.continuation}
    return [(task, prompt, answers[task]) for task, prompt in TASKS.items() if answers[task]]


def speech_row(reply: SpokenReply, units: Iterable[int]) -> dict[str, Any]:
    """A line for stage 2: a spoken reply behind a line, in words, that it fits."""
    user = {"text": "", "audio_text": f"({reply.emotion}) {reply.text}"}
    spoken = {"text": reply.reply, "audio": "", "speech_units": units_text(units), "spk_emb": ""}
    return _row(reply.id, user, spoken)


def language_rows(dialogue: Dialogue, speak: bool) -> Iterable[dict[str, Any]]:
    """Lines for the LLM: what is heard stands there in words, with its emotion.

    Args:
        dialogue: Dialogue of which the first turn is used.
        speak: Whether the reply is marked as a spoken one.
    """
    turn = dialogue.turns[0]
    for task, prompt, answer in task_answers(turn):
        user = {"text": prompt, "audio_text": f"({turn.emotion}) {turn.text}"}
        spoken = {"text": answer} | ({"speak": True} if task == "reply" and speak else {})
        yield _row(f"{dialogue.id}-{task}", user, spoken, task=task)


def _question(turn: DialogueTurn, audio: str, augmentation: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "text": "",
        "audio": audio,
        "speech_units": "",
        "spk_emb": "",
        "transcript": turn.text,
        "emotion": turn.emotion,
    } | ({"augmentation": augmentation} if augmentation else {})


def _row(identity: str, user: dict[str, Any], assistant: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return {"id": identity, **extra, "messages": [_message("user", user), _message("assistant", assistant)]}


def _message(role: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": [content]}
