"""Ask a model the questions of a manifest and judge its answers: emotion heard, reply, its emotion, latency."""

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
from lightning_s2s.evaluation.grammar import DialogueGrammar
from lightning_s2s.evaluation.results import AnswerResult, Metric, percentile
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.streaming.session import respond
from lightning_s2s.support.files import replacing, write_text
from lightning_s2s.support.ranges import Natural, checked


@checked
@dataclass
class EvaluateAnswersConfig:
    """Answers every question of a manifest and reports on the answers.

    Args:
        model: A model folder, such as `model` in the folder of a stage's run.
        questions: Manifest with one spoken question per line, with `transcript` and `emotion` beside its audio.
        grammar: YAML of the lines and replies, by which the form, emotion and topic of a reply are judged.
        output_dir: Folder for `answers.jsonl`, `figures.json`, `report.html` and `replies/*.wav`.
        num_warmup: Number of answers before latency is measured.
        limit: Number of questions to ask, from the start of the manifest; 0 asks all.
        title: Heading of the report.
        runs: Folders of the training runs behind the model; the report shows their curves.
        trust_sources: Also load what the model folder names outside of itself: hub ids, URLs, other files.
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


def evaluate_answers(config: EvaluateAnswersConfig) -> tuple[list[AnswerResult], list[Metric]]:
    """Answer every question, judge the answers, and write everything except the report.

    Raises:
        ValueError: The model, manifest or grammar is missing or broken, or a row has no question that can be judged.
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
    metrics = summarise(answers, grammar)

    lines = []
    for answer, name in zip(answers, file_names([answer.id for answer in answers]), strict=True):
        wav = output / "replies" / f"{name}.wav"
        if answer.reply.waveform is not None:
            with replacing(wav) as temporary:
                sf.write(temporary, answer.reply.waveform.numpy(), answer.reply.sample_rate)
        lines.append(json.dumps(_record(answer, wav), ensure_ascii=False))
    write_text(output / "answers.jsonl", "\n".join(lines) + "\n")
    write_text(output / "figures.json", json.dumps({metric.name: metric.value for metric in metrics}, indent=2) + "\n")
    return answers, metrics


def find_question(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The question of a row: the user's first content item with audio.

    Raises:
        ManifestError: The row has no such item, or the item has no emotion to judge the answer by.
    """
    item = next(iter(user_audio_items(row["messages"])), None)
    if item is None:
        problem = "messages: the user says nothing; a spoken question (an item with `audio`) is needed"
        raise ManifestError(row["manifest"], row["line"], "no question", problem)
    if not item.get("emotion"):
        problem = f"emotion: is missing beside the audio {item['audio']!r}; answers are judged by it"
        raise ManifestError(row["manifest"], row["line"], "no emotion", problem)
    return item


def check_question(row: Mapping[str, Any]) -> None:
    """Check a row's question and the header of its audio, before the model is loaded.

    Raises:
        ManifestError: The row has no question, or its audio cannot be used.
    """
    try:
        audio_duration_sec(AudioReference.parse(find_question(row)["audio"], row["folder"]))
    except AudioError as error:
        raise ManifestError(row["manifest"], row["line"], error.reason, str(error)) from None


def file_names(identities: Iterable[str]) -> list[str]:
    """One file name per id: the id itself if it is a valid name that no earlier id has taken."""
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


def answer_question(model: SpeechToSpeechModel, row: dict[str, Any], grammar: DialogueGrammar) -> AnswerResult:
    """Answer a row's question greedily, in text and speech, and ask the model which emotion it heard.

    Raises:
        ManifestError: The row has no question, or its audio cannot be used.
    """
    item = find_question(row)
    sample_rate = model.require_encoder()[0].sample_rate
    try:
        waveform = load_audio(item["audio"], row["folder"], sample_rate)
    except AudioError as error:
        raise ManifestError(row["manifest"], row["line"], error.reason, str(error)) from None
    reply = respond(model, waveform, sample_rate, greedy=True)
    heard = respond(
        model, waveform, sample_rate, greedy=True, instruction=TASKS["emotion"], speak=False, max_text_tokens=8
    ).text.lower()
    judged = grammar.judge(reply.text)
    return AnswerResult(
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


def summarise(answers: Sequence[AnswerResult], grammar: DialogueGrammar) -> list[Metric]:
    """Metrics of the answers, with their targets."""

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
        Metric(
            "emotion recognised",
            share(a.heard for a in answers),
            0.85,
            note="speakers and sentences never heard in training",
        ),
        Metric(
            "minimal pairs: reply fits the emotion",
            share(a.fits for a in pairs),
            0.8,
            note=f"from the words alone: {100 * chance:.0f} %",
        ),
        Metric("replies well-formed and of the right emotion", share(a.fits for a in answers), 0.9),
        Metric(
            "replies on the topic asked about", share(said is not None and replied == said for replied, said in topics)
        ),
        Metric("first audio, median", percentile(first_audio, 50), 0.5, True, "seconds"),
        Metric("first audio, 95th percentile", percentile(first_audio, 95), None, True, "seconds"),
        Metric("real-time factor, median", percentile(factors, 50), 0.5, True, ""),
    ]


def _record(answer: AnswerResult, wav: Path) -> dict[str, Any]:
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
