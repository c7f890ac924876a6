"""`lightning-s2s manifest`: a corpus of speech recognition or emotion on disk as a manifest for stage 1 or 2."""

from __future__ import annotations

from lightning_s2s.commands.settings import parse_settings


def run(name: str, arguments: list[str]) -> int:
    """Make the manifest, and say what came out.

    Raises:
        CommandError: a mistake in the options.
        ValueError: the corpus can't be read, or nothing of it is left.
    """
    from lightning_s2s.construction.corpus_manifest import ManifestConfig, describe, make_manifest

    config = parse_settings(f"lightning-s2s {name}", ManifestConfig, arguments)
    report = make_manifest(config)
    print(f"{config.out}: {report.num_rows} rows of {report.num_recordings} recordings, {report.hours:.2f} hours")
    print(f"emotions: {describe(report.emotions)}")
    print(f"left out: {describe(report.left_out)}")
    return 0
