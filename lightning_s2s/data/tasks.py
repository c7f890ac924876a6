"""Names that a corpus's rows, the stages and the evaluation share: splits, emotions, and what a model is asked for."""

from __future__ import annotations

SPLITS = ("train", "validation", "test")
EMOTIONS = ("neutral", "happy", "sad", "angry")

TASKS = {
    "reply": "",
    "emotion": "What emotion does the speaker convey? ",
    "transcribe": "Repeat what the speaker says. ",
    "continue": "Continue the following sentence based on the conveyed emotion tone in a coherent style: ",
}
"""Task -> the words in front of the user's speech; the published ones (OpenS2S, arXiv:2507.05177)."""
CONTINUE_WORDS = "Continue the following sentence in a coherent style: "
"""Of `continue`, where no emotion is known."""
