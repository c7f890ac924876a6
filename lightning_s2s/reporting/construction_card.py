"""The data card of a corpus: what is in it, how it was made, and what nobody checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_s2s.construction.config import CorpusConfig
from lightning_s2s.construction.dialogue import Candidate
from lightning_s2s.construction.filters import (
    Duration,
    EmotionAgreement,
    FeelingWords,
    Filter,
    NearDuplicates,
    ProsodyAgreement,
    Quality,
    ReplyFits,
    SafetyWords,
    SpeakerSimilarity,
    WordError,
)
from lightning_s2s.construction.speech import SpeechSynthesizer
from lightning_s2s.construction.speech.prosody import Prosody
from lightning_s2s.construction.writing import GrammarWriter, PromptedWriter
from lightning_s2s.data.augmentation import CorpusAugmentation
from lightning_s2s.data.effects import COLOURS
from lightning_s2s.data.tasks import SPLITS
from lightning_s2s.reporting.pages import TEMPLATES
from lightning_s2s.reporting.tables import escape_markdown, markdown_table
from lightning_s2s.support.files import write_text

if TYPE_CHECKING:
    from huggingface_hub import DatasetCardData

    from lightning_s2s.construction.outcome import Outcome

HUB_LICENCES = {
    "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0",
    "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0",
    "cdla-permissive-2.0", "cdla-sharing-1.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "mit", "mpl-2.0", "odbl", "odc-by",
    "openrail", "pddl", "unlicense",
}  # fmt: skip
"""The hub's licence ids that suit a corpus; any other licence is `other` there, with its name."""
SIZES = {10**3: "1K", 10**4: "10K", 10**5: "100K", 10**6: "1M", 10**7: "10M"}

UNCHECKED: list[tuple[tuple[type[Filter], ...], str]] = [
    ((WordError,), "whether the recordings say their words"),
    ((EmotionAgreement, ProsodyAgreement), "whether the emotion can be heard"),
    ((SpeakerSimilarity,), "whether recordings sound like their voice"),
    ((Quality,), "how good they sound"),
    ((Duration,), "whether some are too long, too short or silent"),
    ((ReplyFits,), "whether the replies fit"),
    ((SafetyWords,), "whether unsafe words are said"),
    ((FeelingWords,), "whether the words of a minimal pair name a feeling"),
    ((NearDuplicates,), "whether dialogues repeat each other"),
]
"""Filters -> what nobody checked if none of them ran."""
OTHER_STEPS = {"writing": "not written", "speech": "not spoken"}
NO_THRESHOLDS = ("attempts", "batch_size", "concurrency", "device")
"""Settings of filters that the card leaves out."""


def write_card(path: Path, outcome: Outcome, config: CorpusConfig) -> None:
    """Write the data card: Markdown with the metadata that the Hugging Face Hub reads.

    Args:
        path: `README.md` of the corpus folder.
        outcome: Outcome of the run.
        config: Configuration of the run.
    """
    write_text(path, card(outcome, config))


def card(outcome: Outcome, config: CorpusConfig) -> str:
    """Text of the data card, the same for the same run. No name or text in it can add markup or metadata."""
    from huggingface_hub import DatasetCard

    values = _escaped({**_contents(outcome), **_origin(outcome, config), **_checks(outcome, config)})
    template = str(TEMPLATES / "corpus_card.md")
    text = str(DatasetCard.from_template(metadata(outcome, config), template, table=markdown_table, **values))
    return text.rstrip() + "\n"


def metadata(outcome: Outcome, config: CorpusConfig) -> DatasetCardData:
    """Metadata for the hub; what is not known is left out."""
    from huggingface_hub import DatasetCardData
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    names = [language.lower() for language in _languages(outcome)]
    codes = [TO_LANGUAGE_CODE.get(name, name if name in TO_LANGUAGE_CODE.values() else "") for name in names]
    licence = " ".join(config.licences.get("corpus", "").split())
    known = licence.lower() in HUB_LICENCES
    files = [{"split": split, "path": f"{outcome.dataset}/data/{split}-*.parquet"} for split in _splits(outcome)]
    return DatasetCardData(
        pretty_name="Synthetic spoken dialogues",
        language=list(dict.fromkeys(code for code in codes if code)) or None,
        license=(licence.lower() if known else "other") if licence else None,
        license_name=None if known else licence or None,
        task_categories=["audio-to-audio"],
        size_categories=[size_category(len(outcome.kept))],
        configs=[{"config_name": "default", "data_files": files}] if outcome.dataset is not None else None,
    )


def size_category(count: int) -> str:
    """The hub's name for a number of rows."""
    below = [name for bound, name in SIZES.items() if bound <= count]
    above = [name for bound, name in SIZES.items() if bound > count]
    if not above:
        return f"n>{below[-1]}"
    return f"{below[-1]}<n<{above[0]}" if below else f"n<{above[0]}"


def _escaped(value: Any) -> Any:
    """A value with all of its strings escaped for Markdown."""
    if isinstance(value, str):
        return escape_markdown(value)
    if isinstance(value, Mapping):
        return {key: _escaped(part) for key, part in value.items()}
    return [_escaped(part) for part in value] if isinstance(value, list | tuple) else value


# --- contents ---------------------------------------------------------------------------------------------------------


def _contents(outcome: Outcome) -> dict[str, Any]:
    kept, splits = outcome.kept, _splits(outcome)
    voices = [_voices(kept, split) for split in splits]
    spoken = [clip for candidate in kept for clip in candidate.replies]
    emotions = dict.fromkeys(turn.emotion for candidate in kept for turn in candidate.dialogue.turns)
    return {
        "num_dialogues": f"{len(kept):,}",
        "num_candidates": f"{len(outcome.candidates):,}",
        "num_voices": len(_voices(kept)),
        "max_turns": max(len(candidate.dialogue.turns) for candidate in kept),
        "languages": _languages(outcome),
        "dataset": outcome.dataset,
        "splits": splits,
        "missing_splits": [split for split in SPLITS if split not in splits],
        "counts": [_counts(outcome, split) for split in ([*splits, "all"] if len(splits) > 1 else splits)],
        "emotions": [[emotion, *(f"{_num_turns(kept, split, emotion):,}" for split in splits)] for emotion in emotions],
        "repeated_replies": f"{len(set(spoken)):,}" if len(set(spoken)) < len(spoken) else "",
        "distinct_voices": len(splits) > 1 and len(set().union(*voices)) == sum(map(len, voices)),
    }


def _counts(outcome: Outcome, split: str) -> list[str]:
    """A row of the table of contents; `split` may be "all"."""
    chosen = [c for c in outcome.kept if split in (c.dialogue.split, "all")]
    question_sec, reply_sec = outcome.speech_sec(chosen)
    turns = sum(len(candidate.dialogue.turns) for candidate in chosen)
    counts = (len(chosen), turns, _num_minimal_pairs(chosen), len(_voices(chosen)))
    return [split, *(f"{count:,}" for count in counts), f"{question_sec / 60:.1f}", f"{reply_sec / 60:.1f}"]


def _num_minimal_pairs(candidates: Sequence[Candidate]) -> int:
    """Number of pairs of which at least two emotions are left."""
    emotions: dict[tuple[str, str], set[str]] = {}
    for candidate in candidates:
        dialogue = candidate.dialogue
        emotions.setdefault((dialogue.split, dialogue.pair), set()).add(dialogue.turns[0].emotion)
    return sum(len(of_pair) > 1 for of_pair in emotions.values())


def _num_turns(candidates: Sequence[Candidate], split: str, emotion: str) -> int:
    return sum(t.emotion == emotion for c in candidates if c.dialogue.split == split for t in c.dialogue.turns)


def _languages(outcome: Outcome) -> list[str]:
    named = (candidate.dialogue.seed.get("language", "") for candidate in outcome.kept)
    return list(dict.fromkeys(language for language in named if language))


def _splits(outcome: Outcome) -> list[str]:
    """Splits that have dialogues."""
    present = {candidate.dialogue.split for candidate in outcome.kept}
    return [split for split in SPLITS if split in present]


def _voices(candidates: Sequence[Candidate], split: str | None = None) -> list[str]:
    """Users' voices, of one split or of all."""
    return list(dict.fromkeys(c.dialogue.speaker for c in candidates if split in (None, c.dialogue.split)))


# --- origin -----------------------------------------------------------------------------------------------------------


def _origin(outcome: Outcome, config: CorpusConfig) -> dict[str, Any]:
    about = dict(config.writer.description)
    words = about.pop("writer", type(config.writer).__name__)
    usage, assistant = outcome.usage, config.assistant_tts or config.tts
    cost = config.writer.cost(usage) if usage.output_tokens else None
    price = "" if cost is None else f"; cost {cost:.4f}, at the prices of the configuration"
    voices = [f"{split} {', '.join(_voices(outcome.kept, split))}" for split in _splits(outcome)]
    writers = {PromptedWriter: "llm", GrammarWriter: "grammar"}
    return {
        "words": "; ".join([words, *(f"{label}: {text}" for label, text in about.items())]),
        "writer_kind": next((kind for of, kind in writers.items() if isinstance(config.writer, of)), ""),
        "tokens": f"{usage.input_tokens:,} read, {usage.output_tokens:,} written{price}" if usage.output_tokens else "",
        "user_engine": _engine(config.tts),
        "user_voices": "; ".join(voices),
        "user_speed": f"{config.user_speed:g}",
        "engine_acts": config.tts.has_emotions,
        "styled": any(turn.style for candidate in outcome.kept for turn in candidate.dialogue.turns),
        "prosody": _prosody(config.prosody or {}),
        "jitter": f"{config.jitter:g}" if config.jitter else "",
        "augmentation": "" if config.augmentation is None else _augmentation(config.augmentation),
        "reply_engine": _engine(assistant),
        "reply_voice": config.assistant_voice,
        "reply_speed": f"{config.assistant_speed:g}",
        "reply_prosody": _prosody(config.assistant_prosody or {}),
        "units": _units(outcome, config),
        "seed": config.seed,
        "licences": _licences(config),
        "engines": sorted({type(tts).__name__ for tts in (config.tts, assistant)}),
    }


def _engine(tts: SpeechSynthesizer) -> str:
    return f"{type(tts).__name__} ({tts.identity})"


def _prosody(of_emotions: Mapping[str, Prosody]) -> str:
    """What changes for each emotion."""
    changes = []
    for emotion, prosody in of_emotions.items():
        changed = [item.name for item in fields(prosody) if getattr(prosody, item.name) != item.default]
        changes.append(f"{emotion}: {', '.join(f'{n} {getattr(prosody, n):g}' for n in changed) or 'unchanged'}")
    return "; ".join(changes)


def _augmentation(augmentation: CorpusAugmentation) -> str:
    parts = [f"{augmentation.share:.0%} of the questions of {', '.join(augmentation.splits)}"]
    if augmentation.tempo:
        parts.append(f"tempo {_range(augmentation.tempo)}")
    if augmentation.pitch_semitones:
        parts.append(f"pitch {_range(augmentation.pitch_semitones)} semitones")
    if augmentation.room_sec:
        parts.append(f"simulated room, reverberation {_range(augmentation.room_sec)} s")
    if augmentation.noise:
        parts.append(f"noise ({', '.join(augmentation.noise)}) at {_range(augmentation.snr_db)} dB")
    if augmentation.bands_hz:
        parts.append(f"band {' or '.join(map(_range, augmentation.bands_hz))} Hz")
    if augmentation.codecs:
        parts.append(f"codec {' or '.join(augmentation.codecs)}")
    if augmentation.level_db:
        parts.append(f"level {_range(augmentation.level_db)} dB")
    return "; ".join(parts)


def _range(limits: Sequence[float]) -> str:
    return f"{limits[0]:g} to {limits[1]:g}"


def _units(outcome: Outcome, config: CorpusConfig) -> str:
    if (vocoder := config.vocoder) is None:
        return ""
    weights = f", weights {outcome.weights}" if outcome.weights else ""
    rate = f"{vocoder.unit_rate_hz:g} per second from a vocabulary of {vocoder.num_units:,}"
    return f"{type(vocoder).__name__}, {rate}{weights}"


def _licences(config: CorpusConfig) -> list[tuple[str, str]]:
    """Part -> licence: as the configuration states it, or else as the part itself does."""
    known = {"corpus": "", "writer": "", "tts": config.tts.licence}
    if config.assistant_tts is not None:
        known["assistant_tts"] = config.assistant_tts.licence
    if config.vocoder is not None:
        licence = config.vocoder.licence
        known["vocoder"] = f"{licence} (of its published weights)" if licence else ""
    if config.augmentation is not None and set(config.augmentation.noise) - set(COLOURS):
        known["noise"] = ""
    known |= config.licences
    return [(part, licence or "not stated") for part, licence in known.items()]


# --- checks -----------------------------------------------------------------------------------------------------------


def _checks(outcome: Outcome, config: CorpusConfig) -> dict[str, Any]:
    lost = outcome.rejections()
    own = {kind.name: (type(kind).__name__, _thresholds(kind), f"{lost[kind.name]:,}") for kind in config.filters}
    others = [(OTHER_STEPS.get(name, name), "", f"{count:,}") for name, count in lost.items() if name not in own]
    pairs = any(candidate.dialogue.ambiguous for candidate in outcome.kept)
    assistant = config.assistant_tts or config.tts
    emotions = {turn.reply_emotion for candidate in outcome.kept for turn in candidate.dialogue.turns}
    return {
        "filtered": bool(config.filters),
        "listening_filters": any(kind.hears for kind in config.filters),
        "losses": [*others, *own.values()],
        "neutral_replies": not (assistant.has_emotions or config.assistant_prosody) and emotions != {"neutral"},
        "unchecked": [
            what
            for kinds, what in UNCHECKED
            if not any(isinstance(kind, kinds) for kind in config.filters) and (pairs or FeelingWords not in kinds)
        ],
    }


def _thresholds(kind: Filter) -> str:
    """Settings of a filter; a model among them by its identity."""
    return ", ".join(
        f"{name} {getattr(value, 'identity', value)}"
        for name, value in vars(kind).items()
        if not name.startswith("_") and name not in NO_THRESHOLDS and value is not None and value != {}
    )
