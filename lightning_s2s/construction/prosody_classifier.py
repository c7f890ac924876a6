"""Which emotion a line is said with, by its prosody: a logistic regression on `prosody_features`.

Small on purpose: a corpus has few voices, and a larger model learns those by heart. Standardised features are limited,
so that a voice unlike all others moves the result by a limited amount.
"""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_s2s.components.weights import (
    WEIGHTS,
    load_tensors,
    read_json,
    read_state_dict,
    save_weights,
    weights_fingerprint,
)
from lightning_s2s.construction.prosody_features import FEATURES, LEVEL, ClipJob, measure_clip, prosody_features
from lightning_s2s.data.chat import content_items
from lightning_s2s.data.manifest import ManifestError, read_manifest
from lightning_s2s.support.files import write_text
from lightning_s2s.support.ranges import Count, Natural, NonNegative, Processes, Range, Seed, checked

SPLITS = ("train", "validation", "test")
LIMIT = 2.5
"""Standard deviations that a feature may lie off its mean."""
NORMALISED_LEVEL_DB = -26.0
"""The level of every clip, relative to full scale, where the level is to tell nothing."""
CONFIG, FIGURES = "config.json", "figures.json"


class ProsodyClassifier(nn.Module):
    """Features -> limited standard scores -> probabilities of emotions.

    Args:
        emotions: their names, at least two.

    Attributes:
        emotions: their names, in the order of the outputs.
        facts: how it was trained and how well it does, as `config.json` has it.
    """

    def __init__(self, emotions: Sequence[str]):
        super().__init__()
        self.emotions = tuple(emotions)
        self.facts: dict[str, Any] = {}
        self.register_buffer("mean", torch.zeros(len(FEATURES)))
        self.register_buffer("scale", torch.ones(len(FEATURES)))
        self.linear = nn.Linear(len(FEATURES), len(self.emotions))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @property
    def identity(self) -> str:
        """What tells its answers from those of others."""
        return f"{self.emotions} {weights_fingerprint(self)}"

    def forward(self, features: Tensor) -> Tensor:
        """(B, N) features as measured -> (B, emotions) logits."""
        return self.linear(((features - self.mean) / self.scale).clamp(-LIMIT, LIMIT))

    @torch.no_grad()
    def probabilities(self, waveform: np.ndarray, sample_rate: int) -> dict[str, float]:
        """Emotion -> probability; they add up to 1.

        Args:
            waveform: (T,) floats in [-1, 1], one spoken line.
            sample_rate: Hz.
        Raises:
            ValueError: `waveform` is not 1-D.
        """
        features = torch.from_numpy(prosody_features(waveform, sample_rate))
        return dict(zip(self.emotions, self(features[None])[0].softmax(0).tolist(), strict=True))

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        save_weights(self, folder)
        config = {"emotions": self.emotions, "features": FEATURES, **self.facts}
        write_text(Path(folder) / CONFIG, json.dumps(config, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> ProsodyClassifier:
        """What `save` wrote.

        Raises:
            ValueError: a file is missing or broken, or they don't fit each other or this version's features.
        """
        path = Path(folder) / CONFIG
        config = read_json(path)
        emotions = config.pop("emotions", None)
        named = isinstance(emotions, list) and all(isinstance(emotion, str) for emotion in emotions)
        if not named or len(set(emotions)) < 2 or len(set(emotions)) < len(emotions):
            raise ValueError(f"{path}: emotions: got {emotions!r}; a list of at least two different names is needed")
        if config.pop("features", None) != list(FEATURES):
            raise ValueError(
                f"{path}: features: are not those that this version measures; train the classifier again "
                "(lightning-s2s emotion-classifier)"
            )
        classifier = cls(emotions)
        weights = Path(folder) / WEIGHTS
        load_tensors(classifier, read_state_dict(weights, "the weights of ProsodyClassifier"), weights)
        classifier.facts = config
        return classifier.eval()


# --- training --------------------------------------------------------------------------------------------------------


@checked
@dataclass
class ClassifierConfig:
    """A classifier of emotions by prosody, trained on manifests.

    Args:
        train: manifest; the user's recordings that have an `emotion` count, and each row needs its `speaker`.
        validation: manifest that tells when to stop, with other speakers.
        test: manifest that is measured once, at the end, with again other speakers.
        output_dir: folder of the classifier; older files in it are replaced.
        noisy_copies: of each training clip, so many are added under noise.
        noise_snr_db: [lowest, highest] level of the speech above that noise.
        gain_db: standard deviation of a random gain, so that the level alone decides nothing; 0 for none.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        batch_size: clips in a step.
        max_epochs: at most so many passes.
        patience: passes without a better validation loss after which training stops.
        processes: that measure the clips.
        seed: of all that is drawn.

    Raises:
        ValueError: a number is out of its range.
    """

    train: str
    validation: str
    test: str
    output_dir: str
    noisy_copies: Natural = 1
    noise_snr_db: tuple[float, float] = (15.0, 40.0)
    gain_db: Annotated[float, Range(0, 100)] = 12.0
    learning_rate: Annotated[float, Range(0, 100, above=True)] = 5e-3
    weight_decay: NonNegative = 0.1
    batch_size: Count = 256
    max_epochs: Count = 300
    patience: Count = 20
    processes: Processes = 1
    seed: Seed = 0

    def __post_init__(self) -> None:
        if not self.noise_snr_db[0] <= self.noise_snr_db[1]:
            raise ValueError(f"noise_snr_db: must be [lowest, highest]; got {list(self.noise_snr_db)}")


@dataclass
class Clips:
    """The clips of one manifest.

    Attributes:
        path: the manifest.
        jobs: what to measure.
        emotions: of each.
        speakers: of all.
    """

    path: str
    jobs: list[ClipJob] = field(default_factory=list)
    emotions: list[str] = field(default_factory=list)
    speakers: set[str] = field(default_factory=set)


def read_clips(path: str) -> Clips:
    """The user's recordings with an emotion, each once however many rows have it.

    Raises:
        ValueError: the manifest can't be read, has no such recordings, or a row with some lacks its `speaker`.
    """
    clips, seen = Clips(path), set()
    for row in read_manifest(path):
        for item in (i for m in row["messages"] if m["role"] == "user" for i in content_items(m["content"])):
            audio, emotion = item.get("audio"), item.get("emotion")
            if not audio or not emotion or audio in seen:
                continue
            if not isinstance(row.get("speaker"), str) or not row["speaker"]:
                message = f"speaker: got {row.get('speaker')!r}; a name is needed, no speaker may be in two splits"
                raise ManifestError(row["manifest"], row["line"], "no speaker", message)
            seen.add(audio)
            clips.jobs.append(ClipJob(audio, row["folder"], row["manifest"], row["line"]))
            clips.emotions.append(emotion)
            clips.speakers.add(row["speaker"])
    if not clips.jobs:
        raise ValueError(f"{path}: no user item has audio and an emotion")
    return clips


def check_splits(splits: Mapping[str, Clips]) -> tuple[str, ...]:
    """The emotions of the training clips, sorted.

    Raises:
        ValueError: there are fewer than two, another split has others, or two splits share a speaker.
    """
    emotions = tuple(sorted(set(splits["train"].emotions)))
    if len(emotions) < 2:
        raise ValueError(f"{splits['train'].path}: has the emotion {emotions[0]!r} alone; at least two are needed")
    for name, other in (("train", "test"), ("validation", "test"), ("train", "validation")):
        shared = sorted(splits[name].speakers & splits[other].speakers)
        if shared:
            raise ValueError(
                f"{other}: {splits[other].path} shares the speaker {shared[0]!r} with {name}, {splits[name].path}; "
                "a speaker may be in one split alone"
            )
    for name in ("validation", "test"):
        for job, emotion in zip(splits[name].jobs, splits[name].emotions, strict=True):
            if emotion not in emotions:
                message = f"emotion: got {emotion!r}; the training clips have {', '.join(emotions)}"
                raise ManifestError(job.manifest, job.line, "unknown emotion", message)
    return emotions


def measure_clips(jobs: Sequence[ClipJob], processes: int) -> Tensor:
    """(clips, N) float32; the order is that of the jobs however many processes there are.

    Raises:
        ManifestError: a clip's audio can't be used.
    """
    from tqdm import tqdm

    with tqdm(total=len(jobs), desc="prosody", unit="clip") as bar:
        rows = []
        if processes == 1:
            for job in jobs:
                rows.append(measure_clip(job))
                bar.update()
        else:
            # Forking after torch has started its threads can hang.
            with multiprocessing.get_context("spawn").Pool(processes) as pool:
                for row in pool.imap(measure_clip, jobs, chunksize=16):
                    rows.append(row)
                    bar.update()
    return torch.from_numpy(np.stack(rows))


def level_normalised(features: Tensor) -> Tensor:
    """(B, N) -> (B, N): the features of the same clips brought to `NORMALISED_LEVEL_DB`."""
    features = features.clone()
    features[:, LEVEL] = NORMALISED_LEVEL_DB
    return features


def fit(
    classifier: ProsodyClassifier,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    config: ClassifierConfig,
) -> int:
    """Train the classifier, which ends with the weights of the best epoch; the same seed gives the same.

    Args:
        classifier: a new one.
        train: (B, N) features and (B,) int64 emotions.
        validation: the same; its clips count as they are and brought to one level.
        config: learning rate and so on.
    Returns:
        The best epoch, from 1.
    """
    features, labels = train
    scale = features.std(0).clamp_min(1e-3)
    scale[LEVEL] = torch.hypot(scale[LEVEL], torch.tensor(config.gain_db))
    classifier.mean.copy_(features.mean(0))
    classifier.scale.copy_(scale)
    held_out = torch.cat([validation[0], level_normalised(validation[0])])
    held_out_labels = validation[1].repeat(2)
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(
        classifier.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, foreach=False
    )
    best, best_epoch, best_weights = float("inf"), 0, {}
    for epoch in range(1, config.max_epochs + 1):
        for rows in torch.randperm(len(features), generator=generator).split(config.batch_size):
            batch = features[rows]
            batch[:, LEVEL] += torch.randn(len(rows), generator=generator) * config.gain_db
            optimizer.zero_grad()
            cross_entropy(classifier(batch), labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            loss = cross_entropy(classifier(held_out), held_out_labels).item()
        if loss < best:
            best, best_epoch = loss, epoch
            best_weights = {name: value.clone() for name, value in classifier.state_dict().items()}
        elif epoch - best_epoch >= config.patience:
            break
    classifier.load_state_dict(best_weights)
    return best_epoch


@torch.no_grad()
def measure_accuracy(classifier: ProsodyClassifier, features: Tensor, labels: Tensor) -> dict[str, Any]:
    """`accuracy`, `recall` by emotion (None where the clips have none of it), and `confusion`, a row for each emotion
    that was meant with the numbers of those heard.

    Args:
        classifier: a trained one.
        features: (B, N).
        labels: (B,) int64.
    """
    heard = classifier(features).argmax(1)
    size = len(classifier.emotions)
    confusion = torch.bincount(labels * size + heard, minlength=size**2).reshape(size, size)
    right, meant = confusion.diagonal().tolist(), confusion.sum(1).tolist()
    return {
        "accuracy": round(sum(right) / len(labels), 4),
        "recall": {
            emotion: round(right[i] / meant[i], 4) if meant[i] else None
            for i, emotion in enumerate(classifier.emotions)
        },
        "confusion": confusion.tolist(),
    }


def train_classifier(config: ClassifierConfig) -> dict[str, Any]:
    """Train a classifier and write its folder: `config.json`, `model.safetensors` and `figures.json`.

    Returns:
        The content of `figures.json`: numbers of clips and speakers, the epoch, and for `validation` and `test` what
        `measure_accuracy` gives of the clips `as_recorded` and `level_normalised`.
    Raises:
        ValueError: a manifest or a clip can't be used, or the splits don't fit each other.
    """
    splits = {name: read_clips(getattr(config, name)) for name in SPLITS}
    emotions = check_splits(splits)
    rng = random.Random(config.seed)
    jobs = list(splits["train"].jobs)
    for _ in range(config.noisy_copies):
        jobs += [job.with_noise(config.noise_snr_db, rng) for job in splits["train"].jobs]
    num_train = len(jobs)
    jobs += splits["validation"].jobs + splits["test"].jobs
    labels = {
        name: torch.tensor([emotions.index(emotion) for emotion in clips.emotions]) for name, clips in splits.items()
    }
    sizes = [num_train, len(labels["validation"]), len(labels["test"])]
    features = dict(zip(SPLITS, measure_clips(jobs, config.processes).split(sizes), strict=True))
    classifier = ProsodyClassifier(emotions)
    repeated = labels["train"].repeat(1 + config.noisy_copies)
    held_out = (features["validation"], labels["validation"])
    epoch = fit(classifier, (features["train"], repeated), held_out, config)

    figures: dict[str, Any] = {
        "emotions": emotions,
        "clips": {name: len(splits[name].jobs) for name in SPLITS},
        "speakers": {name: len(splits[name].speakers) for name in SPLITS},
        "epoch": epoch,
    }
    for name in ("validation", "test"):
        figures[name] = {
            "as_recorded": measure_accuracy(classifier, features[name], labels[name]),
            "level_normalised": measure_accuracy(classifier, level_normalised(features[name]), labels[name]),
        }
    settings = {key: value for key, value in asdict(config).items() if key not in ("output_dir", "processes")}
    classifier.facts = {
        "accuracy": {
            name: {way: found["accuracy"] for way, found in figures[name].items()} for name in ("validation", "test")
        },
        "training": settings | {key: figures[key] for key in ("clips", "speakers", "epoch")},
    }
    classifier.save(config.output_dir)
    write_text(Path(config.output_dir) / FIGURES, json.dumps(figures, indent=1) + "\n")
    return figures
