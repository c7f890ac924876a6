"""What a run made and what it left out, to look at and listen to: one HTML page complete in itself."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lightning_s2s.construction.config import CorpusConfig
from lightning_s2s.construction.dialogue import Candidate
from lightning_s2s.construction.filters import Filter
from lightning_s2s.construction.speech.renderings import read_recording
from lightning_s2s.data.tasks import EMOTIONS, SPLITS
from lightning_s2s.evaluation.answer import Figure, percentile, printable
from lightning_s2s.evaluation.speech import normalise
from lightning_s2s.reporting import construction_page as report_page
from lightning_s2s.reporting.answers_page import SCRIPT, STYLE
from lightning_s2s.reporting.answers_report import chip, fact_list, figure_list, html_page, tone_class, verdict_tag
from lightning_s2s.reporting.pictures import MelPainter, clip_player
from lightning_s2s.support.files import write_text

if TYPE_CHECKING:
    import numpy as np

    from lightning_s2s.construction.outcome import Outcome

Item = TypeVar("Item")

NOT_IN_LIST = ("answer", "question_heard", "reply_heard")
"""Figures that a dialogue shows in another place."""


def write_report(
    path: Path, outcome: Outcome, config: CorpusConfig, max_dialogues: int = 40, max_rejected: int = 8
) -> Path:
    """Write the page: yield, what each step left out, counts, what was measured, and dialogues to read and hear.

    The same outcome gives the same bytes.

    Args:
        path: of the HTML file.
        outcome: of the run; the recordings lie in `config.work_dir`.
        config: what was run.
        max_dialogues: of those kept that are shown, evenly from all pairs.
        max_rejected: of those that each step left out.
    Returns:
        `path`.
    """
    candidates, steps = outcome.candidates, steps_of(outcome, config)
    kept = choose_pairs(group_pairs(outcome.kept), max_dialogues)
    rejected = {name: [c for c in candidates if c.rejected_by == name] for name in steps}
    shown = {name: spread(found, max_rejected) for name, found in rejected.items() if found}
    sounds = _Sounds(Path(config.work_dir), [c for group in [*kept, *shown.values()] for c in group])
    siblings = {group[0].dialogue.pair: group for group in group_pairs(candidates)}

    title = "What construction made"
    body = [
        f"<header><h1>{escape(title)}</h1><p class='lead'>What became of the {len(candidates)} dialogues asked for in "
        f"<code>{escape(config.output_dir)}</code>: what is kept, what was left out, and why.</p></header><main>",
        figure_list(_figures(outcome)),
        "<section class='panel wide'><h3>What each step left out</h3>",
        report_page.funnel(steps, outcome.rejections(), len(candidates)),
        "</section><div class='panels'>",
        *_counts(candidates),
        "</div>",
        _measured(candidates),
        _picks(candidates),
        _kept(kept, siblings, sounds, len(outcome.kept)),
        _rejected(rejected, shown, sounds),
        "<p class='nothing' hidden>No dialogue is left by these choices.</p></main>",
    ]
    page = html_page(title, "\n".join(body), "dialogues", STYLE + report_page.STYLE, SCRIPT + report_page.SCRIPT)
    write_text(path, page)
    return path


def steps_of(outcome: Outcome, config: CorpusConfig) -> dict[str, str]:
    """Step -> what it does, in the order in which they ran; behind them, others that left something out."""

    def filters(hears: bool) -> dict[str, str]:
        return {kind.name: _describe(kind) for kind in config.filters if kind.hears == hears}

    steps = {"writing": "The words are written."} | filters(False)
    steps |= {"speech": "User and assistant are spoken."} | filters(True)
    return steps | {name: "" for name in outcome.rejections() if name not in steps}


def _describe(kind: Filter) -> str:
    limits = [f"{name} {value}" for name, value in vars(kind).items() if name.startswith(("min_", "max_"))]
    first = (inspect.getdoc(type(kind)) or "").partition("\n")[0].replace("`", "")
    return f"{first} ({', '.join(limits)})" if limits else first


def group_pairs(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Candidates of one pair together, in the order of the first of each; emotions in their usual order."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.dialogue.pair, []).append(candidate)
    order = {emotion: number for number, emotion in enumerate(EMOTIONS)}
    return [sorted(group, key=lambda c: order.get(emotion_of(c), len(order))) for group in groups.values()]


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of them, evenly spaced, the first among them."""
    if len(items) <= count:
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]


def choose_pairs(groups: Sequence[list[Candidate]], limit: int) -> list[list[Candidate]]:
    """Whole groups, evenly spaced, of at most `limit` dialogues; a part of the first where it alone has more."""
    for count in range(min(limit, len(groups)), 0, -1):
        chosen = spread(groups, count)
        if sum(map(len, chosen)) <= limit:
            return chosen
    return [groups[0][:limit]] if groups and limit > 0 else []


def emotion_of(candidate: Candidate) -> str:
    """Of the first line; of one that was not written, what its id ends in, as the writers put it."""
    dialogue = candidate.dialogue
    if dialogue.turns:
        return dialogue.turns[0].emotion
    return dialogue.id.removeprefix(f"{dialogue.pair}-") if dialogue.id.startswith(f"{dialogue.pair}-") else "unknown"


def _in_order(names: Iterable[str], usual: Sequence[str]) -> list[str]:
    found = set(names)
    return [name for name in usual if name in found] + sorted(found - set(usual))


def _figures(outcome: Outcome) -> list[Figure]:
    asked, kept = outcome.candidates, outcome.kept

    def pairs(candidates: list[Candidate]) -> int:
        return sum(len({emotion_of(c) for c in group}) > 1 for group in group_pairs(candidates))

    def voices(candidates: list[Candidate]) -> int:
        return len({candidate.dialogue.speaker for candidate in candidates})

    several = f"with two emotions or more, of {pairs(asked)}"
    share = f"{100 * len(kept) / max(1, len(asked)):.0f}\N{NO-BREAK SPACE}% of them"
    return [
        Figure("dialogues asked for", len(asked), unit=""),
        Figure("dialogues kept", len(kept), unit="", note=share),
        Figure("minutes of users' speech kept", round(outcome.question_sec / 60, 1), unit=""),
        Figure("minutes of replies kept", round(outcome.reply_sec / 60, 1), unit=""),
        Figure("minimal pairs kept", pairs(kept), unit="", note=several),
        Figure("users' voices kept", voices(kept), unit="", note=f"of {voices(asked)}"),
    ]


def _counts(candidates: Sequence[Candidate]) -> list[str]:
    def count(of: Callable[[Candidate], str], usual: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
        asked, kept = Counter(map(of, candidates)), Counter(of(c) for c in candidates if c.kept)
        return {name: (asked[name], kept[name]) for name in _in_order(asked, usual)}

    emotions = count(emotion_of, EMOTIONS)
    return [
        report_page.shares("emotion", emotions, {emotion: tone_class(emotion) for emotion in emotions}),
        report_page.shares("split", count(lambda candidate: candidate.dialogue.split, SPLITS), {}),
        report_page.shares("speaker", count(lambda candidate: candidate.dialogue.speaker), {}),
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _measured(candidates: Sequence[Candidate]) -> str:
    """A histogram of each figure that is a number."""
    values: dict[str, dict[str, list[float]]] = {}
    limits: dict[str, dict[str, float]] = {}
    for candidate in candidates:
        beyond = candidate.limit
        if beyond:
            limits.setdefault(beyond.figure, {})[beyond.side] = beyond.value
        for name, value in candidate.figures.items():
            if _is_number(value):
                kind = "kept" if candidate.kept else "lost" if beyond and beyond.figure == name else "other"
                values.setdefault(name, {kind: [] for kind in report_page.KINDS})[kind].append(value)
    if not values:
        return ""
    charts = "".join(report_page.histogram(name, found, limits.get(name, {})) for name, found in values.items())
    return (
        "<section><h2>What was measured</h2><p class='small'>Each bar counts dialogues; a step measures those that "
        f"came into it.</p>{report_page.legend()}<div class='charts'>{charts}</div></section>"
    )


def _picks(candidates: Sequence[Candidate]) -> str:
    emotions = _in_order(map(emotion_of, candidates), EMOTIONS)
    said = "".join(chip("emotion", emotion, tone_class(emotion)) for emotion in emotions)
    status = chip("status", "kept") + chip("status", "left out")
    return (
        "<h2 id='dialogues'>The dialogues</h2><form class='picks' hidden><fieldset><legend class='small'>said</legend>"
        f"{said}</fieldset><fieldset><legend class='small'>show</legend>{status}</fieldset>"
        "<span class='small' id='count' role='status'></span></form>"
    )


class _Sounds:
    """Plays recordings; their pictures share one level for all users and one for the assistant."""

    def __init__(self, folder: Path, candidates: Sequence[Candidate]):
        self.folder = folder
        self.painters = {"question": MelPainter(), "reply": MelPainter()}
        self.loaded: dict[str, tuple[np.ndarray, int]] = {}
        for kind, painter in self.painters.items():
            names = dict.fromkeys(name for candidate in candidates for name in _clips(candidate, kind))
            peaks = [painter.levels(*self._load(name)).max() for name in names if self._seconds(name)]
            painter.loudest = max(percentile(peaks, 90), -9.0) if peaks else 0.0

    def render(self, candidate: Candidate, kind: str, number: int, group: Sequence[Candidate]) -> str:
        """One turn's recording as HTML, on the time scale of a group; nothing where there is none."""
        names = _clips(candidate, kind)
        if number >= len(names) or not self._seconds(names[number]):
            return ""
        longest_sec = max(self._seconds(name) for other in group for name in _clips(other, kind))
        turn = f", turn {number + 1}" if len(names) > 1 else ""
        label = f"Play the {kind} of {candidate.dialogue.id}{turn}"
        return clip_player(kind, label, *self._load(names[number]), longest_sec, self.painters[kind])

    def _load(self, name: str) -> tuple[np.ndarray, int]:
        if name not in self.loaded:
            self.loaded[name] = read_recording(self.folder / name)
        return self.loaded[name]

    def _seconds(self, name: str) -> float:
        """0 for what is too short to be a sound."""
        waveform, rate = self._load(name)
        return len(waveform) / rate if len(waveform) >= rate // 50 else 0.0


def _clips(candidate: Candidate, kind: str) -> list[str]:
    return candidate.clips if kind == "question" else candidate.replies


def _kept(
    groups: Sequence[list[Candidate]], siblings: dict[str, list[Candidate]], sounds: _Sounds, num_kept: int
) -> str:
    pairs = "".join(_pair(group, siblings, sounds) for group in groups if len(group) > 1)
    alone = [group[0] for group in groups if len(group) == 1]
    singles = "".join(_card(c, alone, sounds, _lost_siblings(siblings[c.dialogue.pair])) for c in alone)
    if not groups:
        return ""
    shown = sum(map(len, groups))
    some = f"{shown} of {num_kept}, evenly from all of them" if shown < num_kept else f"All {shown}"
    return (
        f"<section class='shown'><h3>Kept</h3><p class='small'>{some}. "
        "Recordings are as they were spoken, before anything was added to them.</p>"
        f"{pairs}<div class='singles'>{singles}</div></section>"
    )


def _pair(group: Sequence[Candidate], siblings: dict[str, list[Candidate]], sounds: _Sounds) -> str:
    """Dialogues that share their first words, side by side."""
    dialogue = group[0].dialogue
    cards = "".join(_card(candidate, group, sounds, said=dialogue.turns[0].text) for candidate in group)
    lost = _lost_siblings(siblings[dialogue.pair])
    return (
        f"<article class='pair'><header><h4>“{escape(printable(dialogue.turns[0].text))}”</h4>"
        "<button type='button' class='hear' data-clips='question' hidden>Hear the users in turn</button><button "
        "type='button' class='hear' data-clips='both' hidden>… with the replies</button>"
        f"<p class='small about'>{_about(group[0])}{lost}</p></header>"
        f"<div class='columns' style='--columns:{min(4, len(group))}'>{cards}</div></article>"
    )


def _lost_siblings(pair: Sequence[Candidate]) -> str:
    """Which emotions of a pair are missing."""
    lost = [f"{emotion_of(c)} was left out by {c.rejected_by}" for c in pair if not c.kept]
    return escape(f" · {', '.join(lost)}") if lost else ""


def _about(candidate: Candidate) -> str:
    dialogue = candidate.dialogue
    return escape(printable(" · ".join([dialogue.speaker, dialogue.split, *map(str, dialogue.seed.values())])))


def _rejected(rejected: dict[str, list[Candidate]], shown: dict[str, list[Candidate]], sounds: _Sounds) -> str:
    blocks = []
    for name, candidates in shown.items():
        reasons = Counter(_kind_of_reason(candidate) for candidate in rejected[name])
        listed = " · ".join(f"{count} × {reason}" for reason, count in reasons.most_common(4))
        cards = "".join(_card(candidate, candidates, sounds) for candidate in candidates)
        blocks.append(
            f"<section class='step'><h4><code>{escape(name)}</code> left out {len(rejected[name])}"
            f"{f', {len(candidates)} are shown' if len(candidates) < len(rejected[name]) else ''}</h4>"
            f"<p class='small about'>{escape(printable(listed))}{' · …' if len(reasons) > 4 else ''}</p>"
            f"<div class='singles'>{cards}</div></section>"
        )
    if not blocks:
        return ""
    return (
        "<section class='shown'><h3>Left out</h3><p class='small'>By step, some of those that it left out.</p>"
        f"{''.join(blocks)}</section>"
    )


def _kind_of_reason(candidate: Candidate) -> str:
    """The same for all that one limit left out."""
    beyond = candidate.limit
    return f"{beyond.figure} is {beyond.side} {beyond.value:g}" if beyond else candidate.reason


def _card(candidate: Candidate, group: Sequence[Candidate], sounds: _Sounds, note: str = "", said: str = "") -> str:
    """One dialogue; `group` shares a time scale, and `said` stands above it already, in the header of its pair."""
    dialogue, emotion = candidate.dialogue, emotion_of(candidate)
    heard = {kind: heard_otherwise(candidate, kind) for kind in ("question", "reply")}
    parts = [] if said else [f"<p class='small about'>{_about(candidate)}{note}</p>"]
    parts += [] if candidate.kept else [f"<p>{verdict_tag(False, printable(candidate.reason))}</p>"]
    if not dialogue.turns:
        parts.append(_line("to be said", emotion))
    for number, turn in enumerate(dialogue.turns):
        if number:
            parts.append(f"<p class='turn small'>turn {number + 1} of {len(dialogue.turns)}</p>")
        if number or turn.text != said:
            parts.append(f"<p class='words'>“{escape(printable(turn.text))}”</p>")
        parts += [
            _line("said", turn.emotion, turn.style),
            sounds.render(candidate, "question", number, group),
            heard["question"][number],
            f"<div class='reply'><q>{escape(printable(turn.reply))}</q></div>",
            _line("replied", turn.reply_emotion),
            sounds.render(candidate, "reply", number, group),
            heard["reply"][number],
        ]
    if answer := candidate.figures.get("answer"):
        parts += ["<p class='small'>what the writer answered</p>", f"<pre tabindex='0'>{escape(str(answer))}</pre>"]
    return (
        f"<article class='answer{'' if said else ' single'}' data-emotion='{escape(emotion)}' "
        f"data-status='{'kept' if candidate.kept else 'left out'}'>{''.join(parts)}{_figure_list(candidate)}</article>"
    )


def _line(verb: str, emotion: str, style: str = "") -> str:
    tag = f"<span class='tag {tone_class(emotion)}'>{escape(emotion)}</span>"
    return f"<div class='line'><span>{verb} {tag} <span class='small'>{escape(printable(style))}</span></span></div>"


def heard_otherwise(candidate: Candidate, kind: str) -> list[str]:
    """What an ASR model heard in each turn, as HTML; "" where it is what was to be said, or nobody listened."""
    turns = candidate.dialogue.turns
    texts = [turn.text if kind == "question" else turn.reply for turn in turns]
    heard = candidate.figures.get(f"{kind}_heard", texts)
    return [
        f"<p class='heard'>heard as “{escape(printable(other))}”</p>" if normalise(other) != normalise(text) else ""
        for text, other in zip(texts, heard, strict=True)
    ]


def _figure_list(candidate: Candidate) -> str:
    """Everything else that was measured."""
    facts = {}
    for name, value in candidate.figures.items():
        if name not in NOT_IN_LIST and value not in ("", [], None):
            facts[name] = printable(", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    if not facts:
        return ""
    return f"<details><summary>{len(facts)} figures</summary>{fact_list(facts)}</details>"
