"""Ask a model a manifest's questions and judge its answers: emotion heard, reply, its emotion, latency."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile as sf

from lightning_s2s.checkpoints.model_folder import load_model
from lightning_s2s.data.audio import AudioError, AudioReference, audio_duration_sec, load_audio
from lightning_s2s.data.dataset import user_audio_items
from lightning_s2s.data.manifest import ManifestError, read_manifest
from lightning_s2s.data.tasks import EMOTIONS, TASKS
from lightning_s2s.evaluation.answer import Answer, Figure, percentile
from lightning_s2s.evaluation.grammar import DialogueGrammar
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.streaming.session import respond
from lightning_s2s.support.files import replacing, write_text
from lightning_s2s.support.ranges import Natural, checked


@checked
@dataclass
class EvaluateAnswersConfig:
    """Answers every question of a manifest and reports.

    Args:
        model: a model folder, such as `model` in the folder of a stage's run.
        questions: manifest with one spoken question a line, `transcript` and `emotion` beside its audio.
        grammar: YAML of the lines and replies, which judges the replies' form, emotion and topic.
        output_dir: gets `answers.jsonl`, `figures.json`, `report.html` and `replies/*.wav`.
        num_warmup: answers before the clock counts.
        limit: only so many questions, 0 or more; 0 for all.
        title: heading of the page.
        runs: folders of the trainings behind the model, whose curves the page shows.
        trust_sources: also load what the model's folder names outside of itself: hub ids, URLs, other files.
    """

    model: str
    questions: str
    grammar: str
    output_dir: str
    num_warmup: Natural = 2
    limit: Natural = 0
    title: str = "Spoken questions and answers"
    runs: list[str] = field(default_factory=list)
    trust_sources: bool = False


def evaluate_answers(config: EvaluateAnswersConfig) -> tuple[list[Answer], list[Figure]]:
    """Answer and judge; writes all but the page.

    Raises:
        ValueError: model, manifest or grammar are missing or broken, or a row asks nothing that can be judged.
    """
    from tqdm import tqdm

    grammar = DialogueGrammar(config.grammar)
    rows = read_manifest(config.questions)
    rows = rows[: config.limit or None]
    for row in rows:
        check_question(row)
    model = load_model(config.model, trust_sources=config.trust_sources)
    output = Path(config.output_dir)
    (output / "replies").mkdir(parents=True, exist_ok=True)
    for row in rows[: config.num_warmup]:
        answer_question(model, row, grammar)
    answers = [answer_question(model, row, grammar) for row in tqdm(rows, "answering", unit="question")]
    figures = summarise(answers, grammar)

    lines = []
    for answer, name in zip(answers, file_names([answer.id for answer in answers]), strict=True):
        wav = output / "replies" / f"{name}.wav"
        if answer.reply.waveform is not None:
            with replacing(wav) as temporary:
                sf.write(temporary, answer.reply.waveform.numpy(), answer.reply.sample_rate)
        lines.append(json.dumps(_record(answer, wav), ensure_ascii=False))
    write_text(output / "answers.jsonl", "\n".join(lines) + "\n")
    write_text(output / "figures.json", json.dumps({figure.name: figure.value for figure in figures}, indent=2) + "\n")
    return answers, figures


def find_question(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The content item that is asked: the user's first one with audio.

    Raises:
        ManifestError: there is none, or it has no emotion to judge the answer by.
    """
    item = next(iter(user_audio_items(row["messages"])), None)
    if item is None:
        problem = "messages: the user says nothing (an item with `audio`); a spoken question is needed"
        raise ManifestError(row["manifest"], row["line"], "no question", problem)
    if not item.get("emotion"):
        problem = f"emotion: is missing beside the audio {item['audio']!r}; the answer is judged by it"
        raise ManifestError(row["manifest"], row["line"], "no emotion", problem)
    return item


def check_question(row: Mapping[str, Any]) -> None:
    """Look for a row's question and the header of its audio, before the model is loaded.

    Raises:
        ManifestError: there is none, or its audio can't be used.
    """
    try:
        audio_duration_sec(AudioReference.parse(find_question(row)["audio"], row["folder"]))
    except AudioError as error:
        raise ManifestError(row["manifest"], row["line"], error.reason, str(error)) from None


def file_names(identities: Iterable[str]) -> list[str]:
    """Names for files, one for each id: the id itself where that is one and no other has it."""
    names: list[str] = []
    taken: set[str] = set()
    for identity in identities:
        name = plain = re.sub(r"[^\w.-]", "_", identity)[:100].lstrip(".") or "_"
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def answer_question(model: SpeechToSpeechModel, row: dict[str, Any], grammar: DialogueGrammar) -> Answer:
    """One row's question answered greedily, in text and sound, and asked for its emotion.

    Raises:
        ManifestError: the row has no question, or its audio can't be used.
    """
    item = find_question(row)
    sample_rate = model.encoder.sample_rate
    try:
        waveform = load_audio(item["audio"], row["folder"], sample_rate)
    except AudioError as error:
        raise ManifestError(row["manifest"], row["line"], error.reason, str(error)) from None
    reply = respond(model, waveform, sample_rate, greedy=True)
    heard = respond(
        model, waveform, sample_rate, greedy=True, instruction=TASKS["emotion"], speak=False, max_text_tokens=8
    ).text.lower()
    judged = grammar.judge(reply.text)
    return Answer(
        id=row["id"],
        speaker=str(row.get("speaker") or ""),
        pair=str(row.get("pair") or row["id"]),
        ambiguous=bool(row.get("ambiguous")),
        said=item.get("transcript") or "",
        emotion_spoken=item["emotion"],
        emotion_heard=heard if heard in EMOTIONS else None,
        reply=reply,
        reply_emotion=judged[0] if judged else None,
        fits=bool(judged and judged[0] == item["emotion"]),
        waveform=waveform,
        sample_rate=sample_rate,
    )


def summarise(answers: Sequence[Answer], grammar: DialogueGrammar) -> list[Figure]:
    """The measures of the answers with their targets."""

    def share(values: Iterable[bool]) -> float:
        values = list(values)
        return sum(values) / len(values) if values else float("nan")

    pairs = [answer for answer in answers if answer.ambiguous]
    per_pair = [len({other.emotion_spoken for other in pairs if other.pair == answer.pair}) for answer in pairs]
    chance = statistics.mean(1 / count for count in per_pair) if per_pair else float("nan")
    topics = [
        ((grammar.judge(answer.reply.text) or ("", ""))[1], grammar.find_topic(answer.said)) for answer in answers
    ]
    first_audio = [a.reply.marks["first_audio"] for a in answers if "first_audio" in a.reply.marks]
    factors = [a.reply.real_time_factor for a in answers if a.reply.real_time_factor is not None]
    return [
        Figure(
            "emotion recognised",
            share(a.emotion_heard == a.emotion_spoken for a in answers),
            0.85,
            note="speakers and sentences never heard in training",
        ),
        Figure(
            "minimal pairs: reply fits the emotion",
            share(a.fits for a in pairs),
            0.8,
            note=f"from the words alone: {100 * chance:.0f} %",
        ),
        Figure("replies well-formed and of the right emotion", share(a.fits for a in answers), 0.9),
        Figure(
            "replies on the topic asked about", share(said is not None and replied == said for replied, said in topics)
        ),
        Figure("first audio, median", percentile(first_audio, 50), 0.5, True, "seconds"),
        Figure("first audio, 95th percentile", percentile(first_audio, 95), None, True, "seconds"),
        Figure("real-time factor, median", percentile(factors, 50), 0.5, True, ""),
    ]


def _record(answer: Answer, wav: Path) -> dict[str, Any]:
    return {
        "id": answer.id,
        "speaker": answer.speaker,
        "pair": answer.pair,
        "said": answer.said,
        "emotion_spoken": answer.emotion_spoken,
        "emotion_heard": answer.emotion_heard,
        "reply": answer.reply.text,
        "reply_emotion": answer.reply_emotion,
        "fits": answer.fits,
        "marks": answer.reply.marks,
        "real_time_factor": answer.reply.real_time_factor,
        "audio": str(wav.relative_to(wav.parent.parent)),
    }
