"""Names shared by corpora, stages and evaluation: splits, emotions and tasks."""

from __future__ import annotations

SPLITS = ("train", "validation", "test")
EMOTIONS = ("neutral", "happy", "sad", "angry")

TASKS = {
    "reply": "",
    "emotion": "What emotion does the speaker convey? ",
    "transcribe": "Repeat what the speaker says. ",
    "continue": "Continue the following sentence based on the conveyed emotion tone in a coherent style: ",
}
"""Task -> instruction before the user's speech, as published (OpenS2S, arXiv:2507.05177)."""
CONTINUE_WORDS = "Continue the following sentence in a coherent style: "
"""Instruction of the task `continue` if the emotion is unknown."""
