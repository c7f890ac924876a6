"""From a plan to a corpus: speak, colour with emotion, tokenise, write manifests; what was spoken is kept."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import random
import zipfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import soxr

from lightning_s2s.construction.plan import SPLITS, CorpusConfig, Question, held_out, plan_questions, plan_replies
from lightning_s2s.construction.prosody import Prosody, analyse, render
from lightning_s2s.construction.rows import dialogue_row, language_rows, speech_rows, understanding_rows, voice_row
from lightning_s2s.construction.tts import KokoroTTS
from lightning_s2s.construction.writer import DialogueGrammar
from lightning_s2s.files import replacing, write_bytes

QUESTION_RATE = 16_000
QUESTION_LEVEL = 0.05
"""Root mean square of a neutral question; leaves room for an angry one."""


def analyse_line(question: Question, tts: KokoroTTS, config: CorpusConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The question's words in its speaker's neutral voice, analysed; the questions of a pair share it."""
    waveform = tts.synthesise(question.text, question.speaker, config.user_speed)
    waveform = soxr.resample(waveform, tts.sample_rate, QUESTION_RATE)
    waveform *= QUESTION_LEVEL / max(1e-4, float(np.sqrt((waveform**2).mean())))
    return analyse(waveform, QUESTION_RATE)


def speak_question(
    question: Question, analysis: tuple[np.ndarray, np.ndarray, np.ndarray], config: CorpusConfig
) -> bytes:
    """The question with its emotion, as an Ogg Opus file at 16 kHz."""
    coloured = render(analysis, QUESTION_RATE, _prosody_of(question, config))
    buffer = io.BytesIO()
    sf.write(buffer, coloured, QUESTION_RATE, format="OGG", subtype="OPUS", compression_level=0.97)
    return buffer.getvalue()


def tokenise_reply(reply: str, tts: KokoroTTS, vocoder: Any, config: CorpusConfig) -> list[int]:
    """The reply's speech units, in the assistant's voice."""
    import torch

    waveform = tts.synthesise(reply, config.assistant_voice, config.assistant_speed)
    waveform = soxr.resample(waveform, tts.sample_rate, vocoder.sample_rate)
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
        ValueError: a voice, the TTS folder or the vocoder's weights are missing.
    """
    from tqdm import tqdm

    from lightning_s2s.vocoders.pocket import PocketVocoder

    grammar = DialogueGrammar(config.grammar)
    output, work = Path(config.output_dir), Path(config.work_dir)
    output.mkdir(parents=True, exist_ok=True)
    tts = KokoroTTS(config.tts, work / "tts")
    vocoder = PocketVocoder(checkpoint=config.vocoder).eval() if config.vocoder else None
    questions = plan_questions(grammar, config)

    spoken = work / "questions"
    spoken.mkdir(parents=True, exist_ok=True)
    clips = {question.id: spoken / f"{_fingerprint(question, config)}.opus" for question in questions}
    with tqdm(total=len(questions), desc="questions", unit="clip") as bar:
        for _, group in itertools.groupby(questions, key=lambda question: question.pair):
            pair = list(group)
            missing = [question for question in pair if not clips[question.id].exists()]
            if missing:
                analysis = analyse_line(missing[0], tts, config)
                for question in missing:
                    write_bytes(clips[question.id], speak_question(question, analysis, config))
            bar.update(len(pair))
    places = _zip(output / "questions.zip", clips)

    replies = [reply for group in plan_replies(grammar, config).values() for reply in group]
    for reply in tqdm(replies, "replies", unit="clip"):
        tts.synthesise(reply, config.assistant_voice, config.assistant_speed)

    def voice(reply: str) -> Path:
        return tts.path(reply, config.assistant_voice, config.assistant_speed)

    for split, unseen in (("train", False), ("validation", True)):
        chosen = [reply for reply in replies if held_out(reply, config.held_out_share) == unseen]
        _write_manifest(
            work / f"replies_{split}.jsonl.gz", (voice_row(reply, voice(reply), config.work_dir) for reply in chosen)
        )
    if vocoder is None:
        print(f"spoken; train a codec on {work}/replies_train.jsonl.gz, then construct again with --vocoder FOLDER")
        return
    units = {
        reply: "".join(f"<|audio_{unit}|>" for unit in tokenise_reply(reply, tts, vocoder, config))
        for reply in tqdm(replies, "units", unit="clip")
    }

    for split in SPLITS:
        rows = [question for question in questions if question.split == split]
        _write_manifest(output / f"{split}.jsonl.gz", (dialogue_row(q, places[q.id], units[q.reply]) for q in rows))
        _write_manifest(
            output / f"understanding_{split}.jsonl.gz",
            (row for q in rows for row in understanding_rows(q, places[q.id], grammar, config)),
        )
    for split, unseen in (("train", False), ("validation", True)):
        _write_manifest(output / f"speech_{split}.jsonl.gz", speech_rows(grammar, config, units, unseen))
        _write_manifest(output / f"language_{split}.jsonl.gz", language_rows(grammar, config, unseen))


def _prosody_of(question: Question, config: CorpusConfig) -> Prosody:
    """How this question is said: its emotion's prosody, with the variation that its id and the seed draw."""
    return config.prosody[question.emotion].jitter(random.Random(f"{config.seed}-{question.id}"), config.jitter)


def _fingerprint(question: Question, config: CorpusConfig) -> str:
    """Changes whenever the sound of the question does: a clip that was kept is never taken for other words."""
    sound = [question.text, question.speaker, config.user_speed, asdict(_prosody_of(question, config))]
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


def _write_manifest(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_bytes(path, gzip.compress(text.encode(), mtime=0))
