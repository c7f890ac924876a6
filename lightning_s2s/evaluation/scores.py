"""Judges what a model said, and adds it up: scores of each condition, and the metrics of the whole evaluation."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from lightning_s2s.data.tasks import EMOTIONS
from lightning_s2s.evaluation.grammar import DialogueGrammar
from lightning_s2s.evaluation.questions import EvaluationQuestion
from lightning_s2s.evaluation.recording import Recorded
from lightning_s2s.evaluation.results import AnswerResult, ConditionScores, Metric, percentile


def emotion_named(text: str) -> str | None:
    """The emotion that a text names, None if it names none and nothing else."""
    return text if text in EMOTIONS else None


def score(
    title: str, questions: Sequence[EvaluationQuestion], said: Sequence[Recorded], grammar: DialogueGrammar
) -> ConditionScores:
    """Scores of what the model said to the questions under one condition."""
    spoken = [question.emotion for question in questions]
    heard = [emotion_named(record.named) == emotion for record, emotion in zip(said, spoken, strict=True)]
    fits = [
        (grammar.judge(record.reply) or ("", ""))[0] == emotion for record, emotion in zip(said, spoken, strict=True)
    ]
    counts = Counter(spoken)
    lowered = [record.lowered_db for record in said if record.lowered_db > 0]
    return ConditionScores(
        title=title,
        num_questions=len(questions),
        heard=share(heard),
        recall={
            emotion: share(right for right, said_with in zip(heard, spoken, strict=True) if said_with == emotion)
            for emotion in [*filter(counts.__contains__, EMOTIONS), *sorted(counts.keys() - set(EMOTIONS))]
        },
        chance=max(counts.values(), default=0) / max(1, len(questions)),
        fits=share(fits),
        pairs_fit=share(fit for fit, question in zip(fits, questions, strict=True) if question.ambiguous),
        num_limited=len(lowered),
        limited_db=statistics.mean(lowered) if lowered else 0.0,
    )


def summarise(
    answers: Sequence[AnswerResult], grammar: DialogueGrammar, conditions: Sequence[ConditionScores] = ()
) -> list[Metric]:
    """Metrics of the whole evaluation, with their targets.

    Args:
        answers: The answers to the questions as they were recorded; those with marks are the ones that were timed.
        grammar: Judges the replies.
        conditions: Scores of all other conditions.
    """
    pairs = [answer for answer in answers if answer.ambiguous]
    per_pair = [len({other.emotion_spoken for other in pairs if other.pair == answer.pair}) for answer in pairs]
    chance = statistics.mean(1 / count for count in per_pair) if per_pair else float("nan")
    topics = [
        ((grammar.judge(answer.reply.text) or ("", ""))[1], grammar.find_topic(answer.said)) for answer in answers
    ]
    metrics = [
        Metric(
            "emotion recognised",
            share(a.heard for a in answers),
            0.85,
            note="speakers and sentences never heard in training",
        ),
        Metric(
            "minimal pairs: reply fits the emotion",
            share(a.fits for a in pairs),
            0.8,
            note=f"from the words alone: {100 * chance:.0f} %",
        ),
        Metric("replies well-formed and of the right emotion", share(a.fits for a in answers), 0.9),
        Metric(
            "replies on the topic asked about", share(said is not None and replied == said for replied, said in topics)
        ),
    ]
    worst = worst_of(conditions)
    if worst is not None:
        note = f"{worst.title}; by guessing: {100 * worst.chance:.0f} %"
        metrics.append(Metric("emotion recognised, worst condition", worst.heard, note=note))
    return metrics + _latency([answer for answer in answers if answer.reply.marks])


def _latency(timed: Sequence[AnswerResult]) -> list[Metric]:
    """Metrics of the replies that were timed; empty without any."""
    if not timed:
        return []
    first_audio = [a.reply.marks["first_audio"] for a in timed if "first_audio" in a.reply.marks]
    factors = [a.reply.real_time_factor for a in timed if a.reply.real_time_factor is not None]
    note = f"{len(timed)} questions, one at a time"
    return [
        Metric("first audio, median", percentile(first_audio, 50), 0.5, True, "seconds", note),
        Metric("first audio, 95th percentile", percentile(first_audio, 95), None, True, "seconds"),
        Metric("real-time factor, median", percentile(factors, 50), 0.5, True, ""),
    ]


def worst_of(scores: Sequence[ConditionScores]) -> ConditionScores | None:
    """The condition under which the fewest emotions were recognised; None without conditions."""
    return min(scores, key=lambda of: of.heard, default=None)


def share(values: Iterable[bool]) -> float:
    """Share of the values that are true; NaN without values."""
    values = list(values)
    return sum(values) / len(values) if values else float("nan")
