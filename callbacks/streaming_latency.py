"""Logs the latency of spoken answers during training, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import lightning as L
import numpy as np

from lightning_s2s.callbacks.answering import AnsweringCallback
from lightning_s2s.evaluation.hardware import describe_hardware
from lightning_s2s.evaluation.results import MARKS, percentile, stage_durations
from lightning_s2s.reporting.tables import escape_markdown, markdown_table
from lightning_s2s.support.ranges import Count, Natural, checked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
    from lightning_s2s.streaming.events import Reply

PERCENTILES = (50, 95)
COLORS = ("#44618f", "#2f8f8b", "#7ba342", "#dfa32c", "#cf6440")
CLOCK = """The clock starts at the end of the question's audio. `encoder_done`: encoder and adapter have run;
`first_text_token`: the LLM has chosen its first token; `first_hidden_states`: the first N hidden states are computed;
`first_units`: the first M speech units are drawn; `first_audio`: the first final samples; `last_audio`: the last ones.
`chunk_gap`: time between two waveform chunks. Real-time factor: `last_audio` over the reply's duration.
Percentiles interpolate linearly between order statistics."""


@checked
class StreamingLatency(AnsweringCallback):
    """Measures the latency of the streaming session after a validation.

    - Scalars `latency/{mark}_sec_p50` and `_p95` for every mark that was reached, `latency/chunk_gap_sec_p50|p95` and
      `latency/real_time_factor_p50|p95`; other callbacks can monitor them like any metric.
    - TensorBoard: a histogram of each, a plot of the stages of every question, and once, as text, the hardware, the
      definition of the clock and the number of warm-up runs.

    Args:
        questions: Manifest; its first rows that begin with speech are asked.
        num_questions: Number of questions that are measured.
        num_warmup: Number of answers before each measurement that are not counted.
        every_n_validations: Measure after the first validation and then after every n-th.
        greedy: Take the most likely tokens; otherwise sample, with the question's index as the seed.

    Raises:
        ValueError: A number is out of range; at set-up: the manifest or its audio cannot be used.
    """

    def __init__(
        self,
        questions: str,
        num_questions: Count = 8,
        num_warmup: Natural = 2,
        every_n_validations: Count = 1,
        greedy: bool = True,
    ):
        super().__init__(questions, num_questions, every_n_validations, greedy)
        self.num_warmup = num_warmup
        self._described = False

    def answer(self, trainer: L.Trainer, pl_module: L.LightningModule, model: SpeechToSpeechModel) -> None:
        for run in range(self.num_warmup):
            self.respond(trainer, model, run % len(self.questions))
        replies = [self.respond(trainer, model, index) for index in range(len(self.questions))]
        values = collect_latencies(replies)
        if trainer.is_global_zero:
            for percent in PERCENTILES:
                scalars = {f"latency/{name}_p{percent}": percentile(found, percent) for name, found in values.items()}
                pl_module.log_dict(scalars, rank_zero_only=True)
        for writer in self.writers(trainer):
            for name, found in values.items():
                writer.add_histogram(f"latency/{name}", np.array(found), trainer.global_step)
            stages = draw_stages([(q.id, reply) for q, reply in zip(self.questions, replies, strict=True)])
            writer.add_figure("latency/stages", stages, trainer.global_step)
            if not self._described:
                writer.add_text("latency/setup", self._description(trainer), trainer.global_step)
        self._described = True

    def _description(self, trainer: L.Trainer) -> str:
        facts = describe_hardware() | {
            "precision": str(trainer.precision),
            "processes": str(trainer.world_size),
            "questions": f"{len(self.questions)} of {self.manifest}",
            "warm-up runs": str(self.num_warmup),
            "decoding": "greedy" if self.greedy else "sampled",
        }
        rows = [(label, escape_markdown(text)) for label, text in facts.items()]
        return f"{markdown_table(['', ''], rows)}\n\n{CLOCK}"


def collect_latencies(replies: Sequence[Reply]) -> dict[str, list[float]]:
    """Replies -> `{mark}_sec`, `chunk_gap_sec` and `real_time_factor`, each with its values over all replies."""
    values: dict[str, list[float]] = {}
    for mark in (*MARKS, "last_audio"):
        values[f"{mark}_sec"] = [reply.marks[mark] for reply in replies if reply.marks.get(mark) is not None]
    values["chunk_gap_sec"] = [gap for reply in replies for gap in reply.chunk_gaps_sec]
    values["real_time_factor"] = [r.real_time_factor for r in replies if r.real_time_factor is not None]
    return {name: found for name, found in values.items() if found}


def draw_stages(replies: Sequence[tuple[str, Reply]]) -> Figure:
    """A plot with one bar per (name, reply), divided at its marks, below a bar of the medians."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9.0, 1.5 + 0.3 * len(replies)), dpi=110, layout="constrained")
    marks = [reply.marks for _, reply in replies]
    reached = {mark: [m[mark] for m in marks if m.get(mark) is not None] for mark in MARKS}
    median = {mark: percentile(found, 50) for mark, found in reached.items() if found}
    axes = drawing.subplots()
    rows = [("median", median), *((name, reply.marks) for name, reply in replies)]
    seen: set[str] = set()
    for row, (_, row_marks) in enumerate(rows):
        start = 0.0
        for mark, seconds in stage_durations(row_marks):
            label = None if mark in seen else mark.replace("_", " ")
            seen.add(mark)
            height = 0.8 if row == 0 else 0.6
            axes.barh(row, seconds, height, left=start, color=COLORS[MARKS.index(mark)], label=label)
            start += seconds
        if start:
            weight = "bold" if row == 0 else "normal"
            axes.annotate(f" {start:.3f}", (start, row), va="center", fontsize=8, fontweight=weight)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("seconds since the question's end", fontsize=8)
    spoken = f"{len(reached['first_audio'])} of {len(replies)} replies spoken"
    axes.set_title(f"from the question's end to the first audio ({spoken})", fontsize=10)
    axes.margins(x=0.08)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    if seen:
        drawing.legend(loc="outside lower center", ncols=len(MARKS), fontsize=8, frameon=False)
    return drawing
