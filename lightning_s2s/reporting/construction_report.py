"""The report of a construction: what was kept and what was left out, to read and listen to, on one HTML page."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lightning_s2s.construction.config import CorpusConfig
from lightning_s2s.construction.dialogue import Candidate
from lightning_s2s.construction.filters import Filter
from lightning_s2s.construction.speech.renderings import read_recording
from lightning_s2s.data.tasks import EMOTIONS, SPLITS
from lightning_s2s.evaluation.results import Metric
from lightning_s2s.evaluation.speech import normalise
from lightning_s2s.reporting.emotion_pairs import group_pairs, in_order
from lightning_s2s.reporting.histograms import KINDS, histogram
from lightning_s2s.reporting.pages import tone_class, write_page
from lightning_s2s.reporting.pictures import ClipPlayers

if TYPE_CHECKING:
    from lightning_s2s.construction.outcome import Outcome

Item = TypeVar("Item")

SHOWN_ELSEWHERE = ("answer", "question_heard", "reply_heard")
"""Figures that a card shows outside of its list."""


def write_report(
    path: Path, outcome: Outcome, config: CorpusConfig, max_dialogues: int = 40, max_rejected: int = 8
) -> Path:
    """Write the report: yield, losses by step, counts, what was measured, and dialogues to read and listen to.

    The same outcome gives the same bytes.

    Args:
        path: HTML file to write.
        outcome: Outcome of the run; its recordings lie in `config.work_dir`.
        config: Configuration of the run.
        max_dialogues: Number of kept dialogues that are shown, evenly spread over all pairs.
        max_rejected: Number of dialogues that are shown of those that each step left out.
    Returns:
        `path`.
    """
    candidates = outcome.candidates
    steps = steps_of(outcome, config)
    rejected = {name: [c for c in candidates if c.rejected_by == name] for name in steps}
    shown = {name: spread(found, max_rejected) for name, found in rejected.items() if found}
    kept = choose_pairs(pairs_of(outcome.kept), max_dialogues)
    cards = _Cards(Path(config.work_dir), [c for group in [*kept, *shown.values()] for c in group])
    lost = {
        group[0].dialogue.pair: [{"emotion": emotion_of(c), "step": c.rejected_by} for c in group if not c.kept]
        for group in pairs_of(candidates)
    }
    values = {
        "title": "What construction made",
        "folder": config.output_dir,
        "num_candidates": len(candidates),
        "num_kept": len(outcome.kept),
        "metrics": metrics(outcome),
        "steps": step_rows(steps, outcome.rejections(), len(candidates)),
        "counts": {
            "emotion": count_rows(candidates, emotion_of, EMOTIONS, tone_class),
            "split": count_rows(candidates, lambda candidate: candidate.dialogue.split, SPLITS),
            "speaker": count_rows(candidates, lambda candidate: candidate.dialogue.speaker),
        },
        "kinds": KINDS,
        "charts": charts(candidates),
        "emotions": in_order(map(emotion_of, candidates)),
        "num_shown": sum(map(len, kept)),
        "pairs": [list(map(cards.card, group)) for group in kept if len(group) > 1],
        "singles": [cards.card(group[0]) for group in kept if len(group) == 1],
        "lost": lost,
        "rejected": [
            {
                "step": name,
                "num_rejected": len(rejected[name]),
                "reasons": Counter(map(_kind_of_reason, rejected[name])).most_common(),
                "cards": list(map(cards.card, group)),
            }
            for name, group in shown.items()
        ],
    }
    write_page(path, "construction.html", values)
    return path


# --- what is shown ----------------------------------------------------------------------------------------------------


def pairs_of(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Candidates by pair, each pair in the usual order of emotions."""
    return group_pairs(candidates, lambda candidate: candidate.dialogue.pair, emotion_of)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly spaced, starting with the first."""
    if len(items) <= count:
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]


def choose_pairs(groups: Sequence[list[Candidate]], limit: int) -> list[list[Candidate]]:
    """Whole groups, evenly spaced, of at most `limit` dialogues; part of the first group if it alone has more."""
    for count in range(min(limit, len(groups)), 0, -1):
        chosen = spread(groups, count)
        if sum(map(len, chosen)) <= limit:
            return chosen
    return [groups[0][:limit]] if groups and limit > 0 else []


def emotion_of(candidate: Candidate) -> str:
    """Emotion of the first turn; of a dialogue that was not written, the suffix that writers give its id."""
    dialogue = candidate.dialogue
    if dialogue.turns:
        return dialogue.turns[0].emotion
    return dialogue.id.removeprefix(f"{dialogue.pair}-") if dialogue.id.startswith(f"{dialogue.pair}-") else "unknown"


# --- numbers ----------------------------------------------------------------------------------------------------------


def metrics(outcome: Outcome) -> list[Metric]:
    """The summary at the head of the page."""
    asked, kept = outcome.candidates, outcome.kept

    def num_pairs(candidates: list[Candidate]) -> int:
        return sum(len({emotion_of(c) for c in group}) > 1 for group in pairs_of(candidates))

    def num_voices(candidates: list[Candidate]) -> int:
        return len({candidate.dialogue.speaker for candidate in candidates})

    share = f"{100 * len(kept) / max(1, len(asked)):.0f}\N{NO-BREAK SPACE}% of them"
    several = f"with two emotions or more, of {num_pairs(asked)}"
    return [
        Metric("dialogues asked for", len(asked), unit=""),
        Metric("dialogues kept", len(kept), unit="", note=share),
        Metric("minutes of users' speech kept", round(outcome.question_sec / 60, 1), unit=""),
        Metric("minutes of replies kept", round(outcome.reply_sec / 60, 1), unit=""),
        Metric("minimal pairs kept", num_pairs(kept), unit="", note=several),
        Metric("users' voices kept", num_voices(kept), unit="", note=f"of {num_voices(asked)}"),
    ]


def steps_of(outcome: Outcome, config: CorpusConfig) -> dict[str, str]:
    """Step -> what it does, in the order of the run; at the end, other steps that left something out."""

    def filters(hears: bool) -> dict[str, str]:
        return {kind.name: _describe(kind) for kind in config.filters if kind.hears == hears}

    steps = {"writing": "The words are written."} | filters(False)
    steps |= {"speech": "User and assistant are spoken."} | filters(True)
    return steps | {name: "" for name in outcome.rejections() if name not in steps}


def _describe(kind: Filter) -> str:
    limits = [f"{name} {value}" for name, value in vars(kind).items() if name.startswith(("min_", "max_"))]
    first = (inspect.getdoc(type(kind)) or "").partition("\n")[0].replace("`", "")
    return f"{first} ({', '.join(limits)})" if limits else first


def step_rows(steps: Mapping[str, str], lost: Mapping[str, int], num_asked: int) -> list[dict[str, Any]]:
    """Rows of the macro `table`: dialogues that came into each step, that it left out, and that remain."""
    rows, left = [], num_asked
    for name, about in steps.items():
        came, left = left, left - lost.get(name, 0)
        meter = _meter(left, came - left, num_asked)
        rows.append({"name": name, "code": True, "about": about, "numbers": [came, came - left, left], "meter": meter})
    return rows


def count_rows(
    candidates: Sequence[Candidate],
    of: Callable[[Candidate], str],
    usual: Sequence[str] = (),
    tone: Callable[[str], str] = lambda name: "",
) -> list[dict[str, Any]]:
    """Rows of the macro `table`: dialogues asked for and kept, for each value of `of`."""
    asked, kept = Counter(map(of, candidates)), Counter(of(c) for c in candidates if c.kept)
    most = max(asked.values(), default=1)
    return [
        {
            "name": name,
            "tone": tone(name),
            "numbers": [asked[name], kept[name], f"{100 * kept[name] / asked[name]:.0f}\N{NO-BREAK SPACE}%"],
            "meter": _meter(kept[name], asked[name] - kept[name], most),
        }
        for name in in_order(asked, usual)
    ]


def _meter(kept: int, lost: int, whole: int) -> list[tuple[str, float]]:
    return [("kept", 100 * kept / max(1, whole)), ("lost", 100 * lost / max(1, whole))]


def charts(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """A histogram of each figure that is a number."""
    values: dict[str, dict[str, list[float]]] = {}
    limits: dict[str, dict[str, float]] = {}
    for candidate in candidates:
        beyond = candidate.limit
        if beyond:
            limits.setdefault(beyond.figure, {})[beyond.side] = beyond.value
        for name, value in candidate.figures.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                kind = "kept" if candidate.kept else "lost" if beyond and beyond.figure == name else "other"
                values.setdefault(name, {kind: [] for kind in KINDS})[kind].append(value)
    return [histogram(name, found, limits.get(name, {})) for name, found in values.items()]


def _kind_of_reason(candidate: Candidate) -> str:
    """The same text for all dialogues that one limit left out."""
    beyond = candidate.limit
    return f"{beyond.figure} is {beyond.side} {beyond.value:g}" if beyond else candidate.reason


# --- cards ------------------------------------------------------------------------------------------------------------


class _Cards:
    """Makes the values of the macro `dialogue_card`.

    Args:
        folder: Folder of the recordings.
        candidates: All dialogues of the page.
    """

    def __init__(self, folder: Path, candidates: Sequence[Candidate]):
        self.questions = {name: read_recording(folder / name) for c in candidates for name in c.clips}
        self.replies = {name: read_recording(folder / name) for c in candidates for name in c.replies}
        self.players = ClipPlayers({"question": [*self.questions.values()], "reply": [*self.replies.values()]})

    def card(self, candidate: Candidate) -> dict[str, Any]:
        """The card of one dialogue."""
        dialogue = candidate.dialogue
        heard = zip(heard_otherwise(candidate, "question"), heard_otherwise(candidate, "reply"), strict=True)
        turns = []
        for number, (turn, (question_heard, reply_heard)) in enumerate(zip(dialogue.turns, heard, strict=True)):
            which = f"{dialogue.id}, turn {number + 1}" if len(dialogue.turns) > 1 else dialogue.id
            question = self.questions[candidate.clips[number]] if candidate.clips else None
            reply = self.replies[candidate.replies[number]] if candidate.replies else None
            turns.append(
                {
                    "turn": turn,
                    "question": self.players.clip("question", f"Play the question of {which}", question),
                    "question_heard": question_heard,
                    "reply": self.players.clip("reply", f"Play the reply of {which}", reply),
                    "reply_heard": reply_heard,
                }
            )
        return {
            "candidate": candidate,
            "emotion": emotion_of(candidate),
            "about": [dialogue.speaker, dialogue.split, *dialogue.seed.values()],
            "turns": turns,
            "figures": _figures(candidate),
        }


def heard_otherwise(candidate: Candidate, kind: str) -> list[str]:
    """What an ASR model heard in each turn; "" if it heard the right words, or if nothing was transcribed."""
    texts = [turn.text if kind == "question" else turn.reply for turn in candidate.dialogue.turns]
    heard = candidate.figures.get(f"{kind}_heard", texts)
    return [other if normalise(other) != normalise(text) else "" for text, other in zip(texts, heard, strict=True)]


def _figures(candidate: Candidate) -> dict[str, str]:
    """Figures that the card lists."""
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in candidate.figures.items()
        if name not in SHOWN_ELSEWHERE and value not in ("", [], None)
    }
