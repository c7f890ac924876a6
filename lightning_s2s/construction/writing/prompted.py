"""Dialogues by an LLM: a line that only the voice makes clear, a reply for each emotion, and further turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Annotated, Any

from lightning_s2s.construction.chat import ChatModel, Choice, ParsedAnswer, Question, Text, ask_questions
from lightning_s2s.construction.dialogue import Candidate, Dialogue, DialogueTurn, Script
from lightning_s2s.construction.running import ItemFailure, PipelineStep, run_step
from lightning_s2s.construction.running.base import fingerprint
from lightning_s2s.construction.usage import Usage, track_usage
from lightning_s2s.construction.writing.base import DialogueWriter, WritingJob
from lightning_s2s.construction.writing.prompts import Prompts
from lightning_s2s.construction.writing.seeds import Seed, Seeds
from lightning_s2s.data.tasks import EMOTIONS
from lightning_s2s.support.ranges import Count, NonNegative, Range, checked

LONGEST_EXCERPT = 300
"""Characters of a malformed answer that are kept."""


@checked
@dataclass
class PromptedWriter(DialogueWriter):
    """An LLM writes by prompts, which are files.

    For each seed one line is written; then, for each of its emotions, a reply with the emotion that it is spoken in;
    then, by option, further turns. An answer that is malformed is repaired or asked for again.

    Args:
        chat: LLM that writes: ChatServer, LocalChat, or a class of your own by its import path.
        seeds: What is written about.
        prompts: Folder with your own `line.txt`, `reply.txt`, `next_line.txt`, `judge.txt`, `system.txt`, `topics.txt`,
            `situations.txt`; missing ones are taken from the package.
        turns: Number of turns of each dialogue.
        delivery: Emotions that a reply may be spoken with.
        max_words: Number of words of a line or a reply at most.
        attempts: How often a question is asked at most until its answer is well-formed.
        price_per_million_tokens: Prices as `{input: ..., output: ...}`, for the cost in the data card.

    Raises:
        ValueError: A number or the folder of prompts is wrong.
    """

    chat: ChatModel
    seeds: Seeds
    prompts: str | None = None
    turns: Annotated[int, Range(1, 1_000)] = 1
    delivery: tuple[str, ...] = EMOTIONS
    max_words: Count = 40
    attempts: Count = 3
    price_per_million_tokens: dict[str, NonNegative] | None = None

    def __post_init__(self) -> None:
        prices = self.price_per_million_tokens
        if prices is not None and set(prices) != {"input", "output"}:
            raise ValueError(f"writer: price_per_million_tokens needs input and output; got {', '.join(prices)}")
        texts = Prompts(self.prompts)
        self.seeds = replace(
            self.seeds,
            topics=self.seeds.topics or texts.lines("topics"),
            situations=self.seeds.situations or texts.lines("situations"),
        )

    @property
    def emotions(self) -> list[str]:
        return self.seeds.emotions

    @property
    def description(self) -> dict[str, str]:
        prompts = f"`{self.prompts}`" if self.prompts else "of the package"
        return {"writer": f"LLM, {self.chat.identity}", "prompts": prompts, "turns": str(self.turns)}

    def cost(self, usage: Usage) -> float | None:
        """What the tokens cost, in the currency of `price_per_million_tokens`."""
        prices = self.price_per_million_tokens
        if prices is None:
            return None
        return (usage.input_tokens * prices["input"] + usage.output_tokens * prices["output"]) / 1e6

    def write(self, job: WritingJob) -> Script:
        seeds, step = self.seeds.make(job), WritingStep(self, job.seed)
        script = Script([])
        for seed, written in zip(seeds, run_step(step, seeds, job.runner, job.folder, job.timed), strict=True):
            if isinstance(written, ItemFailure):
                script.usage.add(written.usage.as_json())
                script.incomplete[f"{step.name}: {written.reason}"] += 1
                lost = [dialogue_of(seed, emotion, ()) for emotion in seed.emotions]
                script.candidates += [Candidate(d, {}, "writing", f"not written: {written.reason}") for d in lost]
                continue
            script.usage.add(written["usage"])
            for entry in written["dialogues"]:
                candidate = Candidate(Dialogue.from_json(entry["dialogue"]))
                if entry["reason"]:
                    candidate.figures["answer"] = entry["answer"]
                    candidate.reject("writing", entry["reason"])
                script.candidates.append(candidate)
        return script


def dialogue_of(seed: Seed, emotion: str, turns: tuple[DialogueTurn, ...]) -> Dialogue:
    """The dialogue that a seed becomes with one of its emotions."""
    return Dialogue(f"{seed.id}-{emotion}", seed.split, seed.speaker, turns, seed.id, True, dict(seed.about))


def conversation(turns: Sequence[DialogueTurn], last: tuple[str, str] | None = None) -> str:
    """The dialogue as a prompt shows it, with how the user's voice was in brackets.

    Args:
        turns: Turns with their replies.
        last: Words and emotion of a line that has no reply yet.
    """
    lines = []
    for turn in turns:
        lines += [f"User ({turn.emotion}): {turn.text}", f"Assistant: {turn.reply}"]
    if last:
        lines.append(f"User ({last[1]}): {last[0]}")
    return "\n".join(lines)


def listed(words: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


@dataclass
class _Draft:
    """A dialogue while it is written."""

    seed: Seed
    emotion: str
    """Of the first line."""
    line: str = ""
    """Without a reply yet."""
    line_emotion: str = ""
    turns: tuple[DialogueTurn, ...] = ()
    reason: str = ""
    answer: str = ""
    transient: bool = False

    @property
    def open(self) -> bool:
        return not self.reason

    def fail(self, answer: ParsedAnswer) -> None:
        self.reason, self.answer, self.transient = answer.reason, answer.text[:LONGEST_EXCERPT], answer.transient


class WritingStep(PipelineStep[Seed]):
    """Seeds -> dialogues; those of a batch are written side by side.

    Args:
        writer: The writer with all settings.
        seed: Seed of the sampling.
    """

    name, unit = "writing", "line"

    def __init__(self, writer: PromptedWriter, seed: int):
        self.writer, self.seed = writer, seed
        self.batch_size, self.threads = writer.chat.batch_size, writer.chat.concurrency

    @cached_property
    def prompts(self) -> Prompts:
        """The texts."""
        return Prompts(self.writer.prompts)

    def key(self, item: Seed) -> str:
        writer, texts = self.writer, {n: self.prompts.texts[n] for n in ("system", "line", "reply", "next_line")}
        settings = [writer.turns, writer.delivery, writer.max_words, writer.attempts, writer.seeds.emotions]
        return fingerprint(writer.chat.identity, texts, settings, self.seed, asdict(item))

    def run(self, batch: Sequence[Seed]) -> list[Any | ItemFailure]:
        with track_usage() as usage:
            groups = self._write(batch)
        usages = [usage, *(Usage() for _ in batch[1:])]  # a batch's tokens are counted once, with its first seed
        return [self._result(group, usage) for group, usage in zip(groups, usages, strict=True)]

    def _write(self, batch: Sequence[Seed]) -> list[list[_Draft]]:
        """Each seed's drafts, one for each emotion."""
        fields = {"line": Text(self.writer.max_words)}
        questions = [self._question("line", seed, fields, emotions=listed(seed.emotions)) for seed in batch]
        lines = self._put(questions)
        groups: list[list[_Draft]] = []
        for seed, answer in zip(batch, lines, strict=True):
            drafts = [_Draft(seed, emotion) for emotion in seed.emotions]
            for draft in drafts:
                if answer.values is None:
                    draft.fail(answer)
                else:
                    draft.line, draft.line_emotion = answer.values["line"], draft.emotion
            groups.append(drafts)
        drafts = [draft for group in groups for draft in group]
        for number in range(self.writer.turns):
            if number:
                self._continue(drafts)
            self._reply(drafts)
        return groups

    def _reply(self, drafts: Sequence[_Draft]) -> None:
        """Add a turn to every draft that is open."""
        drafts = [draft for draft in drafts if draft.open]
        fields = {"reply": Text(self.writer.max_words), "emotion": Choice(tuple(self.writer.delivery))}
        questions = [
            self._question(
                "reply", draft.seed, fields, draft.emotion, len(draft.turns), emotion=draft.line_emotion,
                conversation=conversation(draft.turns, (draft.line, draft.line_emotion)),
                delivery=listed(self.writer.delivery),
            )
            for draft in drafts
        ]  # fmt: skip
        for draft, answer in zip(drafts, self._put(questions), strict=True):
            if answer.values is None:
                draft.fail(answer)
                continue
            style = draft.seed.about.get("style", "")
            said = answer.values
            draft.turns += (DialogueTurn(draft.line, draft.line_emotion, said["reply"], said["emotion"], style),)

    def _continue(self, drafts: Sequence[_Draft]) -> None:
        """Let the user of every open draft say something more."""
        drafts = [draft for draft in drafts if draft.open]
        emotions = tuple(self.writer.seeds.emotions)
        fields = {"line": Text(self.writer.max_words), "emotion": Choice(emotions)}
        questions = [
            self._question(
                "next_line", draft.seed, fields, draft.emotion, len(draft.turns), emotions=listed(emotions),
                conversation=conversation(draft.turns),
            )
            for draft in drafts
        ]  # fmt: skip
        for draft, answer in zip(drafts, self._put(questions), strict=True):
            if answer.values is None:
                draft.fail(answer)
            else:
                draft.line, draft.line_emotion = answer.values["line"], answer.values["emotion"]

    def _question(
        self, name: str, seed: Seed, fields: dict, of_pair: str = "", turn: int = 0, **values: str
    ) -> Question:
        known = ("topic", "situation", "language")
        traits = [value for key, value in seed.about.items() if key not in (*known, "style")]
        about = {key: "any" for key in known} | seed.about | {"speaker": ", ".join(traits) or "anyone"}
        number = int(fingerprint(self.seed, seed.id, name, of_pair, turn)[:7], 16)
        return Question(self.prompts.fill(name, **about | values), fields, number, self.prompts.fill("system"))

    def _put(self, questions: Sequence[Question]) -> list[ParsedAnswer]:
        return ask_questions(self.writer.chat, questions, self.writer.attempts)

    @staticmethod
    def _result(group: Sequence[_Draft], usage: Usage) -> Any | ItemFailure:
        for draft in group:
            if draft.transient:
                return ItemFailure(draft.reason, usage)
        entries = [
            {
                "dialogue": dialogue_of(draft.seed, draft.emotion, draft.turns).as_json(),
                "reason": draft.reason,
                "answer": draft.answer,
            }
            for draft in group
        ]
        return {"dialogues": entries, "usage": usage.as_json()}
