"""`lightning-s2s construct`: a corpus of spoken dialogues from a YAML and a seed."""

from __future__ import annotations

from pathlib import Path

from lightning_s2s.construction.config import CorpusConfig
from lightning_s2s.construction.outcome import NothingKeptError, Outcome
from lightning_s2s.construction.pipeline import construct as build_corpus

REPORT = "report.html"


def construct(config: CorpusConfig) -> None:
    """Make a corpus of spoken dialogues, and say what came out.

    Args:
        config: Its fields are the command's options.

    Raises:
        ValueError: Fields don't fit each other, or a file that they name is missing.
    """
    from lightning_s2s.construction.summary import summarise

    _quiet_transformers()
    print(summarise(make_corpus(config), config))
    print(f"look and listen: {config.work_dir}/{REPORT}")


def make_corpus(config: CorpusConfig) -> Outcome:
    """Make the corpus with its data card, `README.md` in `output_dir`, and its report, `report.html` in `work_dir`.

    The report shows what was made and what was left out, to look at and listen to.

    Raises:
        ValueError: As `lightning_s2s.construction.pipeline.construct`; the report is also written where no dialogue is
            left.
    """
    from lightning_s2s.reporting.construction_card import write_card
    from lightning_s2s.reporting.construction_report import write_report

    report = Path(config.work_dir) / REPORT
    try:
        outcome = build_corpus(config)
    except NothingKeptError as error:
        raise ValueError(f"{error}; see {write_report(report, error.outcome, config)}") from None
    write_card(Path(config.output_dir) / "README.md", outcome, config)
    write_report(report, outcome, config)
    return outcome


def _quiet_transformers() -> None:
    """Its progress bars and its remarks on generation would break the bars of the steps."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
