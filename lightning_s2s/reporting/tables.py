"""Tables of results: plain text for a terminal, and Markdown for cards and TensorBoard."""

from __future__ import annotations

import math
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TextIO

from lightning_s2s.evaluation.results import AnswerResult, ConditionScores, Metric, printable

_MARKUP = re.compile(r"(`[^`]+`)|([\\`*\[\]<>~$&]|(?<!\w)_|_(?!\w))")


def escape_markdown(text: str) -> str:
    """Text as one line that Markdown shows as it is; only code spans (`...`) keep their meaning."""
    return _MARKUP.sub(lambda found: found[1] or f"\\{found[2]}", printable(text))


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown themselves."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def format_table(answers: Sequence[AnswerResult], width: int) -> str:
    """The answers in aligned columns of at most `width` characters (77 at least); texts take up to four lines."""
    rows = [("said", "emotion heard", "reply", "its emotion", "first audio", "real-time factor")]
    for answer in answers:
        heard, emotion = answer.emotion_heard or "none", answer.reply_emotion
        audio, factor = answer.reply.marks.get("first_audio"), answer.reply.real_time_factor
        rows.append(
            (
                answer.said,
                heard if answer.heard else f"{heard}, was {answer.emotion_spoken}",
                printable(answer.reply.text) or "-",
                "not well-formed" if emotion is None else emotion if answer.fits else f"{emotion} (misfit)",
                "-" if audio is None else f"{audio:.3f} s",
                "-" if factor is None else f"{factor:.2f}",
            )
        )
    # The two texts share what the four short columns and the five gaps of two leave.
    left = max(24, width - (13 + 12 + 9 + 9) - 10)
    widths = [left * 2 // 5, 13, left - left * 2 // 5, 12, 9, 9]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            textwrap.wrap(cell, size, max_lines=4, placeholder=" ...") or [""]
            for cell, size in zip(row, widths, strict=True)
        ]
        for i in range(max(map(len, cells))):
            texts = [cell[i] if i < len(cell) else "" for cell in cells]
            padded = [text.ljust(size) for text, size in zip(texts[:4], widths[:4], strict=True)]
            padded += [text.rjust(size) for text, size in zip(texts[4:], widths[4:], strict=True)]
            lines.append("  ".join(padded))
        if number == 0:
            lines.append("  ".join("-" * size for size in widths))
    return "\n".join(line.rstrip() for line in lines)


def condition_table(scores: Sequence[ConditionScores]) -> list[list[str]]:
    """Header and rows of the table of conditions; cells in per cent without the sign, "-" where there is no value."""
    emotions = list(dict.fromkeys(emotion for of in scores for emotion in of.recall))
    rows = [["condition", "emotion heard", *emotions, "replies fit", "minimal pairs", "chance", "lowered"]]
    for of in scores:
        shares = [of.heard, *(of.recall.get(emotion, math.nan) for emotion in emotions)]
        shares += [of.fits, of.pairs_fit, of.chance]
        lowered = f"{of.num_limited} by {of.limited_db:.1f} dB" if of.num_limited else "-"
        rows.append([of.title, *("-" if math.isnan(value) else f"{100 * value:.0f}" for value in shares), lowered])
    return rows


def print_conditions(scores: Sequence[ConditionScores]) -> None:
    """Print the table of conditions, in per cent; nothing without any."""
    if not scores:
        return
    rows = condition_table(scores)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for name, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *padded]).rstrip())


def print_metrics(metrics: Sequence[Metric]) -> None:
    """Print one line per metric, with its target."""
    width = max(len(metric.name) for metric in metrics)
    print()
    for metric in metrics:
        verdict = {True: "met", False: "MISSED", None: ""}[metric.met]
        target = f"(target {metric.format_target()}: {verdict})" if metric.target is not None else ""
        print(f"{metric.name:<{width}}  {metric.format(metric.value):>8}  {target} {metric.note}".rstrip())


def print_table(answers: Sequence[AnswerResult], file: TextIO | None = None) -> None:
    """Print `format_table` at the width of the terminal, to `file` or standard output."""
    width = max(80, shutil.get_terminal_size((120, 24)).columns)
    file = file or sys.stdout
    text = format_table(answers, width)
    encoding = getattr(file, "encoding", None) or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), file=file)
