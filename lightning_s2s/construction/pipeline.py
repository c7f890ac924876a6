"""From a grammar, a TTS and a seed to a corpus: plan, speak, colour with emotion, tokenise, write manifests."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import random
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import soxr

from lightning_s2s.construction.prosody import Prosody, analyse, render
from lightning_s2s.construction.tts import KokoroTTS
from lightning_s2s.construction.writer import EMOTIONS, DialogueGrammar

QUESTION_RATE = 16_000
QUESTION_LEVEL = 0.05
"""Root mean square of a neutral question; leaves room for an angry one."""
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
        tts: folder of the Kokoro voice model.
        vocoder: folder of the pocket codec that turns replies into units; None stops once everything is spoken, with
            manifests of the replies in `work_dir` to train a codec on.
        assistant_voice: the voice of all replies.
        assistant_speed: its speaking rate, an input of the TTS.
        user_voices: voices of the users, by split; a voice belongs to one split.
        user_speed: speaking rate before emotion changes the tempo.
        ambiguous_lines: (line, voice) pairs whose words fit any emotion, by split.
        emotions_per_line: emotions that each of them is said with, by split.
        explicit_lines: (line, voice) pairs whose words name the emotion, by split.
        replies_per_emotion: distinct spoken replies of each emotion.
        held_out_share: share of lines and of replies kept out of training.
        prosody: how each emotion changes the voice.
        jitter: 0..1, how much speakers differ in it.
        seed: of every choice.
    """

    grammar: str
    output_dir: str
    work_dir: str
    tts: str
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
    prosody: dict[str, Prosody]
    jitter: float = 0.4
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("user_voices", "ambiguous_lines", "emotions_per_line", "explicit_lines"):
            if set(getattr(self, name)) != set(SPLITS):
                raise ValueError(f"{name}: needs the keys {', '.join(SPLITS)}; got {', '.join(getattr(self, name))}")
        if set(self.prosody) != set(EMOTIONS):
            raise ValueError(f"prosody: needs the keys {', '.join(EMOTIONS)}; got {', '.join(self.prosody)}")
        voices = [voice for split in SPLITS for voice in self.user_voices[split]]
        shared = sorted({voice for voice in [*voices, self.assistant_voice] if voices.count(voice) > 1})
        if shared or self.assistant_voice in voices:
            raise ValueError(f"user_voices: a voice belongs to one split alone; shared: {shared or self.assistant_voice}")


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
        for reply in replies:
            key = (emotion, grammar.topic_of(reply), held_out(reply, config.held_out_share))
            pool.setdefault(key, []).append(reply)
    questions = []
    for split in SPLITS:
        rng = random.Random(f"{config.seed}-{split}")
        unseen = split != "train"
        draw = partial(_draw_lines, grammar, config.held_out_share, unseen, rng)
        per_emotion = config.explicit_lines[split] // len(EMOTIONS)
        spoken: list[tuple[str, bool, str]] = [(line, True, "") for line in draw("ambiguous", config.ambiguous_lines[split])]
        spoken += [(line, False, emotion) for emotion in EMOTIONS for line in draw(emotion, per_emotion)]
        voices = config.user_voices[split]
        for number, (line, ambiguous, emotion) in enumerate(spoken):
            start = rng.randrange(len(EMOTIONS))
            rotation = [EMOTIONS[(start + i) % len(EMOTIONS)] for i in range(config.emotions_per_line[split])]
            for said in rotation if ambiguous else [emotion]:
                topic = grammar.topic_of(line)
                replies = pool.get((said, topic, unseen)) or pool[(said, topic, False)]
                pair = f"{split}-{number:04d}"
                questions.append(Question(
                    f"{pair}-{said}", split, voices[number % len(voices)], line, said, ambiguous, pair, rng.choice(replies)
                ))
    return questions


def _draw_lines(
    grammar: DialogueGrammar, share: float, unseen: bool, rng: random.Random, kind: str, count: int
) -> list[str]:
    """`count` lines of a kind, all different as long as there are enough."""
    lines = [line for line in grammar.lines(kind) if held_out(line, share) == unseen]
    if count and not lines:
        kept = "kept out of training" if unseen else "left for training"
        raise ValueError(f"grammar: no line of the kind {kind!r} is {kept} with held_out_share {share}; {count} are asked for")
    rng.shuffle(lines)
    return [lines[i % len(lines)] for i in range(count)]


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
    rng = random.Random(f"{config.seed}-{question.id}")
    prosody = config.prosody[question.emotion].jitter(rng, config.jitter)
    coloured = render(analysis, QUESTION_RATE, prosody)
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

    spoken = (work / "questions") / f"{_fingerprint(config)}"
    spoken.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(questions), desc="questions", unit="clip") as bar:
        for _, group in itertools.groupby(questions, key=lambda question: question.pair):
            pair = list(group)
            missing = [question for question in pair if not (spoken / f"{question.id}.opus").exists()]
            if missing:
                analysis = analyse_line(missing[0], tts, config)
                for question in missing:
                    _write(spoken / f"{question.id}.opus", speak_question(question, analysis, config))
            bar.update(len(pair))
    places = _zip(output / "questions.zip", [spoken / f"{question.id}.opus" for question in questions])

    replies = [reply for group in plan_replies(grammar, config).values() for reply in group]
    for reply in tqdm(replies, "replies", unit="clip"):
        tts.synthesise(reply, config.assistant_voice, config.assistant_speed)
    for split, unseen in (("train", False), ("validation", True)):
        chosen = [reply for reply in replies if held_out(reply, config.held_out_share) == unseen]
        _write_manifest(work / f"replies_{split}.jsonl.gz", (voice_row(reply, tts, config) for reply in chosen))
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


def voice_row(reply: str, tts: KokoroTTS, config: CorpusConfig) -> dict[str, Any]:
    """A line for the codec: the assistant's speech with its words."""
    path = tts.path(reply, config.assistant_voice, config.assistant_speed)
    said = {"text": reply, "audio": str(path.relative_to(config.work_dir)), "speech_units": "", "spk_emb": ""}
    return {"id": path.stem, "messages": [{"role": "assistant", "content": [said]}]}


def dialogue_row(question: Question, audio: str, units: str) -> dict[str, Any]:
    """A line for stage 3: the spoken question and the spoken reply."""
    user = _heard(question, audio)
    reply = {"text": question.reply, "audio": "", "speech_units": units, "spk_emb": ""}
    return _row(question.id, user, reply, speaker=question.speaker, pair=question.pair, ambiguous=question.ambiguous)


def understanding_rows(
    question: Question, audio: str, grammar: DialogueGrammar, config: CorpusConfig
) -> Iterable[dict[str, Any]]:
    """Lines for stage 1: transcribe, name the emotion, continue, and reply in text."""
    for task, prompt, answer in task_answers(grammar, question.text, question.emotion, question.reply, config):
        user = _heard(question, audio) | {"text": prompt}
        yield _row(f"{question.id}-{task}", user, {"text": answer}, task=task, speaker=question.speaker)


TASKS = {
    "reply": "",
    "emotion": "What emotion does the speaker convey? ",
    "transcribe": "Repeat what the speaker says. ",
    "continue": "Continue the following sentence based on the conveyed emotion tone in a coherent style: ",
}


def task_answers(
    grammar: DialogueGrammar, text: str, emotion: str, reply: str, config: CorpusConfig
) -> Iterable[tuple[str, str, str]]:
    """(task, prompt, answer) for one line said with one emotion."""
    rng = random.Random(f"{config.seed}-{text}-{emotion}")
    continuation = rng.choice(grammar.rules["continuations"][emotion])
    answers = {"reply": reply, "emotion": emotion, "transcribe": text, "continue": continuation}
    return [(task, prompt, answers[task]) for task, prompt in TASKS.items()]


def speech_rows(
    grammar: DialogueGrammar, config: CorpusConfig, units: dict[str, str], unseen: bool
) -> Iterable[dict[str, Any]]:
    """Lines for stage 2: every spoken reply behind a line, in words, that it fits."""
    rng = random.Random(f"{config.seed}-speech-{unseen}")
    lines = _lines_by_topic(grammar, config, unseen)
    for emotion, replies in plan_replies(grammar, config).items():
        for number, reply in enumerate(replies):
            if held_out(reply, config.held_out_share) == unseen:
                text = rng.choice(lines[grammar.topic_of(reply)])
                user = {"text": "", "audio_text": f"({emotion}) {text}"}
                spoken = {"text": reply, "audio": "", "speech_units": units[reply], "spk_emb": ""}
                yield _row(f"speech-{emotion}-{number:04d}", user, spoken)


def language_rows(grammar: DialogueGrammar, config: CorpusConfig, unseen: bool) -> Iterable[dict[str, Any]]:
    """Lines for the LLM: what is heard stands there in words, with its emotion; some replies are marked as spoken."""
    rng = random.Random(f"{config.seed}-language-{unseen}")
    lines = _lines_by_topic(grammar, config, unseen)
    pools: dict[tuple[str, str], list[str]] = {}
    for emotion in EMOTIONS:
        for reply in grammar.replies(emotion):
            if held_out(reply, config.held_out_share) == unseen:
                pools.setdefault((emotion, grammar.topic_of(reply)), []).append(reply)
    for topic, texts in sorted(lines.items()):
        for number, text in enumerate(texts):
            for emotion in EMOTIONS:
                if (emotion, topic) not in pools:
                    continue
                reply = rng.choice(pools[emotion, topic])
                for task, prompt, answer in task_answers(grammar, text, emotion, reply, config):
                    user = {"text": prompt, "audio_text": f"({emotion}) {text}"}
                    spoken = {"text": answer} | ({"speak": True} if task == "reply" and number % 4 else {})
                    yield _row(f"language-{topic}-{number}-{emotion}-{task}", user, spoken, task=task)


def _lines_by_topic(grammar: DialogueGrammar, config: CorpusConfig, unseen: bool) -> dict[str, list[str]]:
    """The lines that training sees, or those it doesn't; a topic has its seen lines where none is held out."""
    lines: dict[str, list[str]] = _lines_by_topic(grammar, config, False) if unseen else {}
    fresh: dict[str, list[str]] = {}
    for line in grammar.lines("ambiguous"):
        if held_out(line, config.held_out_share) == unseen:
            fresh.setdefault(grammar.topic_of(line), []).append(line)
    return lines | fresh


def _heard(question: Question, audio: str) -> dict[str, Any]:
    return {
        "text": "", "audio": audio, "speech_units": "", "spk_emb": "",
        "transcript": question.text, "emotion": question.emotion,
    }


def _row(identity: str, user: dict[str, Any], assistant: dict[str, Any], **extra: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": [user]}, {"role": "assistant", "content": [assistant]}]
    return {"id": identity, **extra, "messages": messages}


def _fingerprint(config: CorpusConfig) -> str:
    """Changes whenever the sound of a question may change."""
    what = {key: value for key, value in asdict(config).items() if key in ("prosody", "jitter", "seed", "user_speed")}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _zip(path: Path, members: list[Path]) -> dict[str, str]:
    """Pack files uncompressed; gives each stem's `archive:offset:bytes`. The same files give the same archive."""
    temporary, places = path.with_name(f".{path.name}.tmp"), {}
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for member in members:
            info = zipfile.ZipInfo(member.name)
            content = member.read_bytes()
            archive.writestr(info, content)
            offset = info.header_offset + 30 + len(info.filename.encode())
            places[member.stem] = f"{path.name}:{offset}:{len(content)}"
    temporary.replace(path)
    return places


def _write_manifest(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    _write(path, gzip.compress(text.encode(), mtime=0))
