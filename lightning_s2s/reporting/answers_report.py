"""What a model answered, to listen to and look at: one HTML page complete in itself, and a table for the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lightning_s2s.evaluation.answer import MARKS, Answer, Figure, Run, percentile, printable, stage_durations
from lightning_s2s.evaluation.hardware import describe_hardware
from lightning_s2s.reporting.answers_page import SCRIPT, STYLE
from lightning_s2s.reporting.pictures import MelPainter, clip_player
from lightning_s2s.support.files import write_text

TONES = ("neutral", "happy", "sad", "angry")
STAGE_NAMES = {
    "encoder_done": "encoder done",
    "first_text_token": "first text token",
    "first_hidden_states": "first hidden states",
    "first_units": "first speech units",
    "first_audio": "first audio",
}
# Nothing may be loaded from anywhere: the page is complete in itself, and says so to the browser.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; media-src data:"


def write_report(
    path: str | Path,
    title: str,
    answers: Sequence[Answer],
    figures: Sequence[Figure] = (),
    runs: Sequence[Run] = (),
    hardware: Mapping[str, str] | None = None,
) -> Path:
    """Write the page: figures, latency, what was heard, then every question and its reply to play and compare.

    Args:
        path: of the HTML file; it is written under a temporary name and renamed.
        title: the page's heading.
        answers: in the order of the questions; those that share `pair` are shown side by side.
        figures: the summary with its targets.
        runs: the trainings behind the answers.
        hardware: label -> text; None describes the machine that this runs on.
    Returns:
        `path`.
    """
    path = Path(path)
    hardware = describe_hardware() if hardware is None else hardware
    pairs = group_pairs(answers)
    clips = _Clips(answers)
    order = {id(answer): number for number, answer in enumerate(answers)}
    groups = [_pair(group, clips, order) for group in pairs if len(group) > 1]
    alone = [group[0] for group in pairs if len(group) == 1]
    singles = [_answer(answer, alone, clips, order, single=True) for answer in alone]
    body = [
        f"<header><h1>{escape(title)}</h1><p class='lead'>{_introduction(answers, len(groups))}</p></header><main>",
        figure_list(figures),
        "<div class='panels'>",
        _latency(answers),
        _heard(answers),
        _machine(hardware),
        *map(_run, runs),
        "</div>",
        _filter_bar(answers) if answers else "",
        _section(
            "Same words, another voice",
            "Each row is one sentence, said by one speaker with several emotions. "
            "The words give nothing away: only the voice tells which reply fits.",
            "pairs",
            groups,
        ),
        _section("Single questions", "The words of most of these name the emotion as well.", "singles", singles),
        "<p class='nothing' hidden>No answer is left by these filters.</p></main>",
    ]
    write_text(path, html_page(title, "\n".join(body), "answers"))
    return path


def html_page(title: str, body: str, main_id: str, style: str = STYLE, script: str = SCRIPT) -> str:
    """A page complete in itself; `main_id` is what the keyboard can skip to."""
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<meta http-equiv='Content-Security-Policy' content=\"{POLICY}\">"
        "<meta name='viewport' content='width=device-width, initial-scale=1'><meta name='color-scheme' "
        f"content='light dark'><style>{style}</style></head><body>"
        f"<a class='skip' href='#{main_id}'>To the {main_id}</a>\n{body}\n<script>{script}</script></body></html>\n"
    )


def group_pairs(answers: Sequence[Answer]) -> list[list[Answer]]:
    """Answers that share a `pair`, together; groups in the order of their first answer, emotions in a fixed order."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.pair or answer.id, []).append(answer)
    rank = {emotion: number for number, emotion in enumerate(emotions_of(answers))}
    return [sorted(group, key=lambda answer: rank[answer.emotion_spoken]) for group in groups.values()]


def emotions_of(answers: Sequence[Answer]) -> list[str]:
    """The emotions that were spoken: the usual four in their order, then others by name."""
    spoken = {answer.emotion_spoken for answer in answers}
    return [tone for tone in TONES if tone in spoken] + sorted(spoken - set(TONES))


class _Clips:
    """Buttons that play: pictures of one level for all questions and for all replies, of one time scale in a group."""

    def __init__(self, answers: Sequence[Answer]):
        self.scale = _scale(answers)
        self.painters = {"question": MelPainter(), "reply": MelPainter()}
        loudest: dict[str, list[float]] = {"question": [], "reply": []}
        for answer in answers:
            for kind, (waveform, rate) in _sounds(answer).items():
                levels = self.painters[kind].levels(waveform, rate)
                loudest[kind].append(float(levels.max()) if levels.size else -9.0)
        for kind, maxima in loudest.items():
            self.painters[kind].loudest = max(percentile(maxima, 90), -9.0) if maxima else 0.0

    def render(self, answer: Answer, kind: str, group: Sequence[Answer]) -> str:
        """One clip as HTML, as wide as it is long beside the longest of its group; nothing when there is no sound."""
        if kind not in _sounds(answer):
            return ""
        beside = [_sounds(other)[kind] for other in group if kind in _sounds(other)]
        longest_sec = max(len(waveform) / rate for waveform, rate in beside)
        emotion = answer.emotion_spoken if kind == "question" else answer.reply_emotion
        label = f"Play the {kind} of {answer.id}, {emotion or 'emotion unclear'}"
        return clip_player(kind, label, *_sounds(answer)[kind], longest_sec, self.painters[kind])


def _sounds(answer: Answer) -> dict[str, tuple[Any, int]]:
    """Question and reply as (waveform, sample rate); what is shorter than 20 ms is no sound."""
    sounds = {"question": (answer.waveform, answer.sample_rate)}
    if answer.reply.waveform is not None and answer.reply.sample_rate is not None:
        sounds["reply"] = (answer.reply.waveform, answer.reply.sample_rate)
    return {kind: sound for kind, sound in sounds.items() if len(sound[0]) >= sound[1] // 50}


def tone_class(emotion: str | None) -> str:
    """The class that colours an emotion's name."""
    return f"tone-{emotion}" if emotion in TONES else "tone-other"


def verdict_tag(good: bool, text: str) -> str:
    """Good or bad, in colour and by a sign."""
    return f"<span class='verdict {'good' if good else 'bad'}'>{'✓' if good else '✗'} {escape(text)}</span>"


def _introduction(answers: Sequence[Answer], num_pairs: int) -> str:
    speakers = len({answer.speaker for answer in answers})
    text = f"{len(answers)} spoken questions by {speakers} speaker{'s' * (speakers != 1)}, and what was answered."
    if num_pairs:
        text += (
            f" {num_pairs} sentence{'s' * (num_pairs != 1)} {'are' if num_pairs != 1 else 'is'} said with several "
            "emotions, to be heard one after the other."
        )
    return text


def figure_list(figures: Sequence[Figure]) -> str:
    """The summary in large numbers."""
    items = []
    for figure in figures:
        verdict = ""
        if figure.met is not None:
            verdict = f"<span class='small'>{verdict_tag(figure.met, 'met' if figure.met else 'missed')}, "
            verdict += f"target {figure.format_target()}</span>"
        note = f"<span class='small'>{escape(figure.note)}</span>" if figure.note else ""
        items.append(
            f"<li><span class='name'>{escape(figure.name)}</span><strong>"
            f"{figure.format(figure.value)}</strong>{verdict}{note}</li>"
        )
    if not items:
        return ""
    num_rows = math.ceil(len(items) / 6)
    columns = math.ceil(len(items) / num_rows)
    return f"<ul class='figures' aria-label='Summary' style='--columns:{columns}'>{''.join(items)}</ul>"


def _timeline(marks: Mapping[str, float], scale: float) -> str:
    """The stages of one reply as a bar whose full width is `scale` seconds."""
    durations = stage_durations(marks)
    spans = "".join(
        f"<span class='s{MARKS.index(mark)}' style='width:{100 * seconds / scale:.2f}%' "
        f"title='{STAGE_NAMES[mark]}: {marks[mark]:.3f} s'></span>"
        for mark, seconds in durations
    )
    words = ", ".join(f"{STAGE_NAMES[mark]} {marks[mark]:.3f} s" for mark, _ in durations)
    return f"<div class='timeline' role='img' aria-label='{words}'>{spans}</div>" if durations else ""


def _scale(answers: Sequence[Answer]) -> float:
    """Seconds of a full bar, shared by the page; one straggler must not squeeze all others."""
    ends = [
        max((answer.reply.marks[mark] for mark in MARKS if answer.reply.marks.get(mark) is not None), default=0.0)
        for answer in answers
    ]
    return max(min(max(ends, default=0.0), 2 * percentile(ends, 95)) if ends else 0.0, 1e-3)


def _latency(answers: Sequence[Answer]) -> str:
    values = {mark: [a.reply.marks[mark] for a in answers if a.reply.marks.get(mark) is not None] for mark in MARKS}
    median = {mark: percentile(found, 50) for mark, found in values.items() if found}
    if not median:
        return ""
    rows = "".join(
        f"<tr><th scope='row'><span class='key s{MARKS.index(mark)}'></span>{STAGE_NAMES[mark]}</th>"
        f"<td class='number'>{median[mark]:.3f} s</td><td class='number'>{percentile(values[mark], 95):.3f} s</td></tr>"
        for mark in median
    )
    factors = [a.reply.real_time_factor for a in answers if a.reply.real_time_factor is not None]
    if factors:
        rows += (
            f"<tr><th scope='row'>real-time factor</th><td class='number'>{percentile(factors, 50):.3f}</td>"
            f"<td class='number'>{percentile(factors, 95):.3f}</td></tr>"
        )
    return (
        "<section class='panel big'><h3>From question's end to first sound</h3>"
        f"{_timeline(median, max(median.values()))}<div class='scroll'><table><thead><tr><th scope='col'>reached after"
        f"</th><th scope='col' class='number'>median</th><th scope='col' class='number'>p95</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _heard(answers: Sequence[Answer]) -> str:
    """Spoken emotion against heard emotion, as counts."""
    if not answers:
        return ""
    rows, counts = emotions_of(answers), Counter((a.emotion_spoken, a.emotion_heard or "none") for a in answers)
    columns = rows + sorted({heard for _, heard in counts} - set(rows))
    head = "".join(f"<th scope='col'>{escape(column)}</th>" for column in columns)
    body = ""
    for row in rows:
        total = sum(counts[row, column] for column in columns)
        cells = "".join(
            f"<td class='{'hit' if row == column else 'miss'}' style='--share:{counts[row, column] / total:.3f}'>"
            f"{counts[row, column]}</td>"
            for column in columns
        )
        body += f"<tr><th scope='row'>said {escape(row)}</th>{cells}</tr>"
    return (
        f"<section class='panel'><h3>What it heard</h3><div class='scroll'><table class='matrix'><thead><tr><td "
        f"style='background:none'></td>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def fact_list(facts: Mapping[str, str]) -> str:
    """Labels and texts in two columns."""
    items = "".join(f"<dt>{escape(str(label))}</dt><dd>{escape(str(text))}</dd>" for label, text in facts.items())
    return f"<dl class='facts'>{items}</dl>" if items else ""


def _machine(hardware: Mapping[str, str]) -> str:
    return f"<section class='panel'><h3>Measured on</h3>{fact_list(hardware)}</section>" if hardware else ""


def _run(run: Run) -> str:
    curves = "".join(_curve(name, points) for name, points in run.curves.items() if len(points) > 1)
    return (
        f"<section class='panel'><h3>{escape(run.name)}</h3>{fact_list(run.facts)}"
        f"<div class='curves'>{curves}</div></section>"
    )


def _curve(name: str, points: Sequence[tuple[int, float]], width: int = 150, height: int = 44) -> str:
    points = [(step, value) for step, value in points if value == value]
    steps, values = [step for step, _ in points], [value for _, value in points]
    if not points:
        return ""
    x = [1 + (width - 2) * (step - steps[0]) / max(1, steps[-1] - steps[0]) for step in steps]
    y = [height - 3 - (height - 6) * (v - min(values)) / max(1e-12, max(values) - min(values)) for v in values]
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return (
        f"<figure><svg width='{width}' height='{height}' role='img' aria-label='{escape(name)} from {values[0]:.3g} to "
        f"{values[-1]:.3g}'><polyline points='{line}' fill='none' stroke='var(--head)' stroke-width='1.6'/></svg>"
        f"<figcaption class='small'>{escape(name)} {values[0]:.3g} → {values[-1]:.3g}</figcaption></figure>"
    )


def chip(name: str, value: str, tone: str = "") -> str:
    """A box to tick, in an emotion's colour or none."""
    return (
        f"<label class='chip {tone}'><input type='checkbox' name='{name}' value='{escape(value)}' checked>"
        f"{escape(value)}</label>"
    )


def _filter_bar(answers: Sequence[Answer]) -> str:
    chips = "".join(chip("emotion", emotion, tone_class(emotion)) for emotion in emotions_of(answers))
    return (
        "<h2 id='answers'>The answers</h2><form class='bar' hidden><fieldset><legend class='small'>said</legend>"
        f"{chips}</fieldset><label>show <select id='only'><option value='all'>all answers</option><option value='good'>"
        "heard right, reply fits</option><option value='unheard'>emotion heard wrongly</option><option value='unfit'>"
        "reply does not fit</option></select></label><label>sort by <select id='by'><option value='order'>question"
        "</option><option value='emotion'>emotion said</option><option value='speaker'>speaker</option><option "
        "value='audio'>first audio, slowest first</option><option value='rtf'>real-time factor, highest first</option>"
        "</select></label><span class='small' id='count' role='status'></span></form>"
    )


def _section(heading: str, text: str, kind: str, blocks: list[str]) -> str:
    if not blocks:
        return ""
    return (
        f"<section><h2>{heading}</h2><p class='small' style='margin-bottom:1rem'>{text}</p>"
        f"<div class='sorted {kind}'>{''.join(blocks)}</div></section>"
    )


def _pair(group: list[Answer], clips: _Clips, order: dict[int, int]) -> str:
    first = group[0]
    return (
        f"<article class='pair'><header><h3>“{escape(first.said)}”<small>{escape(first.speaker)}</small></h3>"
        "<button type='button' class='hear' data-clips='question' hidden>Hear the questions in turn</button>"
        "<button type='button' class='hear' data-clips='both' hidden>… with the replies</button></header>"
        f"<div class='columns' style='--columns:{min(4, len(group))}'>"
        f"{''.join(_answer(answer, group, clips, order) for answer in group)}</div></article>"
    )


def _answer(answer: Answer, group: Sequence[Answer], clips: _Clips, order: dict[int, int], single: bool = False) -> str:
    reply, marks = answer.reply, answer.reply.marks
    heard = answer.emotion_heard == answer.emotion_spoken
    audio, factor = marks.get("first_audio"), reply.real_time_factor
    words = (
        f"<p class='words'>“{escape(answer.said)}” <span class='small'>{escape(answer.speaker)}</span></p>"
        if single
        else ""
    )
    named = f"heard {answer.emotion_heard or 'no emotion'}"
    of = "reply is not well-formed"
    if answer.reply_emotion:
        of = f"reply is {answer.reply_emotion}, {'fits' if answer.fits else 'does not fit'}"
    numbers = [f"first audio {audio:.3f} s" if audio is not None else "no audio"]
    numbers += [f"real-time factor {factor:.2f}"] if factor is not None else []
    if single:
        numbers.append("words fit any emotion" if answer.ambiguous else "words name the emotion")
    return (
        f"<article class='answer{' single' if single else ''}' data-emotion='{escape(answer.emotion_spoken)}' "
        f"data-heard='{'yes' if heard else 'no'}' data-fits='{'yes' if answer.fits else 'no'}' "
        f"data-speaker='{escape(answer.speaker)}' data-audio='{audio or 0:.4f}' data-rtf='{factor or 0:.4f}' "
        f"data-order='{order[id(answer)]}'>{words}<div class='line'><span>said <span class='tag "
        f"{tone_class(answer.emotion_spoken)}'>{escape(answer.emotion_spoken)}</span></span>"
        f"{verdict_tag(heard, named)}</div>{clips.render(answer, 'question', group)}"
        f"<div class='reply'><q>{escape(printable(reply.text)) or 'no words'}</q></div><div class='line'>"
        f"{verdict_tag(answer.fits, of)}</div>"
        f"{clips.render(answer, 'reply', group)}<div class='measured'>{_timeline(marks, clips.scale)}"
        f"{' · '.join(numbers)}</div></article>"
    )
