"""`lightning-s2s construct`: a corpus of spoken dialogues from a YAML and a seed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning_s2s.commands.messages import Names
from lightning_s2s.commands.settings import parse_settings
from lightning_s2s.components.registry import REGISTRY

if TYPE_CHECKING:
    from lightning_s2s.construction.config import CorpusConfig
    from lightning_s2s.construction.outcome import Outcome

REPORT = "report.html"


def run(name: str, arguments: list[str]) -> int:
    """Parse the configuration, make the corpus, and say what came out.

    Raises:
        CommandError: a mistake in the options or the YAML.
        ValueError: fields don't fit each other, or a file that they name is missing.
    """
    from lightning_s2s.construction.chat import ChatModel
    from lightning_s2s.construction.config import CorpusConfig
    from lightning_s2s.construction.filters import Filter
    from lightning_s2s.construction.running import Runner
    from lightning_s2s.construction.speech import SpeechSynthesizer
    from lightning_s2s.construction.summary import summarise
    from lightning_s2s.construction.writing import DialogueWriter

    REGISTRY.load()
    names: Names = {
        "tts": ("engine", subclasses(SpeechSynthesizer)),
        "assistant_tts": ("engine", subclasses(SpeechSynthesizer)),
        "writer": ("writer", subclasses(DialogueWriter)),
        "chat": ("LLM", subclasses(ChatModel)),
        "filters": ("filter", subclasses(Filter)),
        "runner": ("runner", subclasses(Runner)),
    }
    config = parse_settings(f"lightning-s2s {name}", CorpusConfig, arguments, names)
    _quiet_transformers()
    print(summarise(make_corpus(config), config))
    print(f"look and listen: {config.work_dir}/{REPORT}")
    return 0


def make_corpus(config: CorpusConfig) -> Outcome:
    """The corpus, with `README.md`, its data card, in `output_dir`, and `report.html` in `work_dir`: what was made, and
    what was left out, to look at and listen to.

    Raises:
        ValueError: as `construct`; where no dialogue is left, the report is there all the same.
    """
    from lightning_s2s.construction.outcome import NothingKeptError
    from lightning_s2s.construction.pipeline import construct
    from lightning_s2s.reporting.construction_card import write_card
    from lightning_s2s.reporting.construction_report import write_report

    report = Path(config.work_dir) / REPORT
    try:
        outcome = construct(config)
    except NothingKeptError as error:
        raise ValueError(f"{error}; see {write_report(report, error.outcome, config)}") from None
    write_card(Path(config.output_dir) / "README.md", outcome, config)
    write_report(report, outcome, config)
    return outcome


def _quiet_transformers() -> None:
    """Its bars and its remarks on generation would tear the steps' bars apart."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def subclasses(base: type) -> list[str]:
    """Names of the classes that extend `base` and can be built, sorted."""
    found: list[str] = []
    children: list[type] = base.__subclasses__()
    for child in children:
        found += subclasses(child) + ([] if child.__name__.startswith("_") else [child.__name__])
    return sorted(found)
