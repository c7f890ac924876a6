"""The data card of a corpus: what is in it, how it was made, and what nobody looked at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from lightning_s2s.construction.speech.augmentation import COLOURS, Augmentation
from lightning_s2s.construction.speech.prosody import Prosody
from lightning_s2s.construction.writing import GrammarWriter, PromptedWriter
from lightning_s2s.data.tasks import SPLITS
from lightning_s2s.support.files import write_text

if TYPE_CHECKING:
    from lightning_s2s.construction.outcome import Outcome

NOT_STATED = "not stated"

HUB_LICENCES = {
    "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0",
    "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0",
    "cdla-permissive-2.0", "cdla-sharing-1.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "mit", "mpl-2.0", "odbl", "odc-by",
    "openrail", "pddl", "unlicense",
}  # fmt: skip
"""Those of the hub's names that a corpus may have; another licence is `other` there, with its name."""

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
"""Filters -> what nobody looked at where none of them ran."""

OTHER_STEPS = {"writing": "not written", "speech": "not spoken"}

NO_THRESHOLDS = ("attempts", "batch_size", "concurrency", "device")
"""Settings of filters that the card leaves out."""


def write_card(path: Path, outcome: Outcome, config: CorpusConfig) -> None:
    """Write the data card in Markdown, with the header that the Hugging Face hub reads.

    Args:
        path: `README.md` of the corpus folder.
        outcome: of the run.
        config: of the run.
    """
    write_text(path, card(outcome, config))


def card(outcome: Outcome, config: CorpusConfig) -> str:
    """The data card; arguments as those of `write_card`. The same run gives the same text."""
    import yaml

    head = yaml.safe_dump(header(outcome, config), sort_keys=False, allow_unicode=True, width=1000)
    sections = [
        f"---\n{head}---\n\n# Synthetic spoken dialogues",
        _summary(outcome, config),
        f"## Contents\n\n{_contents(outcome)}",
        f"## How it was made\n\n{_bullets(_origin(outcome, config))}",
        f"### Filters\n\n{_filters(outcome, config)}",
        f"## Licences\n\n{_table(('part', 'licence'), _licences(config))}",
        f"## Limits\n\n{_bullets(_limits(outcome, config))}",
    ]
    return "\n\n".join(sections) + "\n"


def header(outcome: Outcome, config: CorpusConfig) -> dict[str, Any]:
    """What the hub reads of the card; what is not known is left out."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    names = [language.lower() for language in _languages(outcome)]
    codes = [TO_LANGUAGE_CODE.get(name, name if name in TO_LANGUAGE_CODE.values() else "") for name in names]
    licence = config.licences.get("corpus", "")
    known = licence.lower() in HUB_LICENCES
    count = len(outcome.kept)
    entries: dict[str, Any] = {
        "pretty_name": "Synthetic spoken dialogues",
        "language": list(dict.fromkeys(code for code in codes if code)),
        "license": (licence.lower() if known else "other") if licence else "",
        "license_name": "" if known else licence,
        "task_categories": ["audio-to-audio"],
        "size_categories": [size_category(count)],
    }
    if outcome.dataset is not None:
        files = [{"split": split, "path": f"{outcome.dataset}/data/{split}-*.parquet"} for split in _splits(outcome)]
        entries["configs"] = [{"config_name": "default", "data_files": files}]
    return {key: value for key, value in entries.items() if value}


def size_category(count: int) -> str:
    """The hub's name of a number of rows."""
    bounds = [(10**3, "1K"), (10**4, "10K"), (10**5, "100K"), (10**6, "1M"), (10**7, "10M")]
    lower = ""
    for bound, name in bounds:
        if count < bound:
            return f"{lower}<n<{name}" if lower else f"n<{name}"
        lower = name
    return f"n>{lower}"


def _summary(outcome: Outcome, config: CorpusConfig) -> str:
    turns = max(len(candidate.dialogue.turns) for candidate in outcome.kept)
    length = "one turn each" if turns == 1 else f"up to {turns} turns"
    languages = ", ".join(_languages(outcome))
    text = (
        f"{len(outcome.kept):,} spoken dialogues of {length}{f', in {languages}' if languages else ''}: what a user "
        "says, in words and voice, with an emotion, and a spoken reply that is meant to fit both. A minimal pair is a "
        "group of dialogues that share voice and first words and differ in emotion. Made by `lightning-s2s construct`."
    )
    files = ["`questions.zip` holds the users' recordings"]
    if config.vocoder is not None:
        files.append("the `.jsonl.gz` files are the manifests to train on")
    if outcome.dataset is not None:
        files.append(
            f"`{outcome.dataset}` holds the dialogues for the package `datasets`, with the replies' recordings"
        )
    return f"{text}\n\n{'; '.join(files)}."


def _contents(outcome: Outcome) -> str:
    splits = _splits(outcome)
    voices = [_voices(outcome.kept, split) for split in splits]
    rows = []
    for split in (*splits, "all") if len(splits) > 1 else splits:
        chosen = [c for c in outcome.kept if split in (c.dialogue.split, "all")]
        asked = sum(outcome.seconds[outcome.clips[name]] for c in chosen for name in c.dialogue.clip_ids)
        said = sum(outcome.seconds[clip] for c in chosen for clip in c.replies)
        turns = sum(len(candidate.dialogue.turns) for candidate in chosen)
        counts = (len(chosen), turns, _minimal_pairs(chosen), len(_voices(chosen)))
        rows.append((split, *(f"{count:,}" for count in counts), f"{asked / 60:.1f}", f"{said / 60:.1f}"))
    heads = ("split", "dialogues", "turns", "minimal pairs", "users' voices", "minutes of users", "minutes of replies")
    emotions = list(dict.fromkeys(turn.emotion for c in outcome.kept for turn in c.dialogue.turns))
    counted = [
        (emotion, *(f"{_turns_with(outcome.kept, split, emotion):,}" for split in splits)) for emotion in emotions
    ]
    parts = [_table(heads, rows)]
    spoken = [clip for candidate in outcome.kept for clip in candidate.replies]
    if len(set(spoken)) < len(spoken):
        parts.append(f"{len(set(spoken)):,} replies are distinct; one that is said again counts again.")
    if len(splits) > 1 and len(set.union(*map(set, voices))) == sum(map(len, voices)):
        parts.append("No user's voice is in more than one split.")
    parts.append(f"Users' turns by emotion:\n\n{_table(('emotion', *splits), counted)}")
    return "\n\n".join(parts)


def _minimal_pairs(candidates: Sequence[Candidate]) -> int:
    """Groups of which at least two with different emotions are left."""
    emotions: dict[tuple[str, str], set[str]] = {}
    for candidate in candidates:
        dialogue = candidate.dialogue
        emotions.setdefault((dialogue.split, dialogue.pair), set()).add(dialogue.turns[0].emotion)
    return sum(len(of_pair) > 1 for of_pair in emotions.values())


def _turns_with(candidates: Sequence[Candidate], split: str, emotion: str) -> int:
    return sum(t.emotion == emotion for c in candidates if c.dialogue.split == split for t in c.dialogue.turns)


def _origin(outcome: Outcome, config: CorpusConfig) -> Iterable[str]:
    """How it was made, a line for each part."""
    about = dict(config.writer.description)
    words = about.pop("writer", type(config.writer).__name__)
    yield f"**Words**: {words}{''.join(f'; {label}: {text}' for label, text in about.items())}"
    if outcome.usage.output_tokens:
        cost = config.writer.cost(outcome.usage)
        price = "" if cost is None else f"; cost {cost:.4f}, by the prices that the configuration names"
        read, written = outcome.usage.input_tokens, outcome.usage.output_tokens
        yield f"**Tokens** of all LLMs: {read:,} read, {written:,} written{price}"
    voices = "; ".join(f"{split} {', '.join(_voices(outcome.kept, split))}" for split in _splits(outcome))
    yield f"**Users' voices**: {_engine(config.tts)}, speed {config.user_speed:g}; {voices}"
    if config.tts.has_emotions:
        yield f"**Emotion**: the engine is asked for it{' and for a style' if _has_styles(outcome) else ''}"
    if config.prosody is not None:
        changes = "; ".join(f"{emotion}: {_prosody(prosody)}" for emotion, prosody in config.prosody.items())
        share = f", with a random share (jitter {config.jitter:g}) for each line" if config.jitter else ""
        yield f"**Prosody**: changed by WORLD{share}; {changes}"
    if config.augmentation is not None:
        yield f"**Augmentation**: {_augmentation(config.augmentation)}"
    assistant = config.assistant_tts or config.tts
    yield f"**Replies**: {_engine(assistant)}, voice {config.assistant_voice}, speed {config.assistant_speed:g}"
    if config.assistant_prosody:
        changes = "; ".join(f"{emotion}: {_prosody(prosody)}" for emotion, prosody in config.assistant_prosody.items())
        yield f"**Prosody of the replies**: changed by WORLD; {changes}"
    if config.vocoder is not None:
        vocoder = config.vocoder
        identity = f", weights `{outcome.weights}`" if outcome.weights else ""
        yield (
            f"**Units** of the replies: {type(vocoder).__name__}, {vocoder.unit_rate_hz:g} a second of "
            f"{vocoder.num_units:,} different ones{identity}"
        )
    yield f"**Seed**: {config.seed}"


def _engine(tts: SpeechSynthesizer) -> str:
    return f"{type(tts).__name__} (`{tts.identity}`)"


def _prosody(prosody: Prosody) -> str:
    """What it changes."""
    changed = [item.name for item in fields(prosody) if getattr(prosody, item.name) != item.default]
    return ", ".join(f"{name} {getattr(prosody, name):g}" for name in changed) or "unchanged"


def _augmentation(augmentation: Augmentation) -> str:
    """What may happen to a recording."""
    parts = [f"{augmentation.share:.0%} of the questions of {', '.join(augmentation.splits)}"]
    if augmentation.room_sec:
        parts.append(f"simulated room, reverberation {_range(augmentation.room_sec)} s")
    if augmentation.noise:
        parts.append(f"noise ({', '.join(augmentation.noise)}) at {_range(augmentation.snr_db)} dB")
    if augmentation.bands_hz:
        parts.append(f"band {' or '.join(map(_range, augmentation.bands_hz))} Hz")
    if augmentation.level_db:
        parts.append(f"level {_range(augmentation.level_db)} dB")
    return "; ".join(parts)


def _range(limits: Sequence[float]) -> str:
    return f"{limits[0]:g} to {limits[1]:g}"


def _filters(outcome: Outcome, config: CorpusConfig) -> str:
    """Filters with their thresholds, and what was left out at every step."""
    lost = outcome.rejections()
    settings = {kind.name: (type(kind).__name__, _thresholds(kind)) for kind in config.filters}
    rows = [(OTHER_STEPS.get(name, name), "", f"{count:,}") for name, count in lost.items() if name not in settings]
    rows += [(title, thresholds, f"{lost[name]:,}") for name, (title, thresholds) in settings.items()]
    yielded = f"{len(outcome.kept):,} of {len(outcome.candidates):,} dialogues were kept."
    if not config.filters:
        yielded += " No filter ran."
    return f"{yielded}\n\n{_table(('step', 'settings', 'left out'), rows)}" if rows else yielded


def _thresholds(kind: Filter) -> str:
    """A filter's settings; a model among them by what it is."""
    found = []
    for name, value in vars(kind).items():
        if name.startswith("_") or name in NO_THRESHOLDS or value is None or value == {}:
            continue
        identity = getattr(value, "identity", None)
        found.append(f"{name} `{identity}`" if identity else f"{name} {value}")
    return ", ".join(found)


def _licences(config: CorpusConfig) -> list[tuple[str, str]]:
    """Part -> licence: what the configuration says, then what the parts say of themselves."""
    known = {"corpus": "", "writer": "", "tts": config.tts.licence}
    if config.assistant_tts is not None:
        known["assistant_tts"] = config.assistant_tts.licence
    if config.vocoder is not None:
        licence = config.vocoder.licence
        known["vocoder"] = f"{licence} (of its published weights)" if licence else ""
    if config.augmentation is not None and set(config.augmentation.noise) - set(COLOURS):
        known["noise"] = ""
    known |= config.licences
    return [(part, licence or NOT_STATED) for part, licence in known.items()]


def _limits(outcome: Outcome, config: CorpusConfig) -> Iterable[str]:
    """What follows from how it was made."""
    engines = {type(tts).__name__ for tts in (config.tts, config.assistant_tts) if tts is not None}
    yield (
        f"**Synthetic voices**: {' and '.join(sorted(engines))}, {len(_voices(outcome.kept))} of users and one of the "
        "assistant. People speak in more ways."
    )
    yield f"**Nobody has read or listened**: no step asks a person. {_written(config)}".rstrip()
    if config.prosody is not None:
        yield (
            "**Emotion by signal processing**: fixed rules change the voice. A model that "
            "recognises them need not recognise people's emotions."
        )
    if config.tts.has_emotions:
        yield "**Emotion as asked for**: the label is what the engine was asked for, not what somebody heard."
    assistant = config.assistant_tts or config.tts
    replies = {turn.reply_emotion for candidate in outcome.kept for turn in candidate.dialogue.turns}
    if not assistant.has_emotions and not config.assistant_prosody and replies != {"neutral"}:
        yield "**Replies are spoken neutrally**: their engine has no emotions, whatever `reply_emotion` says."
    if max(len(candidate.dialogue.turns) for candidate in outcome.kept) == 1:
        yield "**One turn**: nothing that a user or the assistant says refers to what was said before."
    if missing := [split for split in SPLITS if split not in _splits(outcome)]:
        yield f"**No dialogues for {' and '.join(missing)}**."
    if config.augmentation is not None and any(kind.hears for kind in config.filters):
        yield "**Filters heard the recordings before augmentation**."
    pairs = any(candidate.dialogue.ambiguous for candidate in outcome.kept)
    unchecked = [
        what
        for kinds, what in UNCHECKED
        if not any(isinstance(kind, kinds) for kind in config.filters) and (pairs or FeelingWords not in kinds)
    ]
    if unchecked:
        yield f"**Not checked by any filter**: {'; '.join(unchecked)}."


def _written(config: CorpusConfig) -> str:
    if isinstance(config.writer, PromptedWriter):
        return "The words are an LLM's, with its habits."
    return "The words are a grammar's, whose patterns repeat." if isinstance(config.writer, GrammarWriter) else ""


def _has_styles(outcome: Outcome) -> bool:
    return any(turn.style for candidate in outcome.kept for turn in candidate.dialogue.turns)


def _languages(outcome: Outcome) -> list[str]:
    """As the seeds name them."""
    named = (candidate.dialogue.seed.get("language", "") for candidate in outcome.kept)
    return list(dict.fromkeys(language for language in named if language))


def _splits(outcome: Outcome) -> list[str]:
    """Those that have dialogues."""
    present = {candidate.dialogue.split for candidate in outcome.kept}
    return [split for split in SPLITS if split in present]


def _voices(candidates: Sequence[Candidate], split: str | None = None) -> list[str]:
    """The users', of one split or of all."""
    return list(dict.fromkeys(c.dialogue.speaker for c in candidates if split in (None, c.dialogue.split)))


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {' '.join(line.split())}" for line in lines)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())
