"""What a run did, in a few lines."""

from __future__ import annotations

from lightning_s2s.construction.config import CorpusConfig
from lightning_s2s.construction.outcome import Outcome
from lightning_s2s.support.wording import counted


def summarise(outcome: Outcome, config: CorpusConfig) -> str:
    """Yield, what was asked for again, tokens and cost, speed, and where the corpus is."""
    lines = []
    for step, (items, seconds) in outcome.timing.items():
        lines.append(f"{step}: {items} in {seconds:.0f} s, {items / max(seconds, 1e-9):.2f} a second")
    for step, count in outcome.rejections().items():
        lines.append(f"left out by {step}: {count}")
    if outcome.usage.problems:
        lines.append(f"asked for again: {counted(outcome.usage.problems)}")
    if outcome.usage.output_tokens:
        cost = config.writer.cost(outcome.usage)
        price = "" if cost is None else f", cost {cost:.4f}"
        lines.append(f"tokens: {outcome.usage.input_tokens} read, {outcome.usage.output_tokens} written{price}")
    if outcome.incomplete:
        lines.append(f"not done, and tried again by the same command: {sum(outcome.incomplete.values())}")
        lines += [f"  {count} x {reason}" for reason, count in outcome.incomplete.most_common(5)]
    hours = (outcome.question_sec + outcome.reply_sec) / 3600
    lines.append(
        f"{config.output_dir}: {len(outcome.kept)} of {len(outcome.candidates)} dialogues kept, "
        f"{outcome.question_sec / 60:.1f} min of questions and {outcome.reply_sec / 60:.1f} min of replies"
    )
    if total := sum(seconds for _, seconds in outcome.timing.values()):
        lines.append(
            f"{total / 3600:.2f} hours of work, earlier runs included: {hours / total * 3600:.3f} hours of kept speech "
            "an hour"
        )
    return "\n".join(lines)
