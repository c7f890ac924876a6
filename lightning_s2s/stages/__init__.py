"""The training stages, one LightningModule each; the only place with losses and optimisers."""

from lightning_s2s.stages.generation import SpeechGenerationPretraining
from lightning_s2s.stages.language import LanguageModelPretraining
from lightning_s2s.stages.tuning import EmpatheticInstructionTuning
from lightning_s2s.stages.understanding import SpeechUnderstandingPretraining
from lightning_s2s.stages.vocoder import VocoderTraining

__all__ = [
    "EmpatheticInstructionTuning",
    "LanguageModelPretraining",
    "SpeechGenerationPretraining",
    "SpeechUnderstandingPretraining",
    "VocoderTraining",
]
