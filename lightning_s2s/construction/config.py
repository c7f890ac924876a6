"""The configuration of `lightning-s2s construct`."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_s2s.components.contracts import Vocoder
from lightning_s2s.construction.filters import Filter
from lightning_s2s.construction.running import Local, Runner
from lightning_s2s.construction.speech import SpeechSynthesizer
from lightning_s2s.construction.speech.prosody import Prosody
from lightning_s2s.construction.writing import DialogueWriter
from lightning_s2s.data.augmentation import CorpusAugmentation
from lightning_s2s.data.tasks import SPLITS
from lightning_s2s.support.ranges import Seed, Share, Speed, checked
from lightning_s2s.support.wording import unknown_name


@checked
@dataclass
class CorpusConfig:
    """A corpus of spoken dialogues.

    Args:
        output_dir: Folder of the corpus.
        work_dir: Folder that keeps everything that was written, spoken and measured, so that a stopped run resumes.
        writer: Writes the dialogues: GrammarWriter, PromptedWriter, or a class of your own by its import path.
        tts: Speaks the users' lines: Kokoro, Piper, Espeak, SpeechServer, or a class of your own by its import path.
        user_voices: Voices of the users by split; a voice belongs to one split.
        assistant_voice: Voice of all replies.
        vocoder: Vocoder whose tokenizer turns replies into units. None stops once everything is spoken, with manifests
            of the replies in `work_dir` to train a codec on.
        user_speed: Speaking rate of the users before emotion changes the tempo.
        assistant_speed: Speaking rate of the replies.
        assistant_tts: Speaks the replies; None takes `tts`.
        assistant_prosody: How the emotion of a reply changes its voice. Emotions that are missing leave it as it is.
        voice_traits: Voice, or a pattern such as `af_*` -> what is known of its speaker: gender, age, language, and
            anything else that the prompts name.
        prosody: How each emotion changes a neutral voice; required where `tts` has no emotions of its own, and applied
            on top of them where it has.
        jitter: How much speakers vary in their prosody, 0 to 1.
        augmentation: What happens to the questions' recordings; None leaves them clean.
        filters: What a dialogue must pass to be kept, in this order.
        dataset: Whether the corpus is also written as a folder of the package datasets, `dataset` in `output_dir`.
        licences: Part (corpus, writer, tts, vocoder, ...) -> licence, for the data card.
        runner: Where the steps run: Local or Ray.
        seed: Seed of all random choices.

    Raises:
        ValueError: Fields don't fit each other.
    """

    output_dir: str
    work_dir: str
    writer: DialogueWriter
    tts: SpeechSynthesizer
    user_voices: dict[str, list[str]]
    assistant_voice: str
    vocoder: Vocoder | None = None
    user_speed: Speed = 1.0
    assistant_speed: Speed = 1.0
    assistant_tts: SpeechSynthesizer | None = None
    assistant_prosody: dict[str, Prosody] | None = None
    voice_traits: dict[str, dict[str, str]] = field(default_factory=dict)
    prosody: dict[str, Prosody] | None = None
    jitter: Share = 0.4
    augmentation: CorpusAugmentation | None = None
    filters: list[Filter] = field(default_factory=list)
    dataset: bool = False
    licences: dict[str, str] = field(default_factory=dict)
    runner: Runner = field(default_factory=Local)
    seed: Seed = 1

    def __post_init__(self) -> None:
        if set(self.user_voices) != set(SPLITS):
            raise ValueError(f"user_voices: needs the keys {', '.join(SPLITS)}; got {', '.join(self.user_voices)}")
        if self.prosody is None and not self.tts.has_emotions:
            raise ValueError(f"prosody: {type(self.tts).__name__} speaks every emotion alike; say how each changes it")
        if self.prosody is not None and (missing := [e for e in self.writer.emotions if e not in self.prosody]):
            raise ValueError(f"prosody: lacks {', '.join(missing)}, which the writer's lines are said with")
        unknown = set(self.augmentation.splits if self.augmentation else ()) - set(SPLITS)
        if unknown:
            raise ValueError(f"augmentation.splits: {unknown_name('split', sorted(unknown)[0], SPLITS)}")
        if empty := [split for split in SPLITS if not self.user_voices[split]]:
            raise ValueError(f"user_voices: {empty[0]}: is empty; at least one voice is needed")
        voices = [voice for split in SPLITS for voice in self.user_voices[split]]
        shared = sorted({voice for voice in [*voices, self.assistant_voice] if voices.count(voice) > 1})
        if shared or self.assistant_voice in voices:
            raise ValueError(
                f"user_voices: a voice belongs to one split alone; shared: {shared or self.assistant_voice}"
            )
        names = [kind.name for kind in self.filters]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"filters: {twice[0]} is named twice")
