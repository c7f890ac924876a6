"""What `lightning-s2s construct` is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_s2s.components.contracts import Vocoder
from lightning_s2s.construction.filters import Filter
from lightning_s2s.construction.running import Local, Runner
from lightning_s2s.construction.speech import SpeechSynthesizer
from lightning_s2s.construction.speech.augmentation import Augmentation
from lightning_s2s.construction.speech.prosody import Prosody
from lightning_s2s.construction.writing import DialogueWriter
from lightning_s2s.data.tasks import SPLITS
from lightning_s2s.support.ranges import Seed, Share, Speed, checked
from lightning_s2s.support.wording import unknown_name


@checked
@dataclass
class CorpusConfig:
    """A corpus of spoken dialogues.

    Args:
        output_dir: the corpus folder.
        work_dir: everything that was written, spoken and measured is kept here, so that a run that was stopped goes on
            where it was.
        writer: who writes the dialogues: GrammarWriter, PromptedWriter, or a class of your own by its import path.
        tts: what speaks: Kokoro, Piper, Espeak, SpeechServer, or a class of your own by its import path.
        user_voices: voices of the users, by split; a voice belongs to one split.
        assistant_voice: the voice of all replies.
        vocoder: its tokenizer turns replies into units; None stops once everything is spoken, with manifests of the
            replies in `work_dir` to train a codec on.
        user_speed: speaking rate before emotion changes the tempo.
        assistant_speed: of the replies, an input of the TTS.
        assistant_tts: what speaks the replies, where that is not `tts`.
        assistant_prosody: how the emotion of a reply changes its voice; emotions that it lacks, and None, leave it.
        voice_traits: voice, or a pattern such as `af_*` -> what is known of its speaker: gender, age, language, and
            what else the prompts name.
        prosody: how each emotion changes a neutral voice; needed where `tts` has no emotions of its own, and laid over
            them where it has.
        jitter: 0..1, how much speakers differ in it.
        augmentation: what happens to the questions' recordings; None leaves them clean.
        filters: what a dialogue must pass to be kept, in this order.
        dataset: also write the corpus as a folder of the package datasets, `dataset` in `output_dir`.
        licences: part (corpus, writer, tts, vocoder, ...) -> licence, for the data card.
        runner: where the steps run: Local or Ray.
        seed: of every choice.

    Raises:
        ValueError: fields don't fit each other.
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
    augmentation: Augmentation | None = None
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
            raise ValueError(f"augmentation: splits: {unknown_name('split', sorted(unknown)[0], SPLITS)}")
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
