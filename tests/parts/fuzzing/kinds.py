"""The kinds of input, and the inputs of each by number."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from parts.fuzzing.checkpoint_inputs import CHECKPOINTS
from parts.fuzzing.data_inputs import MANIFESTS, SOUND, ZIP
from parts.fuzzing.journal_inputs import JOURNALS
from parts.fuzzing.model_inputs import FOLDERS, TOKENIZERS
from parts.fuzzing.mutations import Case, Maker, Seeds
from parts.fuzzing.settings_inputs import COMMAND_LINES, YAML

SEED = 1
"""Another one gives other inputs."""
KINDS: dict[str, tuple[Sequence[Maker], int]] = {
    "manifests": (MANIFESTS, 240),
    "sound": (SOUND, 240),
    "zip references": (ZIP, 120),
    "YAML": (YAML, 300),
    "command lines": (COMMAND_LINES, 260),
    "model folders": (FOLDERS, 240),
    "checkpoints": (CHECKPOINTS, 160),
    "tokenizers": (TOKENIZERS, 140),
    "journals": (JOURNALS, 100),
}
"""Kind -> what makes its inputs, in turn, and how many the long run tries."""
SHORT = 6
"""Inputs of each kind in every run of the tests."""


def make(kind: str, number: int, seeds: Seeds, seed: int = SEED) -> Case:
    """The same input whenever it is asked for."""
    makers = KINDS[kind][0]
    return makers[number % len(makers)](seeds, Random(f"{kind} {number} {seed}"))


def short(kind: str) -> list[int]:
    """Numbers of the inputs that every run tries, spread over the makers."""
    makers, count = KINDS[kind]
    step = count // SHORT
    return [i * step + (i - i * step) % len(makers) for i in range(SHORT)]
