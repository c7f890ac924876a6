"""Which emotion a line is said with, by its prosody: a logistic regression on `prosody_features`.

Small on purpose: a corpus has few voices, and a larger model learns those by heart. Standardised features are limited,
so that a voice unlike all others moves the result by a limited amount.

N features, E emotions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_s2s.components.weights import WEIGHTS, check_tensors, read_json, read_state_dict, write_tensors
from lightning_s2s.construction.emotion_classifier.features import FEATURES, prosody_features
from lightning_s2s.construction.running.base import fingerprint
from lightning_s2s.support.files import write_text

LIMIT = 2.5
"""Standard deviations that a feature may lie off its mean."""
CONFIG = "config.json"


def limit_scores(scores: np.ndarray) -> np.ndarray:
    """Standard scores, limited to `LIMIT`."""
    return np.clip(scores, -LIMIT, LIMIT)


@dataclass(frozen=True)
class ProsodyClassifier:
    """Features -> limited standard scores -> probabilities of emotions.

    Attributes:
        emotions: Names of the emotions, in the order of the outputs.
        mean: (N,) mean of each feature.
        scale: (N,) standard deviation of each feature.
        weight: (E, N) weights of the standard scores.
        bias: (E,) bias of each emotion.
        facts: How it was trained and how well it does, as `config.json` has it.
    """

    emotions: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """What `model.safetensors` holds."""
        return {"mean": self.mean, "scale": self.scale, "weight": self.weight, "bias": self.bias}

    @property
    def identity(self) -> str:
        """What tells its answers from those of others."""
        return fingerprint(self.emotions, {name: values.tolist() for name, values in self.tensors.items()})

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(B, N) features as measured -> (B, E)."""
        return limit_scores((features - self.mean) / self.scale) @ self.weight.T + self.bias

    def probabilities(self, waveform: np.ndarray, sample_rate: int) -> dict[str, float]:
        """Emotion -> probability; they add up to 1.

        Args:
            waveform: (T,) floats in [-1, 1], one spoken line.
            sample_rate: Rate in Hz.
        Raises:
            ValueError: `waveform` is not 1-D.
        """
        (logits,) = self.logits(prosody_features(waveform, sample_rate)[None])
        shares = np.exp(logits - logits.max())
        return dict(zip(self.emotions, (shares / shares.sum()).tolist(), strict=True))

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        write_tensors({name: torch.from_numpy(values) for name, values in self.tensors.items()}, Path(folder) / WEIGHTS)
        config = {"emotions": self.emotions, "features": FEATURES, **self.facts}
        write_text(Path(folder) / CONFIG, json.dumps(config, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> ProsodyClassifier:
        """What `save` wrote.

        Raises:
            ValueError: A file is missing or broken, or they don't fit each other or this version's features.
        """
        path, weights = Path(folder) / CONFIG, Path(folder) / WEIGHTS
        facts = read_json(path)
        emotions = facts.pop("emotions", None)
        named = isinstance(emotions, list) and all(isinstance(emotion, str) for emotion in emotions)
        if not named or len(set(emotions)) < 2 or len(set(emotions)) < len(emotions):
            raise ValueError(f"{path}: emotions: got {emotions!r}; a list of at least two different names is needed")
        if facts.pop("features", None) != list(FEATURES):
            raise ValueError(
                f"{path}: features: are not those that this version measures; train the classifier again "
                "(lightning-s2s emotion-classifier)"
            )
        tensors = read_state_dict(weights, "the weights of ProsodyClassifier")
        wanted: dict[str, tuple[int, ...]] = {"mean": (len(FEATURES),), "scale": (len(FEATURES),)}
        wanted |= {"weight": (len(emotions), len(FEATURES)), "bias": (len(emotions),)}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        check_tensors("ProsodyClassifier", wanted, found, dict.fromkeys(found, str(weights)), str(weights))
        if not (tensors["scale"] > 0).all():
            raise ValueError(f"{weights}: scale: must be above 0 for every feature")
        return cls(tuple(emotions), **{name: tensor.numpy() for name, tensor in tensors.items()}, facts=facts)
