"""Filters that read: length, words that must not be there, repetition, and an LLM as judge."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated

from lightning_s2s.construction.chat import ChatModel, Number, Question, ask_questions
from lightning_s2s.construction.filters.base import Figures, Filter, RecordedDialogue, Rejection, over, under
from lightning_s2s.construction.running import ItemFailure
from lightning_s2s.construction.running.base import fingerprint
from lightning_s2s.construction.writing.prompted import conversation
from lightning_s2s.construction.writing.prompts import Prompts
from lightning_s2s.support.ranges import Count, Natural, Range, Share, checked

NUM_PERMUTATIONS = 128
"""Of the MinHash that finds candidates; their similarity is then counted exactly."""


def plain(text: str) -> str:
    """Lower case, words and blanks alone."""
    return " ".join(re.sub(r"[^\w']|_", " ", text.lower().replace("\u2019", "'")).split())


@checked
@dataclass
class WordCount(Filter):
    """Lines and replies must have so many words.

    Args:
        min_words: Number of words that the shortest must have.
        max_words: Number of words that the longest may have.
    """

    min_words: Natural = 3
    max_words: Natural = 40

    name = "word_count"
    light = True
    identity = "words"

    def measure(self, batch: Sequence[RecordedDialogue]) -> list[Figures | ItemFailure]:
        counts = [[len(plain(text).split()) for text in texts_of(item)] for item in batch]
        return [{"fewest_words": min(count), "most_words": max(count)} for count in counts]

    def verdict(self, figures: Figures) -> Rejection | None:
        return under(figures, "fewest_words", self.min_words) or over(figures, "most_words", self.max_words)


class _Words(Filter):
    """No word of a list may stand in some texts.

    Args:
        file: File with one word or phrase a line, `#` begins a comment; None takes the package's own.
    """

    light = True
    figure: str
    default: str

    def __init__(self, file: str | None = None):
        self.file = file
        if not self._words:
            raise ValueError(f"filters: {self.name}: {file}: holds no words")

    @cached_property
    def _words(self) -> list[str]:
        try:
            text = (
                Path(self.file).read_text(encoding="utf-8")
                if self.file
                else (resources.files(__package__) / self.default).read_text("utf-8")
            )
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"filters: {self.name}: {self.file}: can't be read: {error}") from None
        return [plain(line) for line in text.splitlines() if plain(line) and not line.startswith("#")]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"\b({'|'.join(map(re.escape, sorted(self._words, key=len, reverse=True)))})\b")

    @property
    def identity(self) -> str:
        return fingerprint(self.name, self._words)

    @staticmethod
    def texts(item: RecordedDialogue) -> Iterable[str]:
        """Where they must not stand."""
        return texts_of(item)

    def measure(self, batch: Sequence[RecordedDialogue]) -> list[Figures | ItemFailure]:
        return [
            {self.figure: sorted({word for text in self.texts(item) for word in self._pattern.findall(plain(text))})}
            for item in batch
        ]

    def verdict(self, figures: Figures) -> Rejection | None:
        found = figures[self.figure]
        return Rejection(f"says {', '.join(found)}") if found else None


class SafetyWords(_Words):
    """No word of a list may stand in a line or a reply.

    Args:
        file: File with one word or phrase a line, `#` begins a comment; None takes the package's own (English:
            self-harm, violence, drugs, sex).
    """

    name, figure, default = "safety_words", "unsafe_words", "safety_words.txt"


class FeelingWords(_Words):
    """A line of a minimal pair must not name a feeling: only the voice may tell it.

    Args:
        file: File with one word or phrase a line, `#` begins a comment; None takes the package's own (English).
    """

    name, figure, default = "feeling_words", "feelings_named", "feeling_words.txt"

    @staticmethod
    def texts(item: RecordedDialogue) -> Iterable[str]:
        return [item.dialogue.turns[0].text] if item.dialogue.ambiguous else []


@checked
@dataclass
class NearDuplicates(Filter):
    """Nobody says what was said before; the first of a kind stays.

    Similarity is the share of three-letter sequences that two texts have in common (Jaccard). Lines of one pair are one
    line. A reply must differ from those of another split, not of its own, and from the line that it answers.

    Args:
        max_similarity: Highest similarity of two lines.
        max_reply_similarity: Highest similarity of two replies in different splits.
        max_echo: Highest similarity of a reply and its line.
    """

    max_similarity: Share = 0.8
    max_reply_similarity: Share = 0.95
    max_echo: Share = 0.7

    name = "near_duplicates"
    compares_dialogues = True
    identity = "trigrams"

    def measure(self, batch: Sequence[RecordedDialogue]) -> list[Figures | ItemFailure]:
        lines = _Nearest(self.max_similarity)
        replies = _Nearest(self.max_reply_similarity)
        found: list[Figures | ItemFailure] = []
        for item in batch:
            dialogue = item.dialogue
            line, reply = dialogue.turns[0].text, " ".join(turn.reply for turn in dialogue.turns)
            near_line, like_line = lines.find(line, lambda other, pair=dialogue.pair: other != pair)
            near_reply, like_reply = replies.find(reply, lambda other, split=dialogue.split: other != split)
            echo = max(similarity(trigrams(turn.text), trigrams(turn.reply)) for turn in dialogue.turns)
            repeats = like_line > self.max_similarity or like_reply > self.max_reply_similarity
            if not repeats and echo <= self.max_echo:
                lines.add(line, dialogue.pair)
                replies.add(reply, dialogue.split)
            found.append(
                {
                    "line_similarity": round(like_line, 3),
                    "reply_similarity": round(like_reply, 3),
                    "similar_to": (near_line if like_line > self.max_similarity else near_reply) if repeats else "",
                    "echo": round(echo, 3),
                }
            )
        return found

    def verdict(self, figures: Figures) -> Rejection | None:
        repeats = over(figures, "line_similarity", self.max_similarity) or over(
            figures, "reply_similarity", self.max_reply_similarity
        )
        if repeats:
            return replace(repeats, reason=f"{repeats.reason}: {figures['similar_to']!r}")
        return over(figures, "echo", self.max_echo)


class _Nearest:
    """Texts with an owner each, and which of them is most like another text.

    Args:
        threshold: Texts that are less similar need not be found.
    """

    def __init__(self, threshold: float):
        from datasketch import MinHashLSH

        # MinHash only estimates: candidates are looked for below the threshold, and too many rather than too few.
        self.index = MinHashLSH(threshold=max(0.1, 0.8 * threshold), num_perm=NUM_PERMUTATIONS, weights=(0.1, 0.9))
        self.texts: list[tuple[str, str, frozenset[str]]] = []

    def find(self, text: str, counts: object) -> tuple[str, float]:
        """The most similar text whose owner `counts`, and its similarity."""
        grams, best = trigrams(text), ("", 0.0)
        for number in sorted(self.index.query(self._hash(grams))):
            other, owner, theirs = self.texts[number]
            if counts(owner):  # type: ignore[operator]
                best = max(best, (other, similarity(grams, theirs)), key=lambda pair: pair[1])
        return best

    def add(self, text: str, owner: str) -> None:
        """Remember a text."""
        grams = trigrams(text)
        self.index.insert(len(self.texts), self._hash(grams))
        self.texts.append((text, owner, grams))

    @staticmethod
    def _hash(grams: frozenset[str]) -> object:
        from datasketch import MinHash

        minhash = MinHash(num_perm=NUM_PERMUTATIONS)
        minhash.update_batch([gram.encode() for gram in grams])
        return minhash


def trigrams(text: str) -> frozenset[str]:
    """The three-letter sequences of a text, blanks among them."""
    padded = f" {plain(text)} "
    return frozenset(padded[start : start + 3] for start in range(max(1, len(padded) - 2)))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """The share that two texts' sequences have in common (Jaccard)."""
    return len(one & other) / max(1, len(one | other))


@checked
@dataclass
class ReplyFits(Filter):
    """An LLM judges from 1 to 5 whether the last reply fits what was said and how, by the prompt `judge.txt`.

    Args:
        chat: The judge; if possible, another LLM than the writer.
        min_score: Lowest score that is good enough.
        prompts: Folder with your own `judge.txt` and `system.txt`; None takes the package's own.
        attempts: How often it is asked at most until its answer is well-formed.
    """

    chat: ChatModel
    min_score: Annotated[int, Range(1, 5)] = 3
    prompts: str | None = None
    attempts: Count = 3

    name = "reply_fits"

    def __post_init__(self) -> None:
        self._prompts  # noqa: B018 (a broken folder is told before anything is written)
        self.batch_size, self.concurrency = self.chat.batch_size, self.chat.concurrency

    @cached_property
    def _prompts(self) -> Prompts:
        return Prompts(self.prompts)

    @property
    def identity(self) -> str:
        texts = self._prompts.texts
        return fingerprint(self.chat.identity, texts["judge"], texts["system"], self.attempts)

    def measure(self, batch: Sequence[RecordedDialogue]) -> list[Figures | ItemFailure]:
        texts = self._prompts
        questions = [
            Question(
                texts.fill("judge", conversation=conversation(item.dialogue.turns)),
                {"score": Number(1, 5)},
                int(fingerprint(item.dialogue.id)[:7], 16),
                texts.fill("system"),
            )
            for item in batch
        ]
        answers = ask_questions(self.chat, questions, self.attempts)
        measured: list[Figures | ItemFailure] = []
        for answer in answers:
            if answer.values is None and answer.transient:
                measured.append(ItemFailure(f"not judged: {answer.reason}"))
            else:
                measured.append({"reply_score": answer.values["score"] if answer.values else 0})
        return measured

    def verdict(self, figures: Figures) -> Rejection | None:
        if not figures["reply_score"]:
            return Rejection("the judge gave no score")
        return under(figures, "reply_score", self.min_score)


def texts_of(item: RecordedDialogue) -> list[str]:
    """All lines and replies."""
    return [text for turn in item.dialogue.turns for text in (turn.text, turn.reply)]
