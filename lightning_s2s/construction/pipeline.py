"""From a configuration to a corpus: write, filter, speak, listen, tokenise, write out. What a step found is kept."""

from __future__ import annotations

import itertools
import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lightning_s2s.construction.config import CorpusConfig
from lightning_s2s.construction.dataset_folder import write_dataset
from lightning_s2s.construction.dialogue import Candidate, Dialogue, Reading, Usage
from lightning_s2s.construction.filters import Filter, FilterStep, Heard
from lightning_s2s.construction.rows import (
    dialogue_row,
    language_rows,
    speech_row,
    understanding_rows,
    voice_row,
    write_manifest,
)
from lightning_s2s.construction.running import Failure, Local, Step, run_step
from lightning_s2s.construction.speaking import Delivery, Line, SpeakLines, SpeakTexts, Tokenise
from lightning_s2s.construction.writing import Order
from lightning_s2s.data.tasks import SPLITS
from lightning_s2s.support.files import replacing
from lightning_s2s.support.ranges import device_of
from lightning_s2s.support.reading import parse_json, reading

DATASET = "dataset"
"""Folder of `output_dir`."""
TIMING = "timing.jsonl"
"""File of `work_dir`: how long steps took."""
REFERENCE = "The rainbow is a division of white light into many beautiful colors."
"""What every voice says once where a filter compares voices."""


@dataclass
class Outcome:
    """What a run made.

    Attributes:
        candidates: every dialogue that was asked for, with its figures, and why it was left out, if it was.
        usage: what servers and models were asked for.
        question_sec: sound of the users in what was kept.
        reply_sec: sound of the assistant in it.
        clips: line's id -> its recording, in `work_dir`.
        seconds: of each recording.
        weights: fingerprint of the vocoder's weights, "" without one.
        dataset: folder of `output_dir` for the package datasets, None without one.
        timing: step -> items that were done, in this run and those before, and the seconds that they took.
        incomplete: items -> why they could not be done; another run tries them again.
    """

    candidates: list[Candidate]
    usage: Usage
    question_sec: float = 0.0
    reply_sec: float = 0.0
    clips: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    weights: str = ""
    dataset: str | None = None
    timing: dict[str, tuple[int, float]] = field(default_factory=dict)
    incomplete: Counter[str] = field(default_factory=Counter)

    @property
    def kept(self) -> list[Candidate]:
        """What was not left out."""
        return [candidate for candidate in self.candidates if candidate.kept]

    def rejections(self) -> Counter[str]:
        """Step -> dialogues that it left out, in the order of the steps."""
        return Counter(candidate.rejected_by for candidate in self.candidates if not candidate.kept)


class NothingKeptError(ValueError):
    """Every dialogue was left out.

    Args:
        outcome: of the run; its candidates say why.
    """

    def __init__(self, outcome: Outcome):
        reasons = Counter(f"{c.rejected_by}: {c.reason}" for c in outcome.candidates).most_common(3)
        listed = "; ".join(f"{count} x {reason}" for reason, count in reasons)
        super().__init__(f"no dialogue is left of {len(outcome.candidates)}: {listed}")
        self.outcome = outcome


class Construction:
    """One run.

    Args:
        config: what is made.

    Raises:
        ValueError: a voice or an engine's file is missing, or the vocoder has no tokenizer.
    """

    def __init__(self, config: CorpusConfig):
        self.config = config
        self.output, self.work = Path(config.output_dir), Path(config.work_dir)
        self.assistant_tts = config.assistant_tts or config.tts
        self.delivery = Delivery(config.user_speed, config.prosody, config.jitter, config.augmentation, config.seed)
        self.seconds: dict[str, float] = {}
        """Of each recording."""
        self.clips: dict[str, str] = {}
        """Line's id -> its recording for the corpus, augmented or not."""
        self.reply_clips: dict[tuple[str, str], str] = {}
        """(words, emotion) of a reply -> its recording."""
        if isinstance(config.runner, Local):  # others run steps on machines that have what this one lacks
            for part in (getattr(config.writer, "chat", None), *config.filters):
                if hasattr(part, "device"):
                    device_of(part)
        self.assistant_tts.check([config.assistant_voice])
        config.tts.check([voice for split in SPLITS for voice in config.user_voices[split]])
        if config.vocoder is not None:  # one without a tokenizer is told before anything is written
            Tokenise(config.vocoder, self.work).tokenise(np.zeros(config.vocoder.tokenizer_sample_rate, np.float32))

    def run(self) -> Outcome:
        """Make the corpus; what was done before is taken from `work_dir`."""
        config = self.config
        self.output.mkdir(parents=True, exist_ok=True)
        order = Order(
            config.user_voices, config.voice_traits, config.seed, config.runner, self.work / "steps", self._timed
        )
        self.script = config.writer.write(order)
        self.usage, self.incomplete = self.script.usage, self.script.incomplete
        for kind in config.filters:
            if not kind.hears:
                self._filter(kind)
        self._speak()
        for kind in config.filters:
            if kind.hears:
                self._filter(kind)
        outcome = Outcome(self.script.candidates, self.usage, incomplete=self.incomplete)
        outcome.clips, outcome.seconds = self.clips, self.seconds
        kept = [candidate.dialogue for candidate in outcome.kept]
        if not kept:
            raise NothingKeptError(outcome)
        readings = self.script.readings if self.script.readings is not None else list(readings_of(kept))
        readings = [reading for reading in readings if (reading.reply, reading.reply_emotion) in self.reply_clips]
        outcome.question_sec = sum(self.seconds[clip] for dialogue in kept for clip in self._clips(dialogue))
        outcome.reply_sec = sum(self.seconds[clip] for dialogue in kept for clip in self._replies(dialogue))
        places = _zip(
            self.output / "questions.zip",
            {name: self.work / clip for d in kept for name, clip in zip(d.clip_ids, self._clips(d), strict=True)},
        )
        self._write_replies(readings)
        units = None
        if config.vocoder is None:
            print(f"spoken; train a codec on {self.work}/replies_train.jsonl.gz, then construct again with --vocoder")
        else:
            step = Tokenise(config.vocoder, self.work)
            units, outcome.weights = self._tokenise(step, kept, readings), step.weights
            self._write_manifests(outcome.kept, readings, places, units)
        if config.dataset:
            write_dataset(self.output / DATASET, outcome.candidates, self.clips, units, self.work)
            outcome.dataset = DATASET
        outcome.timing = self._timing()
        return outcome

    def _step(self, step: Step, items: Sequence[Any]) -> list[Any | Failure]:
        """Run it; what went wrong on the way is counted."""
        results = run_step(step, items, self.config.runner, self.work / "steps", self._timed)
        for result in {id(result): result for result in results}.values():  # equal items share one result
            if isinstance(result, Failure):
                self.usage.add(result.usage.as_json())
                self.incomplete[f"{step.name}: {result.reason}"] += 1
            elif isinstance(result, dict):
                self.usage.add(result["usage"])
        return results

    def _timed(self, step: str, items: int, seconds: float) -> None:
        """Remember it for the runs that follow: one that goes on where another was stopped did little itself."""
        with (self.work / TIMING).open("a") as file:
            file.write(json.dumps([step, items, seconds]) + "\n")

    def _timing(self) -> dict[str, tuple[int, float]]:
        """Step -> items and seconds of all runs; a line that a kill cut off is left out."""
        total: dict[str, tuple[int, float]] = {}
        path = self.work / TIMING
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else [], start=1):
            if line.endswith(b"\n"):
                with reading(f"{path}: line {number}", "step's time; remove or rename the file"):
                    step, items, seconds = parse_json(line, f"{path}: line {number}")
                    before = total.get(step, (0, 0.0))
                    total[step] = (before[0] + items, before[1] + seconds)
        return total

    def _filter(self, kind: Filter) -> None:
        """Measure what is kept so far, and leave out what is not good enough."""
        candidates = [candidate for candidate in self.script.candidates if candidate.kept]
        voices = self._speak_references(candidates) if kind.compares_voices else {}
        heard = [
            Heard(c.dialogue, tuple(c.clips), tuple(c.replies), voices.get(c.dialogue.speaker, ())) for c in candidates
        ]
        found: list[Any | Failure]
        if kind.whole_set:
            found = list(kind.measure(heard))
        else:
            found = [
                result if isinstance(result, Failure) else result["figures"]
                for result in self._step(FilterStep(kind, self.work), heard)
            ]
        for candidate, figures in zip(candidates, found, strict=True):
            if isinstance(figures, Failure):
                candidate.reject(kind.name, figures.reason)
                continue
            candidate.figures |= figures
            if reason := kind.verdict(figures):
                candidate.reject(kind.name, reason)

    def _speak(self) -> None:
        """Record what is kept so far, and the replies that stage 2 learns from."""
        candidates = [candidate for candidate in self.script.candidates if candidate.kept]
        groups: list[list[Line]] = []
        for _, pair in itertools.groupby(candidates, key=lambda candidate: candidate.dialogue.pair):
            first, *others = [lines_of(candidate.dialogue) for candidate in pair]
            # Dialogues of a pair share their first line's words, which are rendered once.
            groups.append([first[0], *(lines[0] for lines in others)])
            groups += [[line] for lines in (first, *others) for line in lines[1:]]
        found = self._step(SpeakLines(self.config.tts, self.delivery, self.work), groups)
        clean: dict[str, str] = {}
        reasons: dict[str, str] = {}
        for group, result in zip(groups, found, strict=True):
            if isinstance(result, Failure):
                reasons |= {line.id: result.reason for line in group}
                continue
            for name, clip in result["clips"].items():
                clean[name], self.clips[name], self.seconds[clip["clip"]] = clip["clean"], clip["clip"], clip["sec"]

        replies = [(turn.reply, turn.reply_emotion) for c in candidates for turn in c.dialogue.turns]
        replies += [(reading.reply, reading.reply_emotion) for reading in self.script.readings or []]
        replies = list(dict.fromkeys(replies))
        step = SpeakTexts(
            "replies", self.assistant_tts, self.config.assistant_speed, self.work, self.config.assistant_prosody
        )
        spoken = self._step(step, [(self.config.assistant_voice, text, emotion) for text, emotion in replies])
        unsaid: dict[tuple[str, str], str] = {}
        for reply, result in zip(replies, spoken, strict=True):
            if isinstance(result, Failure):
                unsaid[reply] = result.reason
            else:
                self.reply_clips[reply], self.seconds[result["clip"]] = result["clip"], result["sec"]

        for candidate in candidates:
            said = [(turn.reply, turn.reply_emotion) for turn in candidate.dialogue.turns]
            names = candidate.dialogue.clip_ids
            lost = [reasons[n] for n in names if n in reasons] + [unsaid[reply] for reply in said if reply in unsaid]
            if lost:
                candidate.reject("speech", f"not spoken: {lost[0]}")
            else:
                candidate.clips = [clean[name] for name in names]
                candidate.replies = [self.reply_clips[reply] for reply in said]

    def _speak_references(self, candidates: Sequence[Candidate]) -> dict[str, tuple[str, str]]:
        """User's voice -> recordings of REFERENCE in it and in the assistant's."""
        config = self.config
        users = list(dict.fromkeys(candidate.dialogue.speaker for candidate in candidates))
        step = SpeakTexts("voices", config.tts, config.user_speed, self.work)
        spoken = self._step(step, [(voice, REFERENCE, "neutral") for voice in users])
        step = SpeakTexts("voice", self.assistant_tts, config.assistant_speed, self.work)
        spoken += self._step(step, [(config.assistant_voice, REFERENCE, "neutral")])
        clips = []
        for result in spoken:
            if isinstance(result, Failure):
                raise ValueError(f"a voice that a filter compares could not be spoken: {result.reason}")
            clips.append(result["clip"])
        return {voice: (clip, clips[-1]) for voice, clip in zip(users, clips[:-1], strict=True)}

    def _clips(self, dialogue: Dialogue) -> list[str]:
        return [self.clips[name] for name in dialogue.clip_ids]

    def _replies(self, dialogue: Dialogue) -> list[str]:
        return [self.reply_clips[turn.reply, turn.reply_emotion] for turn in dialogue.turns]

    def _write_replies(self, readings: Sequence[Reading]) -> None:
        """Manifests of the replies in `work_dir`, to train a codec on."""
        for split in ("train", "validation"):
            said = dict.fromkeys((r.reply, r.reply_emotion) for r in readings if r.split == split)
            rows = (voice_row(reply[0], self.reply_clips[reply]) for reply in said)
            write_manifest(self.work / f"replies_{split}.jsonl.gz", rows)

    def _tokenise(self, step: Tokenise, kept: Sequence[Dialogue], readings: Sequence[Reading]) -> dict[str, str]:
        """Recording of a reply -> its units."""
        clips = [clip for dialogue in kept for clip in self._replies(dialogue)]
        clips += [self.reply_clips[reading.reply, reading.reply_emotion] for reading in readings]
        clips = list(dict.fromkeys(clips))
        units = self._step(step, clips)
        return {clip: str(of_clip) for clip, of_clip in zip(clips, units, strict=True)}

    def _write_manifests(
        self,
        kept: Sequence[Candidate],
        readings: Sequence[Reading],
        places: dict[str, str],
        units: dict[str, str],
    ) -> None:
        for split in SPLITS:
            chosen = [candidate for candidate in kept if candidate.dialogue.split == split]
            parts = [
                (
                    c.dialogue,
                    [places[name] for name in c.dialogue.clip_ids],
                    [self.delivery.draw_augmentation(line) for line in lines_of(c.dialogue)],
                )
                for c in chosen
            ]
            write_manifest(
                self.output / f"{split}.jsonl.gz",
                (
                    dialogue_row(d, audio, [units[clip] for clip in self._replies(d)], drawn, c.figures)
                    for (d, audio, drawn), c in zip(parts, chosen, strict=True)
                ),
            )
            write_manifest(
                self.output / f"understanding_{split}.jsonl.gz",
                (row for d, audio, drawn in parts for row in understanding_rows(d, audio, drawn)),
            )
        unspoken = self.script.unspoken
        if unspoken is None:
            unspoken = [(candidate.dialogue, True) for candidate in kept]
        for split in ("train", "validation"):
            write_manifest(
                self.output / f"speech_{split}.jsonl.gz",
                (
                    speech_row(reading, units[self.reply_clips[reading.reply, reading.reply_emotion]])
                    for reading in readings
                    if reading.split == split
                ),
            )
            write_manifest(
                self.output / f"language_{split}.jsonl.gz",
                (row for d, speak in unspoken if d.split == split for row in language_rows(d, speak)),
            )


def construct(config: CorpusConfig) -> Outcome:
    """Make the corpus; what was written, spoken and measured before is taken from `work_dir`.

    Writes to `output_dir`: `questions.zip` (Ogg Opus members, uncompressed); gzipped JSONL manifests `{split}`
    (dialogues for stage 3), `understanding_{split}` (stage 1), `speech_{split}` (stage 2) and `language_{split}` (text
    for the LLM); by option, `dataset`, a folder of the package datasets.

    Raises:
        ValueError: a voice, an engine's files or a vocoder's weights are missing, a server is not there, or no dialogue
            is left.
    """
    return Construction(config).run()


def lines_of(dialogue: Dialogue) -> list[Line]:
    """What the user says in it."""
    return [
        Line(name, turn.text, dialogue.speaker, turn.emotion, turn.style, dialogue.split)
        for name, turn in zip(dialogue.clip_ids, dialogue.turns, strict=True)
    ]


def readings_of(dialogues: Iterable[Dialogue]) -> Iterable[Reading]:
    """The replies of dialogues, each behind its line; the test's are nobody's to learn from."""
    for dialogue in dialogues:
        if dialogue.split != "test":
            for name, turn in zip(dialogue.clip_ids, dialogue.turns, strict=True):
                yield Reading(f"speech-{name}", dialogue.split, turn.text, turn.emotion, turn.reply, turn.reply_emotion)


def _zip(path: Path, clips: dict[str, Path]) -> dict[str, str]:
    """Pack files uncompressed; gives each id's `archive:offset:bytes`. The same files give the same archive."""
    places = {}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for identity, clip in clips.items():
            info = zipfile.ZipInfo(f"{identity}.opus")
            content = clip.read_bytes()
            archive.writestr(info, content)
            offset = info.header_offset + 30 + len(info.filename.encode())
            places[identity] = f"{path.name}:{offset}:{len(content)}"
    return places
