"""Asks a model everything that an evaluation needs and keeps what it said on disk, so that a stopped one resumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import soundfile as sf
import torch

from lightning_s2s.data.audio import Waveform
from lightning_s2s.evaluation.asking import Asked, ask_all, last_reply
from lightning_s2s.evaluation.conditions import Condition
from lightning_s2s.evaluation.questions import EvaluationQuestion, file_names
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.streaming.engine import StreamingEngine
from lightning_s2s.streaming.events import Reply
from lightning_s2s.streaming.session import stream_reply
from lightning_s2s.support.files import replacing
from lightning_s2s.support.journal import Journal

RECORDED = "as recorded"
"""Title of the questions without any condition."""


@dataclass(frozen=True)
class Pass:
    """Questions that are asked under one condition.

    Attributes:
        questions: The questions.
        condition: What is done to them; None asks them as they were recorded.
    """

    questions: Sequence[EvaluationQuestion]
    condition: Condition | None = None

    @property
    def title(self) -> str:
        """Title of the condition."""
        return RECORDED if self.condition is None else self.condition.title

    def load(self, number: int, sample_rate: int) -> tuple[Waveform, float]:
        """What the model hears of one question, (T,), and the decibels by which it was lowered so as not to clip."""
        question = self.questions[number]
        waveform = question.load(sample_rate)
        return (waveform, 0.0) if self.condition is None else self.condition.apply(waveform, sample_rate, question.id)


@dataclass(frozen=True)
class Recorded:
    """What the model said to one question.

    Attributes:
        named: The emotion that it named, in its own words.
        reply: Text of its reply.
        lowered_db: Decibels by which the question was lowered so as not to clip.
        audio: Path of the spoken reply, relative to the output folder; None if its audio is not kept.
        silent: True if the reply has no audio, so that there is no such file.
    """

    named: str
    reply: str
    lowered_db: float = 0.0
    audio: str | None = None
    silent: bool = True


@dataclass(frozen=True)
class Timing:
    """Latency of one reply, given while no other session ran; both fields are those of `Reply`."""

    marks: dict[str, float] = field(default_factory=dict)
    real_time_factor: float | None = None


class _Place(NamedTuple):
    """Place of a question among all passes, and the decibels by which it was lowered there."""

    title: str
    number: int
    lowered_db: float


class Recorder:
    """Asks the questions that the journal lacks.

    Args:
        model: The model.
        journal: What it has said so far: answers by title and number of their question, timings by number alone.
        folder: The output folder; spoken replies are written to `replies` in it.
        passes: All questions and their conditions; the first pass is spoken, of the others only the text is used.
    """

    def __init__(self, model: SpeechToSpeechModel, journal: Journal, folder: Path, passes: Sequence[Pass]):
        self.model, self.journal, self.folder, self.passes = model, journal, folder, passes
        self.sample_rate = model.require_encoder()[0].sample_rate
        self._names = file_names([question.id for question in passes[0].questions])

    def time(self, num_questions: int, num_warmup: int) -> dict[int, Timing]:
        """Time the replies to some questions of the first pass, evenly spread, one session at a time.

        Args:
            num_questions: Number of questions.
            num_warmup: Number of replies before the first that is timed.
        Returns:
            Number of the question -> its timing.
        """
        from tqdm import tqdm

        total = len(self.passes[0].questions)
        chosen = range(total) if num_questions >= total else [i * total // num_questions for i in range(num_questions)]
        missing = [number for number in chosen if number not in self.journal]
        engine = StreamingEngine(self.model)
        for number in range(min(num_warmup, total) if missing else 0):
            self._reply_alone(engine, number)
        done = len(chosen) - len(missing)
        with tqdm(total=len(chosen), initial=done, desc="timing, one at a time", unit="question") as bar:
            for number in missing:
                reply = self._reply_alone(engine, number)
                timing = Timing(reply.marks, reply.real_time_factor)
                self.journal.add([(number, asdict(timing))])
                bar.update()
        return {number: Timing(**self.journal[number]) for number in chosen}

    def ask(self, num_slots: int) -> list[list[Recorded]]:
        """Ask all questions of all passes, several at a time; returns what the model said, pass by pass.

        If torch computes in one thread, the vocoder gets another.

        Args:
            num_slots: Number of sessions that run at the same time.
        """
        from tqdm import tqdm

        keys = [(of.title, number) for of in self.passes for number in range(len(of.questions))]
        missing = [key for key in keys if not self._is_there(key)]
        done = len(keys) - len(missing)
        engine = StreamingEngine(self.model, num_slots, overlap=torch.get_num_threads() == 1)
        with tqdm(total=len(keys), initial=done, desc="answering", unit="question") as bar:
            for answer in ask_all(engine, self._load(missing), self.sample_rate):
                title, number, lowered_db = answer.key
                audio = f"replies/{self._names[number]}.wav" if title == RECORDED else None
                silent = audio is None or not self._write(audio, answer.reply)
                record = Recorded(answer.named, answer.reply.text, lowered_db, audio, silent)
                self.journal.add([((title, number), asdict(record))])
                bar.update()
        found = iter(Recorded(**self.journal[key]) for key in keys)
        return [[next(found) for _ in of.questions] for of in self.passes]

    def _reply_alone(self, engine: StreamingEngine, number: int) -> Reply:
        waveform, _ = self.passes[0].load(number, self.sample_rate)
        return last_reply(stream_reply(self.model, waveform, self.sample_rate, engine=engine, greedy=True))

    def _load(self, keys: Sequence[tuple[str, int]]) -> Iterator[Asked[_Place]]:
        by_title = {of.title: of for of in self.passes}
        for title, number in keys:
            waveform, lowered_db = by_title[title].load(number, self.sample_rate)
            yield Asked(_Place(title, number, lowered_db), waveform, vocode=title == RECORDED)

    def _is_there(self, key: tuple[str, int]) -> bool:
        """Whether the journal has the answer, and the folder its audio."""
        if key not in self.journal:
            return False
        record = Recorded(**self.journal[key])
        return record.silent or record.audio is None or (self.folder / record.audio).is_file()

    def _write(self, path: str, reply: Reply) -> bool:
        """Write a spoken reply, or remove that of an earlier evaluation; returns whether there is one."""
        if reply.waveform is None or reply.sample_rate is None:
            (self.folder / path).unlink(missing_ok=True)
            return False
        with replacing(self.folder / path) as temporary:
            sf.write(temporary, reply.waveform.numpy(), reply.sample_rate)
        return True
