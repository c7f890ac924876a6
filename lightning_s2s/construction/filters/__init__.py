"""What a dialogue must pass to be kept; each filter keeps its figure in the dialogue's row."""

from lightning_s2s.construction.filters.base import Filter, FilterStep, RecordedDialogue, Rejection
from lightning_s2s.construction.filters.emotion import EmotionAgreement, ProsodyAgreement
from lightning_s2s.construction.filters.sound import Duration, Quality, SpeakerSimilarity, WordError
from lightning_s2s.construction.filters.text import FeelingWords, NearDuplicates, ReplyFits, SafetyWords, WordCount

__all__ = [
    "Duration",
    "EmotionAgreement",
    "FeelingWords",
    "Filter",
    "FilterStep",
    "RecordedDialogue",
    "Rejection",
    "NearDuplicates",
    "ProsodyAgreement",
    "Quality",
    "ReplyFits",
    "SafetyWords",
    "SpeakerSimilarity",
    "WordCount",
    "WordError",
]
