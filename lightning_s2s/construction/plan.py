"""What a corpus will contain, fixed by grammar, configuration and seed before anything is spoken."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import partial

from lightning_s2s.construction.augmentation import Augmentation, Drawn
from lightning_s2s.construction.prosody import Prosody
from lightning_s2s.construction.speech import SpeechSynthesizer
from lightning_s2s.construction.writer import EMOTIONS, DialogueGrammar
from lightning_s2s.registry import unknown_name

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Question:
    """One spoken user line of the plan and the reply that fits it."""

    id: str
    split: str
    speaker: str
    text: str
    emotion: str
    ambiguous: bool
    pair: str
    """Questions of one pair share words and voice and differ in emotion alone."""
    reply: str


@dataclass
class CorpusConfig:
    """What `lightning-s2s construct` makes.

    Args:
        grammar: YAML file of lines and replies.
        output_dir: the corpus folder.
        work_dir: renderings are kept here, so that a run that was stopped goes on where it was.
        tts: what speaks: Kokoro, Piper, Espeak, SpeechServer, or a class of your own by its import path.
        vocoder: folder of the pocket codec that turns replies into units; None stops once everything is spoken, with
            manifests of the replies in `work_dir` to train a codec on.
        assistant_voice: the voice of all replies.
        assistant_speed: its speaking rate, an input of the TTS.
        assistant_tts: what speaks the replies, where that is not `tts`.
        user_voices: voices of the users, by split; a voice belongs to one split.
        user_speed: speaking rate before emotion changes the tempo.
        ambiguous_lines: (line, voice) pairs whose words fit any emotion, by split.
        emotions_per_line: emotions that each of them is said with, by split.
        explicit_lines: (line, voice) pairs whose words name the emotion, by split.
        replies_per_emotion: distinct spoken replies of each emotion, for stage 2.
        dialogue_replies_per_emotion: so many of them, the first, answer the questions; None takes all.
        held_out_share: share of lines and of replies kept out of training.
        prosody: how each emotion changes a neutral voice; needed where `tts` has no emotions of its own, and laid over
            them where it has.
        jitter: 0..1, how much speakers differ in it.
        augmentation: what happens to the questions' recordings; None leaves them clean.
        seed: of every choice.
    """

    grammar: str
    output_dir: str
    work_dir: str
    tts: SpeechSynthesizer
    vocoder: str | None
    assistant_voice: str
    assistant_speed: float
    user_voices: dict[str, list[str]]
    user_speed: float
    ambiguous_lines: dict[str, int]
    emotions_per_line: dict[str, int]
    explicit_lines: dict[str, int]
    replies_per_emotion: int
    held_out_share: float
    prosody: dict[str, Prosody] | None = None
    jitter: float = 0.4
    seed: int = 1
    dialogue_replies_per_emotion: int | None = None
    assistant_tts: SpeechSynthesizer | None = None
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        for name in ("user_voices", "ambiguous_lines", "emotions_per_line", "explicit_lines"):
            if set(getattr(self, name)) != set(SPLITS):
                raise ValueError(f"{name}: needs the keys {', '.join(SPLITS)}; got {', '.join(getattr(self, name))}")
        if self.prosody is None and not self.tts.has_emotions:
            raise ValueError(f"prosody: {type(self.tts).__name__} speaks every emotion alike; say how each changes it")
        if self.prosody is not None and set(self.prosody) != set(EMOTIONS):
            raise ValueError(f"prosody: needs the keys {', '.join(EMOTIONS)}; got {', '.join(self.prosody)}")
        unknown = set(self.augmentation.splits if self.augmentation else ()) - set(SPLITS)
        if unknown:
            raise ValueError(f"augmentation: splits: {unknown_name('split', sorted(unknown)[0], SPLITS)}")
        voices = [voice for split in SPLITS for voice in self.user_voices[split]]
        shared = sorted({voice for voice in [*voices, self.assistant_voice] if voices.count(voice) > 1})
        if shared or self.assistant_voice in voices:
            raise ValueError(
                f"user_voices: a voice belongs to one split alone; shared: {shared or self.assistant_voice}"
            )


def draw_prosody(question: Question, config: CorpusConfig) -> Prosody | None:
    """How a question is said: its emotion's prosody, with the variation that its id and the seed draw."""
    if config.prosody is None:
        return None
    return config.prosody[question.emotion].jitter(random.Random(f"{config.seed}-{question.id}"), config.jitter)


def draw_augmentation(question: Question, config: CorpusConfig) -> Drawn | None:
    """What happens to a question's recording, drawn by its id and the seed; None leaves it clean."""
    if config.augmentation is None:
        return None
    return config.augmentation.draw(question.split, random.Random(f"{config.seed}-{question.id}-augmentation"))


def held_out(text: str, share: float) -> bool:
    """Whether a line or reply is kept out of training: fixed by its words, so that adding others changes nothing."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF < share


def plan_replies(grammar: DialogueGrammar, config: CorpusConfig) -> dict[str, list[str]]:
    """Emotion -> the replies that are spoken, in the order in which they are rendered."""
    chosen = {}
    for emotion in EMOTIONS:
        replies = sorted(grammar.replies(emotion))
        random.Random(f"replies-{emotion}").shuffle(replies)
        chosen[emotion] = replies[: config.replies_per_emotion]
    return chosen


def plan_questions(grammar: DialogueGrammar, config: CorpusConfig) -> list[Question]:
    """All questions with their replies, by split; depends on grammar, config and seed alone."""
    pool: dict[tuple, list[str]] = {}
    for emotion, replies in plan_replies(grammar, config).items():
        for reply in replies[: config.dialogue_replies_per_emotion]:
            key = (emotion, grammar.topic_of(reply), held_out(reply, config.held_out_share))
            pool.setdefault(key, []).append(reply)
    questions = []
    for split in SPLITS:
        rng = random.Random(f"{config.seed}-{split}")
        unseen = split != "train"
        draw = partial(_draw_lines, grammar, config.held_out_share, unseen, rng)
        per_emotion = config.explicit_lines[split] // len(EMOTIONS)
        spoken: list[tuple[str, bool, str]] = [
            (line, True, "") for line in draw("ambiguous", config.ambiguous_lines[split])
        ]
        spoken += [(line, False, emotion) for emotion in EMOTIONS for line in draw(emotion, per_emotion)]
        voices = config.user_voices[split]
        for number, (line, ambiguous, emotion) in enumerate(spoken):
            start = rng.randrange(len(EMOTIONS))
            rotation = [EMOTIONS[(start + i) % len(EMOTIONS)] for i in range(config.emotions_per_line[split])]
            for said in rotation if ambiguous else [emotion]:
                topic = grammar.topic_of(line)
                replies = pool.get((said, topic, unseen)) or pool.get((said, topic, False), [])
                if not replies:
                    raise ValueError(
                        f"replies_per_emotion {config.replies_per_emotion}: none of the {said} replies is about "
                        f"{topic!r}, of which a question speaks; raise it"
                    )
                pair = f"{split}-{number:04d}"
                questions.append(
                    Question(
                        f"{pair}-{said}",
                        split,
                        voices[number % len(voices)],
                        line,
                        said,
                        ambiguous,
                        pair,
                        rng.choice(replies),
                    )
                )
    return questions


def _draw_lines(
    grammar: DialogueGrammar, share: float, unseen: bool, rng: random.Random, kind: str, count: int
) -> list[str]:
    """`count` lines of a kind, all different as long as there are enough."""
    lines = [line for line in grammar.lines(kind) if held_out(line, share) == unseen]
    if count and not lines:
        kept = "kept out of training" if unseen else "left for training"
        raise ValueError(
            f"grammar: no line of the kind {kind!r} is {kept} with held_out_share {share}; {count} are asked for"
        )
    rng.shuffle(lines)
    return [lines[i % len(lines)] for i in range(count)]
