"""Filters that hear whether the voice has the emotion that was asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lightning_s2s.construction.filters.base import RATE, Figures, Filter, RecordedDialogue, Rejection, load, under
from lightning_s2s.construction.running import ItemFailure
from lightning_s2s.support.ranges import Share, checked, device_of
from lightning_s2s.support.wording import unknown_name


class _Agreement(Filter):
    """A classifier must think the emotion of each of the user's recordings likely enough."""

    hears = True
    figure: str
    min_probability: float

    @abstractmethod
    def probabilities(self, path: str) -> dict[str, float]:
        """Emotion -> probability."""

    def measure(self, batch: Sequence[RecordedDialogue]) -> list[Figures | ItemFailure]:
        measured: list[Figures | ItemFailure] = []
        for item in batch:
            least, likeliest = 1.0, []
            for path, turn in zip(item.questions, item.dialogue.turns, strict=True):
                found = self.probabilities(path)
                if turn.emotion not in found:
                    raise ValueError(f"filters: {self.name}: {unknown_name('emotion', turn.emotion, found)}")
                least = min(least, found[turn.emotion])
                likeliest.append(max(found, key=lambda emotion: found[emotion]))
            measured.append({f"{self.figure}_probability": round(least, 4), f"{self.figure}_heard": likeliest})
        return measured

    def verdict(self, figures: Figures) -> Rejection | None:
        return under(figures, f"{self.figure}_probability", self.min_probability)


@checked
@dataclass
class EmotionAgreement(_Agreement):
    """Any audio classifier of transformers.

    Args:
        model: Hub id or folder of the classifier, such as `superb/wav2vec2-base-superb-er`.
        labels: Label of the classifier -> emotion of the corpus, such as
            `{hap: happy, ang: angry, neu: neutral, sad: sad}`; missing labels stand for themselves.
        min_probability: Lowest probability of the emotion that was asked for.
        device: Device on which the classifier runs: cpu, cuda, ...
    """

    model: str
    labels: dict[str, str] = field(default_factory=dict)
    min_probability: Share = 0.3
    device: str = "cpu"

    name, figure = "emotion", "emotion"

    @property
    def identity(self) -> str:
        return f"classifier {self.model} {sorted(self.labels.items())}"

    def probabilities(self, path: str) -> dict[str, float]:
        import torch

        extractor, network = self._network
        inputs = extractor(load(path), sampling_rate=RATE, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            shares = network(**inputs).logits[0].float().softmax(-1).tolist()
        found: dict[str, float] = {}
        for number, share in enumerate(shares):
            label = network.config.id2label[number]
            emotion = self.labels.get(label, label)
            found[emotion] = found.get(emotion, 0.0) + share
        return found

    @cached_property
    def _network(self) -> tuple[Any, Any]:
        from lightning_s2s.components.pretrained import load_model, load_pretrained

        extractor = load_pretrained("AutoFeatureExtractor", self.model)
        network = load_model("AutoModelForAudioClassification", self.model).eval().to(device_of(self))
        if unknown := sorted(set(self.labels) - set(network.config.id2label.values())):
            known = network.config.id2label.values()
            raise ValueError(f"filters: {self.name}: labels: {unknown_name('label', unknown[0], known)}")
        return extractor, network


@checked
@dataclass
class ProsodyAgreement(_Agreement):
    """The small classifier that `lightning-s2s emotion-classifier` trains on prosody alone.

    Args:
        folder: Folder of the classifier.
        min_probability: Lowest probability of the emotion that was asked for.
    """

    folder: str = "experiments/tiny/emotion_classifier"
    min_probability: Share = 0.1

    name, figure = "prosody", "prosody"

    @property
    def identity(self) -> str:
        return f"prosody {self._classifier.identity}"

    def probabilities(self, path: str) -> dict[str, float]:
        return self._classifier.probabilities(load(path), RATE)

    @cached_property
    def _classifier(self) -> Any:
        from lightning_s2s.construction.emotion_classifier.classifier import ProsodyClassifier

        return ProsodyClassifier.load(self.folder)
