"""Where the repository's folders are."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
EXPERIMENTS = ROOT / "experiments"
GOLDEN = TESTS / "golden"
GOLDEN_OPENS2S = GOLDEN / "opens2s_end_to_end"
"""A checkpoint with tiny random weights, a question, and what the published code answers."""
OPENS2S_CHECKPOINT = GOLDEN_OPENS2S / "checkpoint"
