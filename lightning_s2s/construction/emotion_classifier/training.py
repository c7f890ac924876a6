"""Training of the classifier of emotions on manifests: scikit-learn's standard scores and logistic regression."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from lightning_s2s.construction.emotion_classifier.classifier import ProsodyClassifier, limit_scores
from lightning_s2s.construction.emotion_classifier.clips import check_splits, measure_clips, read_clips
from lightning_s2s.construction.emotion_classifier.features import LEVEL
from lightning_s2s.data.tasks import SPLITS
from lightning_s2s.support.files import write_text
from lightning_s2s.support.ranges import Count, Natural, Processes, Range, Seed, checked

NORMALISED_LEVEL_DB = -26.0
"""The level of every clip, relative to full scale, where the level must tell nothing."""
FIGURES = "figures.json"


@checked
@dataclass
class ClassifierConfig:
    """A classifier of emotions by prosody, trained on manifests.

    Args:
        train: Manifest to train on; the user's recordings that have an `emotion` count, and each row needs its
            `speaker`.
        validation: Manifest that is measured at the end, to choose settings by, with other speakers.
        test: Manifest that is measured at the end, with other speakers again.
        output_dir: Folder of the classifier; older files in it are replaced.
        noisy_copies: Number of copies of each training clip that are added under noise.
        noise_snr_db: [lowest, highest] level of the speech above that noise.
        gain_db: Standard deviation of a random gain, so that the level alone decides nothing; 0 for none.
        gain_copies: Number of times that each training clip counts, each time with its own gain.
        inverse_regularization: scikit-learn's `C`; smaller values keep the weights smaller.
        processes: Number of processes that measure the clips.
        seed: Seed of all random choices.

    Raises:
        ValueError: A number is out of its range.
    """

    train: str
    validation: str
    test: str
    output_dir: str
    noisy_copies: Natural = 1
    noise_snr_db: tuple[float, float] = (15.0, 40.0)
    gain_db: Annotated[float, Range(0, 100)] = 12.0
    gain_copies: Count = 4
    inverse_regularization: Annotated[float, Range(0, 1_000_000, above=True)] = 0.01
    processes: Processes = 1
    seed: Seed = 0

    def __post_init__(self) -> None:
        if not self.noise_snr_db[0] <= self.noise_snr_db[1]:
            raise ValueError(f"noise_snr_db: must be [lowest, highest]; got {list(self.noise_snr_db)}")


def train_classifier(config: ClassifierConfig) -> dict[str, Any]:
    """Train a classifier and write its folder: `config.json`, `model.safetensors` and `figures.json`.

    Returns:
        The content of `figures.json`: numbers of clips and speakers, and for `validation` and `test` what
        `measure_accuracy` gives of the clips `as_recorded` and `level_normalised`.
    Raises:
        ValueError: A manifest or a clip can't be used, or the splits don't fit each other.
    """
    splits = {name: read_clips(getattr(config, name)) for name in SPLITS}
    emotions = check_splits(splits)
    rng = random.Random(config.seed)
    jobs = list(splits["train"].jobs)
    for _ in range(config.noisy_copies):
        jobs += [job.with_noise(config.noise_snr_db, rng) for job in splits["train"].jobs]
    places = [len(jobs), len(jobs) + len(splits["validation"].jobs)]
    jobs += splits["validation"].jobs + splits["test"].jobs
    features = dict(zip(SPLITS, np.split(measure_clips(jobs, config.processes), places), strict=True))
    labels = {name: np.array([emotions.index(emotion) for emotion in clips.emotions]) for name, clips in splits.items()}
    classifier = fit(emotions, features["train"], np.tile(labels["train"], 1 + config.noisy_copies), config)

    figures: dict[str, Any] = {
        "emotions": emotions,
        "clips": {name: len(splits[name].jobs) for name in SPLITS},
        "speakers": {name: len(splits[name].speakers) for name in SPLITS},
    }
    for name in ("validation", "test"):
        figures[name] = {
            "as_recorded": measure_accuracy(classifier, features[name], labels[name]),
            "level_normalised": measure_accuracy(classifier, level_normalised(features[name]), labels[name]),
        }
    settings = {key: value for key, value in asdict(config).items() if key not in ("output_dir", "processes")}
    classifier.facts["accuracy"] = {
        name: {way: found["accuracy"] for way, found in figures[name].items()} for name in ("validation", "test")
    }
    classifier.facts["training"] = settings | {key: figures[key] for key in ("clips", "speakers")}
    classifier.save(config.output_dir)
    write_text(Path(config.output_dir) / FIGURES, json.dumps(figures, indent=1) + "\n")
    return figures


def fit(
    emotions: tuple[str, ...], features: np.ndarray, labels: np.ndarray, config: ClassifierConfig
) -> ProsodyClassifier:
    """A classifier trained on (B, N) features and (B,) int64 emotions; the same seed gives the same."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    features = np.tile(features, (config.gain_copies, 1)).astype(np.float64)
    features[:, LEVEL] += np.random.default_rng(config.seed).normal(0, config.gain_db, len(features))
    scaler = StandardScaler()
    regression = LogisticRegression(C=config.inverse_regularization, max_iter=10_000)
    make_pipeline(scaler, FunctionTransformer(limit_scores), regression).fit(
        features, np.tile(labels, config.gain_copies)
    )
    weight, bias = regression.coef_, regression.intercept_
    if len(emotions) == 2:  # scikit-learn keeps only the second one's
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    learned = (values.astype(np.float32) for values in (scaler.mean_, scaler.scale_, weight, bias))
    return ProsodyClassifier(emotions, *learned)


def level_normalised(features: np.ndarray) -> np.ndarray:
    """(B, N) -> (B, N): the features of the same clips brought to `NORMALISED_LEVEL_DB`."""
    features = features.copy()
    features[:, LEVEL] = NORMALISED_LEVEL_DB
    return features


def measure_accuracy(classifier: ProsodyClassifier, features: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """`accuracy`, `recall` by emotion (None where the clips have none of it), and `confusion`, a row for each emotion
    that was meant with the numbers of those heard.

    Args:
        classifier: A trained one.
        features: (B, N).
        labels: (B,) int64.
    """
    from sklearn.metrics import confusion_matrix

    heard = classifier.logits(features).argmax(1)
    confusion = confusion_matrix(labels, heard, labels=range(len(classifier.emotions)))
    right, meant = confusion.diagonal().tolist(), confusion.sum(1).tolist()
    return {
        "accuracy": round(sum(right) / len(labels), 4),
        "recall": {
            emotion: round(right[i] / meant[i], 4) if meant[i] else None
            for i, emotion in enumerate(classifier.emotions)
        },
        "confusion": confusion.tolist(),
    }
