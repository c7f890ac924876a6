"""Answers and figures as text, for a terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TextIO

from lightning_s2s.evaluation.answer import Answer, Figure, printable


def format_table(answers: Sequence[Answer], width: int) -> str:
    """The answers as aligned columns of at most `width` characters (77 at least); texts take up to four lines."""
    rows = [("said", "emotion heard", "reply", "its emotion", "first audio", "real-time factor")]
    for answer in answers:
        heard, emotion = answer.emotion_heard or "none", answer.reply_emotion
        audio, factor = answer.reply.marks.get("first_audio"), answer.reply.real_time_factor
        rows.append(
            (
                answer.said,
                heard if heard == answer.emotion_spoken else f"{heard}, was {answer.emotion_spoken}",
                printable(answer.reply.text) or "-",
                "not well-formed" if emotion is None else emotion if answer.fits else f"{emotion} (misfit)",
                "-" if audio is None else f"{audio:.3f} s",
                "-" if factor is None else f"{factor:.2f}",
            )
        )
    # The two texts share what the four short columns leave; 5 gaps of 2.
    short = {1: 13, 3: 12, 4: 9, 5: 9}
    left = max(24, width - sum(short.values()) - 10)
    widths = [short.get(0, left * 2 // 5), 13, left - left * 2 // 5, 12, 9, 9]
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


def print_figures(figures: Sequence[Figure]) -> None:
    """One line for each figure, with its target."""
    width = max(len(figure.name) for figure in figures)
    print()
    for figure in figures:
        verdict = {True: "met", False: "MISSED", None: ""}[figure.met]
        target = f"(target {figure.format_target()}: {verdict})" if figure.target is not None else ""
        print(f"{figure.name:<{width}}  {figure.format(figure.value):>8}  {target} {figure.note}".rstrip())


def print_table(answers: Sequence[Answer], file: TextIO | None = None) -> None:
    """Print `format_table` in the width of the terminal, to `file` or standard output."""
    width = max(80, shutil.get_terminal_size((120, 24)).columns)
    file = file or sys.stdout
    text = format_table(answers, width)
    encoding = getattr(file, "encoding", None) or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), file=file)
