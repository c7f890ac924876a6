"""What a corpus consists of: dialogues in words, and what became of each on its way."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_s2s.construction.usage import Usage


@dataclass(frozen=True)
class DialogueTurn:
    """What a user says, how, and the reply that fits both.

    Attributes:
        text: The user's words.
        emotion: Emotion that they are said with.
        reply: The assistant's words.
        reply_emotion: Emotion that these are said with, where the engine can.
        style: How the user says it, in words, where the engine can.
        continuation: How the user's words may continue, for stage 1; "" where nobody wrote one.
    """

    text: str
    emotion: str
    reply: str
    reply_emotion: str = "neutral"
    style: str = ""
    continuation: str = ""


@dataclass(frozen=True)
class Dialogue:
    """One dialogue of a corpus.

    Attributes:
        id: Unique name.
        split: Either train, validation or test.
        speaker: The user's voice.
        turns: The turns; none where it could not be written.
        pair: Name of its pair: dialogues of one pair share the first words and the voice, and differ in emotion.
        ambiguous: Whether the first words fit any emotion, so that only the voice tells which.
        seed: What it was written from, such as topic and situation.
    """

    id: str
    split: str
    speaker: str
    turns: tuple[DialogueTurn, ...]
    pair: str
    ambiguous: bool = True
    seed: dict[str, str] = field(default_factory=dict)

    @property
    def clip_ids(self) -> list[str]:
        """Names of the user's recordings, one for each turn."""
        return [self.id if number == 0 else f"{self.id}-turn{number + 1}" for number in range(len(self.turns))]

    def as_json(self) -> dict[str, Any]:
        """Plain values, of which `from_json` makes the same dialogue."""
        return asdict(self) | {"turns": [asdict(turn) for turn in self.turns]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Dialogue:
        """The inverse of `as_json`."""
        return cls(**values | {"turns": tuple(DialogueTurn(**turn) for turn in values["turns"])})


@dataclass(frozen=True)
class SpokenReply:
    """A reply behind a line, in words, that it fits: what stage 2 learns to speak from.

    Attributes:
        id: Unique name.
        split: Either train or validation.
        text: What was said.
        emotion: Emotion that it was said with.
        reply: What is spoken.
        reply_emotion: Emotion that it is spoken with.
    """

    id: str
    split: str
    text: str
    emotion: str
    reply: str
    reply_emotion: str = "neutral"


@dataclass(frozen=True)
class Limit:
    """A limit that a figure is beyond.

    Attributes:
        figure: Name of the figure.
        side: Side of the limit on which the figure lies: `above` or `below`.
        value: The limit.
    """

    figure: str
    side: str
    value: float


@dataclass
class Candidate:
    """A dialogue, what was measured of it, and why it is left out, if it is.

    Attributes:
        dialogue: The dialogue.
        figures: Name -> what a filter, or the writer, found.
        rejected_by: The step that left it out; "" while it is kept.
        reason: What that step found, in words.
        limit: The limit that was decisive, where the step has one.
        clips: The user's recordings, files of `work_dir`, one for each turn; as they were spoken, without augmentation.
        augmentations: What happened to each of them for the corpus, plain values by name; None left it as it was.
        replies: The assistant's recordings.
    """

    dialogue: Dialogue
    figures: dict[str, Any] = field(default_factory=dict)
    rejected_by: str = ""
    reason: str = ""
    limit: Limit | None = None
    clips: list[str] = field(default_factory=list)
    augmentations: list[dict[str, Any] | None] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Whether nothing has left it out yet."""
        return not self.rejected_by

    def reject(self, step: str, reason: str, limit: Limit | None = None) -> None:
        """Leave it out; the first reason counts."""
        if self.kept:
            self.rejected_by, self.reason, self.limit = step, reason, limit


@dataclass
class Script:
    """What a writer gives: everything that will be said.

    Attributes:
        candidates: The dialogues; those that could not be written are among them, already left out.
        spoken_replies: Replies for stage 2; None takes those of the dialogues.
        unspoken: Dialogues for the LLM in text alone, with whether the reply is marked as a spoken one; None takes
            those that are spoken.
        usage: What writing it took.
        incomplete: Why something could not be written that another run may write -> how often.
    """

    candidates: list[Candidate]
    spoken_replies: list[SpokenReply] | None = None
    unspoken: list[tuple[Dialogue, bool]] | None = None
    usage: Usage = field(default_factory=Usage)
    incomplete: Counter[str] = field(default_factory=Counter)
