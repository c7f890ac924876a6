"""The report of an evaluation: questions and answers to listen to, their metrics and latency, on one HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_s2s.evaluation.hardware import describe_hardware
from lightning_s2s.evaluation.results import (
    MARKS,
    AnswerResult,
    ConditionScores,
    Metric,
    percentile,
    stage_durations,
)
from lightning_s2s.evaluation.runs import TrainingRun
from lightning_s2s.evaluation.scores import worst_of
from lightning_s2s.reporting.condition_chart import condition_chart
from lightning_s2s.reporting.emotion_pairs import group_pairs, in_order
from lightning_s2s.reporting.pages import write_page
from lightning_s2s.reporting.pictures import ClipPlayers, Sound, draw_curve
from lightning_s2s.reporting.tables import condition_table

MARK_NAMES = {
    "encoder_done": "encoder done",
    "first_text_token": "first text token",
    "first_hidden_states": "first hidden states",
    "first_units": "first speech units",
    "first_audio": "first audio",
}


def write_report(
    path: str | Path,
    title: str,
    answers: Sequence[AnswerResult],
    metrics: Sequence[Metric] = (),
    runs: Sequence[TrainingRun] = (),
    hardware: Mapping[str, str] | None = None,
    conditions: Sequence[ConditionScores] = (),
) -> Path:
    """Write the report: metrics, latency, confusion of emotions, then every question and reply to play and compare.

    Latency is that of the answers with marks, the ones that were timed.

    Args:
        path: HTML file to write.
        title: Heading of the page.
        answers: Results in the order of the questions; those of one `pair` are shown side by side.
        metrics: Summary of the evaluation.
        runs: Training runs behind the model.
        hardware: Label -> text about the machine; None describes the machine that this runs on.
        conditions: Scores of the questions as recorded and of each condition; empty without conditions.
    Returns:
        `path`.
    """
    path = Path(path)
    groups = group_pairs(answers, lambda answer: answer.pair or answer.id, lambda answer: answer.emotion_spoken)
    players = ClipPlayers({"question": list(map(_question, answers)), "reply": list(map(_reply, answers))})
    scale_sec = timeline_scale_sec(answers)
    cards = {
        id(answer): {
            "answer": answer,
            "order": order,
            "question": players.clip(
                "question", f"Play the question of {answer.id}, {answer.emotion_spoken}", _question(answer)
            ),
            "reply": players.clip(
                "reply", f"Play the reply of {answer.id}, {answer.reply_emotion or 'emotion unclear'}", _reply(answer)
            ),
            "timeline": timeline(answer.reply.marks, scale_sec),
        }
        for order, answer in enumerate(answers)
    }
    values = {
        "title": title,
        "metrics": metrics,
        "num_answers": len(answers),
        "num_speakers": len({answer.speaker for answer in answers}),
        "emotions": in_order(answer.emotion_spoken for answer in answers),
        "latency": latency(answers),
        "num_timed": sum(bool(answer.reply.marks) for answer in answers),
        "confusion": confusion(answers),
        "conditions": _conditions(conditions),
        "hardware": describe_hardware() if hardware is None else hardware,
        "runs": [
            {"name": run.name, "facts": run.facts, "curves": [draw_curve(*curve) for curve in run.curves.items()]}
            for run in runs
        ],
        "pairs": [[cards[id(answer)] for answer in group] for group in groups if len(group) > 1],
        "singles": [cards[id(group[0])] for group in groups if len(group) == 1],
    }
    write_page(path, "answers.html", values)
    return path


def _conditions(scores: Sequence[ConditionScores]) -> dict[str, Any] | None:
    """Values of the section on conditions; None without any."""
    worst = worst_of(scores[1:])
    if worst is None:
        return None
    columns, *rows = condition_table(scores)
    return {
        "chart": condition_chart(scores),
        "columns": columns,
        "rows": [{"name": name, "numbers": numbers} for name, *numbers in rows],
        "worst": worst,
        "num_limited": sum(of.num_limited for of in scores),
    }


def _question(answer: AnswerResult) -> Sound:
    return answer.waveform, answer.sample_rate


def _reply(answer: AnswerResult) -> Sound | None:
    reply = answer.reply
    return None if reply.waveform is None or reply.sample_rate is None else (reply.waveform, reply.sample_rate)


def timeline(marks: Mapping[str, float], scale_sec: float) -> list[dict[str, Any]]:
    """Values of the macro `timeline`: the stages of one reply, as parts of a bar of `scale_sec` seconds."""
    return [
        {"stage": MARKS.index(mark), "name": MARK_NAMES[mark], "sec": marks[mark], "width": 100 * seconds / scale_sec}
        for mark, seconds in stage_durations(marks)
    ]


def timeline_scale_sec(answers: Sequence[AnswerResult]) -> float:
    """Length of a full bar, shared by the page; it is limited, so that one straggler does not squeeze all others."""
    ends = [sum(seconds for _, seconds in stage_durations(answer.reply.marks)) for answer in answers]
    return max(min(max(ends), 2 * percentile(ends, 95)), 1e-3) if ends else 1e-3


def latency(answers: Sequence[AnswerResult]) -> dict[str, Any] | None:
    """Median and 95th percentile of each mark that was reached, with a bar of the medians; None without marks."""
    marks = [answer.reply.marks for answer in answers]
    values = {mark: [of[mark] for of in marks if of.get(mark) is not None] for mark in MARKS}
    median = {mark: percentile(found, 50) for mark, found in values.items() if found}
    if not median:
        return None
    rows = [
        {
            "name": MARK_NAMES[mark],
            "stage": MARKS.index(mark),
            "numbers": [f"{median[mark]:.3f} s", f"{percentile(values[mark], 95):.3f} s"],
        }
        for mark in median
    ]
    factors = [a.reply.real_time_factor for a in answers if a.reply.real_time_factor is not None]
    if factors:
        numbers = [f"{percentile(factors, 50):.3f}", f"{percentile(factors, 95):.3f}"]
        rows.append({"name": "real-time factor", "numbers": numbers})
    return {"timeline": timeline(median, max(median.values())), "rows": rows}


def confusion(answers: Sequence[AnswerResult]) -> dict[str, Any]:
    """Counts of heard emotions (columns) for each spoken emotion (rows)."""
    spoken = in_order(answer.emotion_spoken for answer in answers)
    counts = Counter((answer.emotion_spoken, answer.emotion_heard or "none") for answer in answers)
    heard = spoken + sorted({heard for _, heard in counts} - set(spoken))
    return {"heard": heard, "rows": [(emotion, [counts[emotion, other] for other in heard]) for emotion in spoken]}
