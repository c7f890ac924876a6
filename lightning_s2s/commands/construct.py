"""`lightning-s2s construct`: a corpus of spoken dialogues from a YAML and a seed."""

from __future__ import annotations

from lightning_s2s.commands.messages import Names
from lightning_s2s.commands.settings import parse_settings


def run(name: str, arguments: list[str]) -> int:
    """Parse the configuration and make the corpus.

    Raises:
        CommandError: a mistake in the options or the YAML.
        ValueError: fields don't fit each other, or a file that they name is missing.
    """
    from lightning_s2s.construction.pipeline import construct
    from lightning_s2s.construction.plan import CorpusConfig
    from lightning_s2s.construction.speech import SpeechSynthesizer

    engines = sorted(engine.__name__ for engine in SpeechSynthesizer.__subclasses__())
    names: Names = {key: ("engine", engines) for key in ("tts", "assistant_tts")}
    construct(parse_settings(f"lightning-s2s {name}", CorpusConfig, arguments, names))
    return 0
