"""A grammar of dialogues: its lines, the replies that fit them, and the emotion and topic of a given reply."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from lightning_s2s.data.tasks import EMOTIONS
from lightning_s2s.support.reading import read_yaml, reading


class DialogueGrammar:
    """Generates the lines and replies of the embedded corpus, and maps a reply back to its emotion and topic.

    Args:
        path: YAML file with `topics`, `people`, `times`, `lines`, `replies` and `continuations`.

    Raises:
        ValueError: One of these keys is missing, or an emotion has no replies.
    """

    def __init__(self, path: str | Path):
        with reading(path, "grammar"):
            self._read(Path(path))

    def _read(self, path: Path) -> None:
        rules = read_yaml(path)
        missing = {"topics", "people", "times", "lines", "replies", "continuations"} - set(rules or {})
        if missing:
            raise ValueError(f"{path}: the grammar lacks {', '.join(sorted(missing))}")
        for emotion in EMOTIONS:
            if emotion not in rules["replies"]:
                raise ValueError(f"{path}: replies has no entry for the emotion {emotion!r}")
        self.rules = rules
        texts = [(emotion, reply) for emotion in EMOTIONS for reply in self.replies(emotion)]
        self._replies = {self.normalise(reply): (emotion, self.topic_of(reply)) for emotion, reply in texts}
        for kind in ("ambiguous", *EMOTIONS):
            self.lines(kind)

    @staticmethod
    def normalise(text: str) -> str:
        """`text` in lower case with only letters and single spaces, the form in which texts are compared."""
        return " ".join(re.sub(r"[^a-z ]", " ", text.lower()).split())

    def lines(self, kind: str) -> list[str]:
        """All lines of one kind (`ambiguous` or an emotion) with their fields filled in, in a fixed order."""
        rules, lines = self.rules, []
        for template in rules["lines"][kind]:
            fields = {"topic": rules["topics"]}
            fields |= {"who": rules["people"]} if "{who}" in template else {}
            fields |= {"when": rules["times"]} if "{when}" in template else {}
            lines += [
                template.format(**dict(zip(fields, values, strict=True)))
                for values in itertools.product(*fields.values())
            ]
        return lines

    def find_topic(self, text: str) -> str | None:
        """The topic that a text names, None if it names none."""
        words = set(self.normalise(text).split())
        return next((topic for topic in self.rules["topics"] if topic in words), None)

    def topic_of(self, text: str) -> str:
        """The topic of one of the grammar's own lines or replies.

        Raises:
            ValueError: The text names no topic.
        """
        topic = self.find_topic(text)
        if topic is None:
            raise ValueError(f"the grammar's text {text!r} names none of its topics")
        return topic

    def replies(self, emotion: str) -> list[str]:
        """All replies that fit `emotion`, in a fixed order."""
        parts = self.rules["replies"][emotion]
        return [
            f"{opening} {sentence.format(topic=topic)}"
            for opening, sentence, topic in itertools.product(
                parts["openings"], parts["sentences"], self.rules["topics"]
            )
        ]

    def judge(self, reply: str) -> tuple[str, str] | None:
        """(emotion, topic) of a well-formed reply, None for a text that the grammar cannot generate."""
        return self._replies.get(self.normalise(reply))
