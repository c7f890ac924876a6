"""Dialogues from a grammar: offline, in no time, and the same for the same seed everywhere."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial

from lightning_s2s.construction.dialogue import Candidate, Dialogue, DialogueTurn, Script, SpokenReply
from lightning_s2s.construction.writing.base import DialogueWriter, WritingJob
from lightning_s2s.data.tasks import EMOTIONS, SPLITS
from lightning_s2s.evaluation.grammar import DialogueGrammar
from lightning_s2s.support.ranges import Count, Natural, Share, checked


@checked
@dataclass
class GrammarWriter(DialogueWriter):
    """Minimal pairs (lines that fit any emotion, said with several) and explicit lines (that name theirs).

    Args:
        grammar: YAML file of lines and replies.
        ambiguous_lines: Number of (line, voice) pairs whose words fit any emotion, by split.
        emotions_per_line: Number of emotions that each of them is said with, by split.
        explicit_lines: Number of (line, voice) pairs whose words name the emotion, by split; as many for each emotion.
        replies_per_emotion: Number of distinct spoken replies of each emotion, for stage 2.
        dialogue_replies_per_emotion: Number of these, the first ones, that answer the questions; None takes all.
        held_out_share: Share of lines and of replies kept out of training.

    Raises:
        ValueError: a number lacks a split.
    """

    grammar: str
    ambiguous_lines: dict[str, Natural]
    emotions_per_line: dict[str, Natural]
    explicit_lines: dict[str, Natural]
    replies_per_emotion: Count
    held_out_share: Share
    dialogue_replies_per_emotion: Count | None = None

    def __post_init__(self) -> None:
        for name in ("ambiguous_lines", "emotions_per_line", "explicit_lines"):
            if set(getattr(self, name)) != set(SPLITS):
                raise ValueError(f"{name}: needs the keys {', '.join(SPLITS)}; got {', '.join(getattr(self, name))}")
        most = len(EMOTIONS)
        for split in SPLITS:
            if self.explicit_lines[split] % most:
                raise ValueError(
                    f"explicit_lines: {split}: got {self.explicit_lines[split]}; a multiple of {most} is needed, as "
                    "many for each emotion"
                )
            if self.ambiguous_lines[split] and not 1 <= self.emotions_per_line[split] <= most:
                raise ValueError(
                    f"emotions_per_line: {split}: got {self.emotions_per_line[split]}; allowed: 1 to {most}, the "
                    "number of emotions"
                )

    @cached_property
    def rules(self) -> DialogueGrammar:
        """The grammar itself."""
        return DialogueGrammar(self.grammar)

    @property
    def emotions(self) -> tuple[str, ...]:
        return EMOTIONS

    @property
    def description(self) -> dict[str, str]:
        return {"writer": f"grammar `{self.grammar}`"}

    def write(self, job: WritingJob) -> Script:
        return Script(
            [Candidate(dialogue) for dialogue in self.dialogues(job.voices, job.seed)],
            list(self._spoken_replies(job.seed)),
            list(self._unspoken(job.seed)),
        )

    def held_out(self, text: str) -> bool:
        """Whether a line or reply is kept out of training: fixed by its words, whatever others there are."""
        return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF < self.held_out_share

    def replies(self) -> dict[str, list[str]]:
        """Emotion -> the replies that are spoken, in the order in which they are rendered."""
        chosen = {}
        for emotion in EMOTIONS:
            replies = sorted(self.rules.replies(emotion))
            random.Random(f"replies-{emotion}").shuffle(replies)
            chosen[emotion] = replies[: self.replies_per_emotion]
        return chosen

    def dialogues(self, voices: dict[str, list[str]], seed: int) -> list[Dialogue]:
        """All spoken dialogues, by split."""
        pool: dict[tuple, list[str]] = {}
        for emotion, replies in self.replies().items():
            for reply in replies[: self.dialogue_replies_per_emotion]:
                key = (emotion, self.rules.topic_of(reply), self.held_out(reply))
                pool.setdefault(key, []).append(reply)
        dialogues = []
        for split in SPLITS:
            rng = random.Random(f"{seed}-{split}")
            unseen = split != "train"
            draw = partial(self._draw_lines, unseen, rng)
            per_emotion = self.explicit_lines[split] // len(EMOTIONS)
            spoken = [(line, "") for line in draw("ambiguous", self.ambiguous_lines[split])]
            spoken += [(line, emotion) for emotion in EMOTIONS for line in draw(emotion, per_emotion)]
            for number, (line, named) in enumerate(spoken):
                start = rng.randrange(len(EMOTIONS))
                rotation = [EMOTIONS[(start + i) % len(EMOTIONS)] for i in range(self.emotions_per_line[split])]
                for emotion in [named] if named else rotation:
                    topic = self.rules.topic_of(line)
                    replies = pool.get((emotion, topic, unseen)) or pool.get((emotion, topic, False), [])
                    if not replies:
                        raise ValueError(
                            f"replies_per_emotion {self.replies_per_emotion}: none of the {emotion} replies is about "
                            f"{topic!r}, of which a question speaks; raise it"
                        )
                    pair = f"{split}-{number:04d}"
                    turn = DialogueTurn(
                        line, emotion, rng.choice(replies), continuation=self._continue(line, emotion, seed)
                    )
                    voice = voices[split][number % len(voices[split])]
                    dialogues.append(Dialogue(f"{pair}-{emotion}", split, voice, (turn,), pair, not named))
        return dialogues

    def _draw_lines(self, unseen: bool, rng: random.Random, kind: str, count: int) -> list[str]:
        """`count` lines of a kind, all different as long as there are enough."""
        lines = [line for line in self.rules.lines(kind) if self.held_out(line) == unseen]
        if count and not lines:
            kept = "kept out of training" if unseen else "left for training"
            raise ValueError(
                f"grammar: no line of the kind {kind!r} is {kept} with held_out_share {self.held_out_share}; "
                f"{count} are asked for"
            )
        rng.shuffle(lines)
        return [lines[i % len(lines)] for i in range(count)]

    def _continue(self, text: str, emotion: str, seed: int) -> str:
        return random.Random(f"{seed}-{text}-{emotion}").choice(self.rules.rules["continuations"][emotion])

    def _spoken_replies(self, seed: int) -> Iterable[SpokenReply]:
        """Every spoken reply behind a line that it fits."""
        for split, unseen in (("train", False), ("validation", True)):
            rng = random.Random(f"{seed}-speech-{unseen}")
            lines = self._lines_by_topic(unseen)
            for emotion, replies in self.replies().items():
                for number, reply in enumerate(replies):
                    if self.held_out(reply) == unseen:
                        text = rng.choice(lines[self.rules.topic_of(reply)])
                        yield SpokenReply(f"speech-{emotion}-{number:04d}", split, text, emotion, reply)

    def _unspoken(self, seed: int) -> Iterable[tuple[Dialogue, bool]]:
        """Every ambiguous line with every emotion, for the LLM; three of four replies are marked as spoken ones."""
        for split, unseen in (("train", False), ("validation", True)):
            rng = random.Random(f"{seed}-language-{unseen}")
            pools: dict[tuple[str, str], list[str]] = {}
            for emotion in EMOTIONS:
                for reply in self.rules.replies(emotion):
                    if self.held_out(reply) == unseen:
                        pools.setdefault((emotion, self.rules.topic_of(reply)), []).append(reply)
            for topic, texts in sorted(self._lines_by_topic(unseen).items()):
                for number, text in enumerate(texts):
                    for emotion in EMOTIONS:
                        if replies := pools.get((emotion, topic)):
                            continuation = self._continue(text, emotion, seed)
                            turn = DialogueTurn(text, emotion, rng.choice(replies), continuation=continuation)
                            pair = f"language-{topic}-{number}"
                            yield Dialogue(f"{pair}-{emotion}", split, "", (turn,), pair), bool(number % 4)

    def _lines_by_topic(self, unseen: bool) -> dict[str, list[str]]:
        """The lines that training sees, or those it doesn't; a topic has its seen lines where none is held out."""
        lines: dict[str, list[str]] = self._lines_by_topic(False) if unseen else {}
        fresh: dict[str, list[str]] = {}
        for line in self.rules.lines("ambiguous"):
            if self.held_out(line) == unseen:
                fresh.setdefault(self.rules.topic_of(line), []).append(line)
        return lines | fresh
