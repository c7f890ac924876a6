"""What a run of construction made, in plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from lightning_s2s.construction.dialogue import Candidate
from lightning_s2s.construction.usage import Usage


@dataclass
class Outcome:
    """What a run made.

    Attributes:
        candidates: Every dialogue that was asked for, with its figures, and why it was left out, if it was.
        usage: What servers and models were asked for.
        question_sec: Seconds of the users' speech in what was kept.
        reply_sec: Seconds of the assistant's speech in what was kept.
        clips: Line's id -> its recording, in `work_dir`.
        seconds: Duration of each recording.
        weights: Fingerprint of the vocoder's weights, "" without one.
        dataset: Folder of `output_dir` for the package datasets, None without one.
        timing: Step -> number of items done, in this run and those before, and the seconds that they took.
        incomplete: Reason why items could not be done -> their number; another run tries them again.
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

    def speech_sec(self, candidates: Iterable[Candidate]) -> tuple[float, float]:
        """Seconds of the users' and of the assistant's speech in some of the dialogues."""
        chosen = list(candidates)
        asked = sum(self.seconds[self.clips[name]] for c in chosen for name in c.dialogue.clip_ids)
        return asked, sum(self.seconds[clip] for c in chosen for clip in c.replies)

    def rejections(self) -> Counter[str]:
        """Step -> dialogues that it left out, in the order of the steps."""
        return Counter(candidate.rejected_by for candidate in self.candidates if not candidate.kept)


class NothingKeptError(ValueError):
    """Every dialogue was left out.

    Args:
        outcome: Outcome of the run; its candidates say why.
    """

    def __init__(self, outcome: Outcome):
        reasons = Counter((c.rejected_by, c.reason) for c in outcome.candidates).most_common(3)
        listed = "; ".join(f"{count} x {step}: {reason}" for (step, reason), count in reasons)
        super().__init__(f"no dialogue is left of {len(outcome.candidates)}: {listed}")
        self.outcome = outcome
