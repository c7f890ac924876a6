"""From a configuration to a corpus: write, filter, speak, listen, tokenise, write out. What a step found is kept."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_s2s.construction.config import CorpusConfig
from lightning_s2s.construction.corpus_files import CorpusFiles
from lightning_s2s.construction.dataset_folder import write_dataset
from lightning_s2s.construction.dialogue import Candidate, Dialogue, SpokenReply
from lightning_s2s.construction.filters import Filter, FilterStep, RecordedDialogue
from lightning_s2s.construction.outcome import NothingKeptError, Outcome
from lightning_s2s.construction.running import ItemFailure, Local, PipelineStep, run_step
from lightning_s2s.construction.running.timing import StepTimes
from lightning_s2s.construction.speech.speaking import Delivery, Line, SpeakLines, SpeakTexts
from lightning_s2s.construction.units import TokeniseStep
from lightning_s2s.construction.writing import WritingJob
from lightning_s2s.data.tasks import SPLITS
from lightning_s2s.support.ranges import device_of

DATASET = "dataset"
"""Folder of `output_dir`."""
TIMING = "timing.jsonl"
"""File of `work_dir`: how long steps took."""
REFERENCE = "The rainbow is a division of white light into many beautiful colors."
"""What every voice says once where a filter compares voices."""


class Construction:
    """One run.

    Args:
        config: The corpus that is made.

    Raises:
        ValueError: A voice or an engine's file is missing, or the vocoder has no tokenizer.
    """

    def __init__(self, config: CorpusConfig):
        self.config = config
        self.output, self.work = Path(config.output_dir), Path(config.work_dir)
        self.assistant_tts = config.assistant_tts or config.tts
        self.times = StepTimes(self.work / TIMING)
        self.reply_clips: dict[tuple[str, str], str] = {}
        """(words, emotion) of a reply -> its recording."""
        if isinstance(config.runner, Local):  # others run steps on machines that have what this one lacks
            for part in (getattr(config.writer, "chat", None), *config.filters):
                if hasattr(part, "device"):
                    device_of(part)
        self.assistant_tts.check([config.assistant_voice])
        config.tts.check([voice for split in SPLITS for voice in config.user_voices[split]])
        if config.vocoder is not None:  # one without a tokenizer is told before anything is written
            silence = np.zeros(config.vocoder.tokenizer_sample_rate, np.float32)
            TokeniseStep(config.vocoder, self.work).tokenise(silence)

    def run(self) -> Outcome:
        """Make the corpus; what was done before is taken from `work_dir`.

        Raises:
            NothingKeptError: No dialogue is left.
        """
        self._write()
        self._filter(needs_audio=False)
        self._speak()
        self._filter(needs_audio=True)
        if not self.outcome.kept:
            raise NothingKeptError(self.outcome)
        self._write_out()
        self.outcome.timing = self.times.total()
        return self.outcome

    def _step(self, step: PipelineStep, items: Sequence[Any]) -> list[Any | ItemFailure]:
        """Run a step; what went wrong on the way is counted."""
        results = run_step(step, items, self.config.runner, self.work / "steps", self.times.add)
        for result in {id(result): result for result in results}.values():  # equal items share one result
            if isinstance(result, ItemFailure):
                self.outcome.usage.add(result.usage.as_json())
                self.outcome.incomplete[f"{step.name}: {result.reason}"] += 1
            elif isinstance(result, dict):
                self.outcome.usage.add(result["usage"])
        return results

    # --- writing and filtering ---------------------------------------------------------------------------------------

    def _write(self) -> None:
        config = self.config
        self.output.mkdir(parents=True, exist_ok=True)
        self.script = config.writer.write(
            WritingJob(
                config.user_voices, config.voice_traits, config.seed, config.runner, self.work / "steps", self.times.add
            )
        )
        self.outcome = Outcome(self.script.candidates, self.script.usage, incomplete=self.script.incomplete)

    def _filter(self, needs_audio: bool) -> None:
        """Apply the filters that read, or those that listen, in the order of the configuration."""
        for kind in self.config.filters:
            if kind.hears == needs_audio:
                self._apply(kind)

    def _apply(self, kind: Filter) -> None:
        """Measure what is kept so far, and leave out what is not good enough."""
        candidates = self.outcome.kept
        voices = self._speak_references(candidates) if kind.compares_voices else {}
        items = [
            RecordedDialogue(c.dialogue, tuple(c.clips), tuple(c.replies), voices.get(c.dialogue.speaker, ()))
            for c in candidates
        ]
        found: list[Any | ItemFailure]
        if kind.compares_dialogues:
            found = list(kind.measure(items))
        else:
            found = [
                result if isinstance(result, ItemFailure) else result["figures"]
                for result in self._step(FilterStep(kind, self.work), items)
            ]
        for candidate, figures in zip(candidates, found, strict=True):
            if isinstance(figures, ItemFailure):
                candidate.reject(kind.name, figures.reason)
                continue
            candidate.figures |= figures
            if rejection := kind.verdict(figures):
                candidate.reject(kind.name, rejection.reason, rejection.limit)

    # --- speaking ----------------------------------------------------------------------------------------------------

    def _speak(self) -> None:
        """Record what is kept so far, and the replies that stage 2 learns from."""
        candidates = self.outcome.kept
        questions = self._speak_questions(candidates)
        failed_replies = self._speak_replies(candidates)
        for candidate in candidates:
            lines = [questions[name] for name in candidate.dialogue.clip_ids]
            replies = [(turn.reply, turn.reply_emotion) for turn in candidate.dialogue.turns]
            reasons = [line.reason for line in lines if isinstance(line, ItemFailure)]
            reasons += [failed_replies[reply] for reply in replies if reply in failed_replies]
            if reasons:
                candidate.reject("speech", f"not spoken: {reasons[0]}")
            else:
                candidate.clips = [line["clean"] for line in lines]
                candidate.augmentations = [line["augmentation"] for line in lines]
                candidate.replies = [self.reply_clips[reply] for reply in replies]

    def _speak_questions(self, candidates: Sequence[Candidate]) -> dict[str, Any]:
        """Line's id -> what `SpeakLines` says of its recording, or an ItemFailure."""
        config, groups = self.config, []
        for _, pair in itertools.groupby(candidates, key=lambda candidate: candidate.dialogue.pair):
            first, *others = [lines_of(candidate.dialogue) for candidate in pair]
            # Dialogues of a pair share their first line's words, which are rendered once.
            groups.append([first[0], *(lines[0] for lines in others)])
            groups += [[line] for lines in (first, *others) for line in lines[1:]]
        delivery = Delivery(config.user_speed, config.prosody, config.jitter, config.augmentation, config.seed)
        spoken: dict[str, Any] = {}
        for group, result in zip(groups, self._step(SpeakLines(config.tts, delivery, self.work), groups), strict=True):
            if isinstance(result, ItemFailure):
                spoken |= {line.id: result for line in group}
                continue
            spoken |= result["clips"]
            for name, clip in result["clips"].items():
                self.outcome.clips[name], self.outcome.seconds[clip["clip"]] = clip["clip"], clip["sec"]
        return spoken

    def _speak_replies(self, candidates: Sequence[Candidate]) -> dict[tuple[str, str], str]:
        """(words, emotion) of each reply that could not be spoken -> the reason."""
        config = self.config
        replies = [(turn.reply, turn.reply_emotion) for c in candidates for turn in c.dialogue.turns]
        replies += [(reply.reply, reply.reply_emotion) for reply in self.script.spoken_replies or []]
        replies = list(dict.fromkeys(replies))
        step = SpeakTexts("replies", self.assistant_tts, config.assistant_speed, self.work, config.assistant_prosody)
        spoken = self._step(step, [(config.assistant_voice, text, emotion) for text, emotion in replies])
        failed: dict[tuple[str, str], str] = {}
        for reply, result in zip(replies, spoken, strict=True):
            if isinstance(result, ItemFailure):
                failed[reply] = result.reason
            else:
                self.reply_clips[reply], self.outcome.seconds[result["clip"]] = result["clip"], result["sec"]
        return failed

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
            if isinstance(result, ItemFailure):
                raise ValueError(f"a voice that a filter compares could not be spoken: {result.reason}")
            clips.append(result["clip"])
        return {voice: (clip, clips[-1]) for voice, clip in zip(users, clips[:-1], strict=True)}

    # --- writing out -------------------------------------------------------------------------------------------------

    def _write_out(self) -> None:
        """Write the files of `output_dir`, with units where there is a vocoder."""
        config, outcome, kept = self.config, self.outcome, self.outcome.kept
        outcome.question_sec, outcome.reply_sec = outcome.speech_sec(kept)
        replies = self.script.spoken_replies
        if replies is None:
            replies = list(replies_of(candidate.dialogue for candidate in kept))
        replies = [reply for reply in replies if (reply.reply, reply.reply_emotion) in self.reply_clips]
        files = CorpusFiles(self.output, self.work, kept, outcome.clips, self.reply_clips)
        places = files.write_questions()
        files.write_voice(replies)
        units = None
        if config.vocoder is None:
            print(f"spoken; train a codec on {self.work}/replies_train.jsonl.gz, then construct again with --vocoder")
        else:
            units = self._tokenise(TokeniseStep(config.vocoder, self.work), replies)
            files.write_dialogues(places, units)
            files.write_speech(replies, units)
            unspoken = self.script.unspoken
            files.write_language([(c.dialogue, True) for c in kept] if unspoken is None else unspoken)
        if config.dataset:
            write_dataset(self.output / DATASET, kept, outcome.clips, units, self.work)
            outcome.dataset = DATASET

    def _tokenise(self, step: TokeniseStep, replies: Sequence[SpokenReply]) -> dict[str, list[int]]:
        """Recording of a reply -> its units."""
        clips = [clip for candidate in self.outcome.kept for clip in candidate.replies]
        clips += [self.reply_clips[reply.reply, reply.reply_emotion] for reply in replies]
        clips = list(dict.fromkeys(clips))
        self.outcome.weights = step.weights
        units: list[Any] = self._step(step, clips)
        return dict(zip(clips, units, strict=True))


def construct(config: CorpusConfig) -> Outcome:
    """Make the corpus; what was written, spoken and measured before is taken from `work_dir`.

    Writes to `output_dir`: `questions.zip` (Ogg Opus members, uncompressed); gzipped JSONL manifests `{split}`
    (dialogues for stage 3), `understanding_{split}` (stage 1), `speech_{split}` (stage 2) and `language_{split}` (text
    for the LLM); by option, `dataset`, a folder of the package datasets.

    Raises:
        ValueError: A voice, an engine's files or a vocoder's weights are missing, a server is not there, or no dialogue
            is left.
    """
    return Construction(config).run()


def lines_of(dialogue: Dialogue) -> list[Line]:
    """What the user says in it."""
    return [
        Line(name, turn.text, dialogue.speaker, turn.emotion, turn.style, dialogue.split)
        for name, turn in zip(dialogue.clip_ids, dialogue.turns, strict=True)
    ]


def replies_of(dialogues: Iterable[Dialogue]) -> Iterable[SpokenReply]:
    """The replies of dialogues, each behind its line; nobody learns from those of the test split."""
    for dialogue in dialogues:
        if dialogue.split != "test":
            for name, turn in zip(dialogue.clip_ids, dialogue.turns, strict=True):
                yield SpokenReply(
                    f"speech-{name}", dialogue.split, turn.text, turn.emotion, turn.reply, turn.reply_emotion
                )
