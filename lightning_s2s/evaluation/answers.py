"""Ask a model the questions of a manifest and judge its answers: emotion heard, reply, its emotion, latency."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import soundfile as sf
import torch

from lightning_s2s.checkpoints.model_folder import load_model
from lightning_s2s.components.weights import weights_fingerprint
from lightning_s2s.evaluation.conditions import Condition
from lightning_s2s.evaluation.grammar import DialogueGrammar
from lightning_s2s.evaluation.questions import EvaluationQuestion, read_questions
from lightning_s2s.evaluation.recording import RECORDED, Pass, Recorded, Recorder, Timing
from lightning_s2s.evaluation.results import AnswerResult, ConditionScores, Metric
from lightning_s2s.evaluation.scores import emotion_named, score, summarise
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.streaming.events import Reply
from lightning_s2s.support.files import write_text
from lightning_s2s.support.journal import Journal
from lightning_s2s.support.ranges import Count, Natural, checked

JOURNAL = "answers.partial"
"""File in the output folder with what the model has said so far; it is deleted at the end."""


@checked
@dataclass
class EvaluateAnswersConfig:
    """Answers every question of a manifest and reports on the answers.

    Args:
        model: A model folder, such as `model` in the folder of a stage's run.
        questions: Manifest with one spoken question per line, with `transcript` and `emotion` beside its audio.
        grammar: YAML of the lines and replies, by which the form, emotion and topic of a reply are judged.
        output_dir: Folder for `answers.jsonl`, `figures.json`, `report.html` and `replies/*.wav`.
        slots: Number of sessions that run at the same time; the answers do not depend on it.
        latency_questions: Number of questions, evenly spread over the manifest, on which latency is measured, one
            session at a time; 0 measures none.
        num_warmup: Number of answers before latency is measured.
        limit: Number of questions to ask, from the start of the manifest; 0 asks all.
        conditions: Conditions under which all questions are asked again.
        title: Heading of the report.
        runs: Folders of the training runs behind the model; the report shows their curves.
        trust_sources: Also load what the model folder names outside of itself: hub ids, URLs, other files.

    Raises:
        ValueError: An option is out of range, or two conditions have the same title.
    """

    model: str
    questions: str
    grammar: str
    output_dir: str
    slots: Count = 16
    latency_questions: Natural = 20
    num_warmup: Natural = 2
    limit: Natural = 0
    conditions: list[Condition] = field(default_factory=list)
    title: str = "Spoken questions and answers"
    runs: list[str] = field(default_factory=list)
    trust_sources: bool = False

    def __post_init__(self) -> None:
        titles = [RECORDED, *(condition.title for condition in self.conditions)]
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"conditions: {title!r} is the title of several; give each a name of its own")


@dataclass(frozen=True)
class Evaluation:
    """Results of `evaluate_answers`.

    Attributes:
        answers: The answers to the questions as they were recorded, in their order.
        metrics: Summary of them.
        scores: Scores of the questions as recorded and, if there are conditions, of each of these; else empty.
    """

    answers: list[AnswerResult]
    metrics: list[Metric]
    scores: list[ConditionScores]


def evaluate_answers(config: EvaluateAnswersConfig) -> Evaluation:
    """Answer every question, judge the answers, and write everything except the report.

    An evaluation that was stopped resumes if model, manifests and options are the same.

    Raises:
        ValueError: The model, a manifest or the grammar is missing or broken, a row has no question that can be judged,
            or the output folder holds the beginning of another evaluation.
    """
    grammar = DialogueGrammar(config.grammar)
    passes, digests = read_passes(config)
    model = load_model(config.model, trust_sources=config.trust_sources)
    for condition in config.conditions:
        condition.check_sample_rate(model.require_encoder()[0].sample_rate)
    output = Path(config.output_dir)
    (output / "replies").mkdir(parents=True, exist_ok=True)
    with Journal(output / JOURNAL, fingerprint(config, model, digests), "evaluate answers") as journal:
        recorder = Recorder(model, journal, output, passes)
        timings = recorder.time(config.latency_questions, config.num_warmup)
        recorded = recorder.ask(config.slots)
        answers = [
            as_result(question, record, timings.get(number, Timing()), recorder.sample_rate, output, grammar)
            for number, (question, record) in enumerate(zip(passes[0].questions, recorded[0], strict=True))
        ]
        scores = [score(of.title, of.questions, said, grammar) for of, said in zip(passes, recorded, strict=True)]
        evaluation = Evaluation(answers, summarise(answers, grammar, scores[1:]), scores if len(scores) > 1 else [])
        write_results(evaluation, recorded[0], output)
        journal.remove()
    return evaluation


def read_passes(config: EvaluateAnswersConfig) -> tuple[list[Pass], list[str]]:
    """The questions of each condition, as recorded first, and the digests of their manifests.

    Raises:
        ValueError: A manifest is missing or broken, or a row has no question that can be judged.
    """
    known = {config.questions: read_questions(config.questions, config.limit)}
    for condition in config.conditions:
        if condition.manifest and condition.manifest not in known:
            known[condition.manifest] = read_questions(condition.manifest, config.limit)
    found = [known[config.questions], *(known[of.manifest or config.questions] for of in config.conditions)]
    passes = [Pass(of[0], condition) for of, condition in zip(found, [None, *config.conditions], strict=True)]
    return passes, [digest for _, digest in found]


def fingerprint(config: EvaluateAnswersConfig, model: SpeechToSpeechModel, digests: Sequence[str]) -> dict[str, Any]:
    """Everything that decides what the model says and which answers are needed."""
    settings = hashlib.sha256((Path(config.model) / "config.json").read_bytes()).hexdigest()
    fields = {
        "model": [weights_fingerprint(model), settings],
        "questions": digests[0],
        "limit": config.limit,
        "latency_questions": config.latency_questions,
        "conditions": [[asdict(of), digest] for of, digest in zip(config.conditions, digests[1:], strict=True)],
    }
    return json.loads(json.dumps(fields))


def as_result(
    question: EvaluationQuestion,
    record: Recorded,
    timing: Timing,
    sample_rate: int,
    folder: Path,
    grammar: DialogueGrammar,
) -> AnswerResult:
    """Judge what the model said to a question, and load the audio of both.

    Args:
        question: The question.
        record: What the model said.
        timing: Latency of its reply, empty if it was not measured.
        sample_rate: Sample rate at which the question is loaded, in Hz.
        folder: The output folder.
        grammar: Judges the reply.
    """
    reply = Reply(record.reply, marks=timing.marks, real_time_factor=timing.real_time_factor)
    if record.audio is not None and not record.silent:
        waveform, reply.sample_rate = sf.read(folder / record.audio, dtype="float32")
        reply.waveform = torch.from_numpy(waveform)
    judged = grammar.judge(record.reply)
    return AnswerResult(
        id=question.id,
        speaker=question.speaker,
        pair=question.pair,
        ambiguous=question.ambiguous,
        said=question.said,
        emotion_spoken=question.emotion,
        emotion_heard=emotion_named(record.named),
        reply=reply,
        reply_emotion=judged[0] if judged else None,
        fits=bool(judged and judged[0] == question.emotion),
        waveform=question.load(sample_rate),
        sample_rate=sample_rate,
    )


def write_results(evaluation: Evaluation, recorded: Sequence[Recorded], output: Path) -> None:
    """Write `answers.jsonl`, and `figures.json` last: it tells that an evaluation is finished.

    Args:
        evaluation: The results.
        recorded: What the model said to the questions as they were recorded.
        output: The output folder.
    """
    lines = [
        json.dumps(
            {
                "id": answer.id,
                "speaker": answer.speaker,
                "pair": answer.pair,
                "said": answer.said,
                "emotion_spoken": answer.emotion_spoken,
                "emotion_heard": answer.emotion_heard,
                "reply": answer.reply.text,
                "reply_emotion": answer.reply_emotion,
                "fits": answer.fits,
                "marks": answer.reply.marks,
                "real_time_factor": answer.reply.real_time_factor,
                "audio": record.audio,
            },
            ensure_ascii=False,
        )
        for answer, record in zip(evaluation.answers, recorded, strict=True)
    ]
    write_text(output / "answers.jsonl", "\n".join(lines) + "\n")
    figures: dict[str, Any] = {metric.name: metric.value for metric in evaluation.metrics}
    if evaluation.scores:
        figures["conditions"] = {
            of.title: {key: value for key, value in asdict(of).items() if key != "title"} for of in evaluation.scores
        }
    write_text(output / "figures.json", json.dumps(figures, indent=2) + "\n")
