"""Word error rate of speech by an ASR model: of spoken replies, of the codec, or of the speech decoder alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_s2s.checkpoints.model_folder import load_model
from lightning_s2s.data.audio import load_audio
from lightning_s2s.data.chat import content_items
from lightning_s2s.data.manifest import parse_units, read_manifest
from lightning_s2s.generation.sampling import Sampler
from lightning_s2s.support.files import write_text
from lightning_s2s.support.ranges import Natural, checked
from lightning_s2s.support.reading import parse_json


@checked
@dataclass
class EvaluateSpeechConfig:
    """Measures the word error rate of speech against the text it should say.

    Exactly one of `answers`, `vocoder` and `model` must be given: it selects what is measured.

    Args:
        asr: Hub id or folder of the Whisper model that transcribes.
        answers: Folder written by `evaluate answers`: its spoken replies are compared with their own text.
        vocoder: Folder of pocket weights: it re-synthesises the manifest's units, or the recording of a reply
            without units.
        model: Model folder: its speech decoder speaks the manifest's texts from text conditions (stage 2a).
        manifest: Manifest of spoken replies, for `vocoder` and `model`.
        limit: Number of sentences, evenly spread over the manifest; 0 takes all.
        mos: Also estimate the speech quality (DistillMOS; extra `evaluation`).
        output_dir: Folder for the results, `figures.json`; None writes no file.
    """

    asr: str = "openai/whisper-base"
    answers: str | None = None
    vocoder: str | None = None
    model: str | None = None
    manifest: str | None = None
    limit: Natural = 0
    mos: bool = False
    output_dir: str | None = None


class Transcriber:
    """Transcribes speech with a Whisper model.

    Args:
        name: Hub id or folder of the model.
        device: Device on which the model runs, such as cpu or cuda.
    """

    def __init__(self, name: str, device: str = "cpu"):
        from lightning_s2s.components.pretrained import load_pretrained

        self.processor = load_pretrained("WhisperProcessor", name)
        self.model = load_pretrained("WhisperForConditionalGeneration", name).eval().to(device)

    def __call__(self, waveform: np.ndarray) -> str:
        """(T,) float32 at 16 kHz, English -> text."""
        return self.transcribe([waveform], ["English"])[0]

    @torch.inference_mode()
    def transcribe(self, waveforms: Sequence[np.ndarray], languages: Sequence[str]) -> list[str]:
        """Transcribe a batch.

        Args:
            waveforms: (T,) float32 each, at 16 kHz.
            languages: Language of each waveform, as a name or code.

        Raises:
            ValueError: Whisper does not know one of the languages.
        """
        features = self.processor(list(waveforms), sampling_rate=16_000, return_tensors="pt").input_features
        ids = self.model.generate(
            features.to(self.model.device),
            language=[language.lower() for language in languages],
            task="transcribe",
            max_new_tokens=100,
        )
        return self.processor.batch_decode(ids, skip_special_tokens=True)


def normalise(text: str) -> str:
    """`text` in lower case, without punctuation and with contractions expanded, as both sides are compared.

    Each Chinese or Japanese character becomes a word of its own.
    """
    text = text.lower().replace("\u2019", "'")
    for short, full in (
        ("can't", "can not"),
        ("cannot", "can not"),
        ("won't", "will not"),
        ("n't", " not"),
        ("'re", " are"),
        ("'m", " am"),
        ("let's", "let us"),
        ("'ll", " will"),
        ("alright", "all right"),
        ("okay", "ok"),
        ("that's", "that is"),
        ("it's", "it is"),
        ("what's", "what is"),
    ):
        text = text.replace(short, full)
    text = re.sub(r"([\u3040-\u30ff\u3400-\u9fff])", r" \1 ", text)
    return " ".join(re.sub(r"[^\w ]|_", " ", text).split())


def evaluate_speech(config: EvaluateSpeechConfig) -> dict[str, float]:
    """Print and return the word error rate over all sentences and, if asked for, the mean opinion score.

    Raises:
        ValueError: Not exactly one of `answers`, `vocoder`, `model` is given, a file is missing, or there is no speech.
    """
    from torchmetrics.text import WordErrorRate
    from tqdm import tqdm

    given = [name for name in SOURCES if getattr(config, name)]
    if len(given) != 1:
        raise ValueError(f"give exactly one of answers, vocoder, model; got {', '.join(given) or 'none'}")
    if given != ["answers"] and not config.manifest:
        raise ValueError(f"manifest: is missing; {given[0]} needs a manifest of spoken replies")
    sentences = list(SOURCES[given[0]](getattr(config, given[0]), config.manifest or "", config.limit))
    if not sentences:
        where = config.manifest or config.answers
        raise ValueError(f"{where}: nothing to listen to; expected replies with text and units or sound")
    transcriber, errors, opinions = Transcriber(config.asr), WordErrorRate(), []
    judge = load_distillmos() if config.mos else None
    for text, waveform in tqdm(sentences, "listening", unit="sentence"):
        heard = transcriber(waveform)
        errors.update(normalise(heard), normalise(text))
        if judge is not None:
            with torch.inference_mode():
                opinions.append(float(judge(torch.from_numpy(waveform).unsqueeze(0))))
    figures = {"word_error_rate": float(errors.compute()), "sentences": len(sentences)}
    if opinions:
        figures["distillmos"] = float(np.mean(opinions))
    print(json.dumps(figures))
    if config.output_dir is not None:
        write_text(Path(config.output_dir) / "figures.json", json.dumps(figures, indent=2) + "\n")
    return figures


def _limited(rows: Sequence[Any], limit: int) -> Sequence[Any]:
    """`limit` rows, evenly spread over all of them; all rows if `limit` is 0."""
    return rows if not limit or limit >= len(rows) else [rows[i * len(rows) // limit] for i in range(limit)]


def _from_answers(answers: str, manifest: str, limit: int) -> Iterable[tuple[str, np.ndarray]]:
    folder = Path(answers)
    path = folder / "answers.jsonl"
    if not path.is_file():
        raise ValueError(f"answers: {path}: no such file; expected a folder that `evaluate answers` wrote")
    lines = path.read_text(encoding="utf-8").split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    for number, line in _limited(numbered, limit):
        record = parse_json(line, f"{path}:{number}")
        if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in ("reply", "audio")):
            raise ValueError(f"{path}:{number}: expected an object with the strings `reply` and `audio`")
        silent = not (folder / record["audio"]).is_file()  # silence: all words count as deleted
        yield record["reply"], np.zeros(16_000, np.float32) if silent else load_audio(record["audio"], folder, 16_000)


def _spoken_items(manifest: str, limit: int) -> Iterable[Mapping[str, Any]]:
    for row in _limited(read_manifest(manifest), limit):
        yield from (item for item in content_items(row["messages"][-1]["content"]) if item.get("text"))


def _from_vocoder(folder: str, manifest: str, limit: int) -> Iterable[tuple[str, np.ndarray]]:
    from lightning_s2s.components.vocoders.pocket import PocketVocoder

    vocoder = PocketVocoder(checkpoint=folder).eval()
    for item in _spoken_items(manifest, limit):
        if item.get("speech_units"):
            units = torch.tensor([parse_units(item["speech_units"])])
        elif item.get("audio"):
            recording = torch.from_numpy(load_audio(item["audio"], Path(manifest).parent, vocoder.sample_rate))
            units, _ = vocoder.tokenize(recording.unsqueeze(0), torch.tensor([len(recording)]))
        else:
            continue
        yield item["text"], _at_16k(vocoder.synthesize(units)[0], vocoder.sample_rate)


def _from_decoder(folder: str, manifest: str, limit: int) -> Iterable[tuple[str, np.ndarray]]:
    from lightning_s2s.streaming.speak import speak_text

    model = load_model(folder)
    vocoder = model.require_vocoder()
    for item in _spoken_items(manifest, limit):
        units = speak_text(model, item["text"], Sampler(temperature=0.0))
        waveform = vocoder.synthesize(torch.tensor([units or [0]]))[0]
        yield item["text"], _at_16k(waveform, vocoder.sample_rate)


SOURCES = {"answers": _from_answers, "vocoder": _from_vocoder, "model": _from_decoder}


def _at_16k(waveform: torch.Tensor, sample_rate: int) -> np.ndarray:
    import soxr

    return soxr.resample(waveform.numpy(), sample_rate, 16_000)


def load_distillmos() -> Any:
    """DistillMOS: (B, T) speech at 16 kHz -> its estimated mean opinion score, 1 to 5.

    Raises:
        ValueError: The package distillmos is missing.
    """
    try:
        import distillmos
    except ImportError:
        raise ValueError("mos: needs the package distillmos: pip install 'lightning-s2s[evaluation]'") from None
    return distillmos.ConvTransformerSQAModel().eval()
