"""`lightning-s2s emotion-classifier`: a classifier of the emotion in a voice, trained on manifests."""

from __future__ import annotations

from lightning_s2s.construction.emotion_classifier.training import ClassifierConfig, train_classifier


def emotion_classifier(config: ClassifierConfig) -> None:
    """Train a classifier of the emotion in a voice, and say how well it does.

    Args:
        config: Its fields are the command's options.

    Raises:
        ValueError: A manifest or a clip can't be used, or the splits don't fit each other.
    """
    figures = train_classifier(config)
    clips, speakers = figures["clips"]["train"], figures["speakers"]["train"]
    print(f"{config.output_dir}: trained on {clips} clips of {speakers} speakers")
    for split in ("validation", "test"):
        found, normalised = figures[split]["as_recorded"], figures[split]["level_normalised"]
        recall = ", ".join(f"{key} {value:.1%}" for key, value in found["recall"].items() if value is not None)
        print(f"{split}: {found['accuracy']:.1%} right ({recall}); {normalised['accuracy']:.1%} at one level")
