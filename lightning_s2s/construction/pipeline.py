"""From a plan to a corpus: speak, colour with emotion, tokenise, write manifests; what was spoken is kept."""

from __future__ import annotations

import hashlib
import itertools
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import soxr

from lightning_s2s.construction.augmentation import augment
from lightning_s2s.construction.opus import encode_opus
from lightning_s2s.construction.plan import (
    SPLITS,
    CorpusConfig,
    Question,
    draw_augmentation,
    draw_prosody,
    held_out,
    plan_questions,
    plan_replies,
)
from lightning_s2s.construction.prosody import Analysis, analyse, render
from lightning_s2s.construction.renderings import Renderings, for_each
from lightning_s2s.construction.rows import (
    dialogue_row,
    language_rows,
    speech_rows,
    understanding_rows,
    voice_row,
    write_manifest,
)
from lightning_s2s.construction.writer import DialogueGrammar
from lightning_s2s.files import replacing, write_bytes

QUESTION_RATE = 16_000
QUESTION_LEVEL = 0.05
"""Root mean square of a question before prosody; leaves room for an angry one."""


class Speaker:
    """Records the questions of a plan: in the engine's own emotions, by prosody, or both, and augmented."""

    def __init__(self, config: CorpusConfig):
        self.config, self.renderings = config, Renderings(config.tts, Path(config.work_dir) / "tts")

    def speak(self, questions: Sequence[Question], clips: dict[str, Path]) -> None:
        """Write the clips of a pair's questions; a neutral rendering and its analysis serve them all.

        Raises:
            SpeechError: one could not be spoken.
        """
        analyses: dict[str, Analysis] = {}
        for question in questions:
            emotion = question.emotion if self.config.tts.has_emotions else "neutral"
            prosody = draw_prosody(question, self.config)
            if prosody is None:
                waveform = self._render(question, emotion)
            else:
                if emotion not in analyses:
                    analyses[emotion] = analyse(self._render(question, emotion), QUESTION_RATE)
                waveform = render(analyses[emotion], QUESTION_RATE, prosody)
            if drawn := draw_augmentation(question, self.config):
                waveform = augment(waveform, QUESTION_RATE, drawn)
            write_bytes(clips[question.id], encode_opus(waveform, QUESTION_RATE))

    def _render(self, question: Question, emotion: str) -> np.ndarray:
        """The question's words at QUESTION_RATE; a neutral engine at QUESTION_LEVEL, one with emotions at its own."""
        spoken = self.renderings.speak(question.text, question.speaker, self.config.user_speed, emotion)
        waveform = soxr.resample(*spoken, QUESTION_RATE)
        if self.config.tts.has_emotions:
            return waveform
        return waveform * (QUESTION_LEVEL / max(1e-4, float(np.sqrt((waveform**2).mean()))))


def tokenise_reply(path: Path, vocoder: Any) -> list[int]:
    """The units of a reply that was kept."""
    import torch

    waveform = soxr.resample(*sf.read(path, dtype="float32"), vocoder.sample_rate)
    hop = vocoder.samples_per_unit
    padded = np.pad(waveform, (0, -len(waveform) % hop))
    units, _ = vocoder.tokenize(torch.from_numpy(padded).unsqueeze(0), torch.tensor([len(padded)]))
    return units[0].tolist()


def construct(config: CorpusConfig) -> None:
    """Make the corpus; what was rendered before is taken from `work_dir`.

    Writes to `output_dir`: `questions.zip` (Ogg Opus members, uncompressed), and gzipped JSONL manifests:
    `{split}` (dialogues for stage 3), `understanding_{split}` (stage 1), `speech_{split}` (stage 2) and
    `language_{split}` (text for the LLM).

    Raises:
        ValueError: a voice, the engine's files or the vocoder's weights are missing, or a text could not be spoken.
    """
    from tqdm import tqdm

    from lightning_s2s.vocoders.pocket import PocketVocoder

    grammar = DialogueGrammar(config.grammar)
    output, work = Path(config.output_dir), Path(config.work_dir)
    assistant = Renderings(config.assistant_tts or config.tts, work / "tts")
    assistant.synthesizer.check([config.assistant_voice])
    config.tts.check([voice for split in SPLITS for voice in config.user_voices[split]])
    vocoder = PocketVocoder(checkpoint=config.vocoder).eval() if config.vocoder else None
    output.mkdir(parents=True, exist_ok=True)
    questions = plan_questions(grammar, config)

    spoken = work / "questions"
    clips = {question.id: spoken / f"{_fingerprint(question, config)}.opus" for question in questions}
    speaker = Speaker(config)
    pairs = [list(pair) for _, pair in itertools.groupby(questions, key=lambda question: question.pair)]
    with tqdm(total=len(questions), desc="questions", unit="clip") as bar:
        failures = for_each(
            pairs,
            lambda pair: speaker.speak([question for question in pair if not clips[question.id].exists()], clips),
            config.tts.concurrency,
            lambda pair: bar.update(len(pair)),
        )
    replies = [reply for group in plan_replies(grammar, config).values() for reply in group]
    with tqdm(total=len(replies), desc="replies", unit="clip") as bar:
        failures += for_each(
            replies,
            lambda reply: assistant.speak(reply, config.assistant_voice, config.assistant_speed),
            assistant.synthesizer.concurrency,
            lambda _: bar.update(),
        )
    if failures:
        raise ValueError(
            f"{len(failures)} texts could not be spoken, the first: {failures[0]}; what was spoken is kept in {work}: "
            "construct again to try the others"
        )
    places = _zip(output / "questions.zip", clips)

    def voice(reply: str) -> Path:
        return assistant.path(reply, config.assistant_voice, config.assistant_speed)

    for split, unseen in (("train", False), ("validation", True)):
        chosen = [reply for reply in replies if held_out(reply, config.held_out_share) == unseen]
        write_manifest(
            work / f"replies_{split}.jsonl.gz", (voice_row(reply, voice(reply), config.work_dir) for reply in chosen)
        )
    if vocoder is None:
        print(f"spoken; train a codec on {work}/replies_train.jsonl.gz, then construct again with --vocoder FOLDER")
        return
    units = {
        reply: "".join(f"<|audio_{unit}|>" for unit in tokenise_reply(voice(reply), vocoder))
        for reply in tqdm(replies, "units", unit="clip")
    }

    for split in SPLITS:
        rows = [question for question in questions if question.split == split]
        write_manifest(
            output / f"{split}.jsonl.gz", (dialogue_row(q, places[q.id], units[q.reply], config) for q in rows)
        )
        write_manifest(
            output / f"understanding_{split}.jsonl.gz",
            (row for q in rows for row in understanding_rows(q, places[q.id], grammar, config)),
        )
    for split, unseen in (("train", False), ("validation", True)):
        write_manifest(output / f"speech_{split}.jsonl.gz", speech_rows(grammar, config, units, unseen))
        write_manifest(output / f"language_{split}.jsonl.gz", language_rows(grammar, config, unseen))


def _fingerprint(question: Question, config: CorpusConfig) -> str:
    """Changes whenever the sound of the question does: a clip that was kept is never taken for other words."""
    prosody, drawn = draw_prosody(question, config), draw_augmentation(question, config)
    sound = [
        config.tts.identity,
        question.emotion if config.tts.has_emotions else None,
        question.text,
        question.speaker,
        config.user_speed,
        asdict(prosody) if prosody else None,
        asdict(drawn) if drawn else None,
    ]
    return hashlib.sha256(json.dumps([*sound, QUESTION_RATE, QUESTION_LEVEL]).encode()).hexdigest()[:20]


def _zip(path: Path, clips: dict[str, Path]) -> dict[str, str]:
    """Pack files uncompressed; gives each id's `archive:offset:bytes`. The same files give the same archive."""
    places = {}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for identity, clip in clips.items():
            info = zipfile.ZipInfo(f"{identity}.opus")
            content = clip.read_bytes()
            archive.writestr(info, content)
            offset = info.header_offset + 30 + len(info.filename.encode())
            places[identity] = f"{path.name}:{offset}:{len(content)}"
    return places
