"""`lightning-s2s manifest`: a corpus of speech recognition or emotion on disk as a manifest for stage 1 or 2."""

from __future__ import annotations

from lightning_s2s.construction.corpus_manifest import ManifestConfig, describe, make_manifest


def manifest(config: ManifestConfig) -> None:
    """Make a manifest of a corpus on disk, and say what came out.

    Args:
        config: Its fields are the command's options.

    Raises:
        ValueError: The corpus can't be read, or nothing of it is left.
    """
    report = make_manifest(config)
    print(f"{config.out}: {report.num_rows} rows of {report.num_recordings} recordings, {report.hours:.2f} hours")
    print(f"emotions: {describe(report.emotions)}")
    print(f"left out: {describe(report.left_out)}")
