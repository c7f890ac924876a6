"""Speak a given text with the speech decoder alone: what a model can do after stage 2a."""

from __future__ import annotations

import torch

from lightning_s2s.data.batch import SPEAKER_WIDTH
from lightning_s2s.generation.sampling import Sampler
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel


@torch.inference_mode()
def speak_text(
    model: SpeechToSpeechModel, text: str, sampler: Sampler, speaker: torch.Tensor | None = None
) -> list[int]:
    """Units for a text, from text conditions, in the order in which a stream would give them.

    Args:
        model: with a speech decoder that was trained on text conditions.
        text: what is said.
        sampler: draws the units.
        speaker: (512,) embedding; zeros when None.

    Raises:
        ValueError: the model has no speech decoder, or the text is too long for it.
    """
    tokenizer, decoder = model.llm.tokenizer, model.require_speech_decoder()
    # The tokens that the hidden states of `<|im_tts_start|>`, the text and `<|im_tts_end|>` predict.
    ids = [*tokenizer.encode_text(text), tokenizer.tts_end_id, tokenizer.turn_end_id]
    speaker = torch.zeros(SPEAKER_WIDTH) if speaker is None else speaker
    state = decoder.start_stream(speaker.unsqueeze(0).to(model.device), sampler)
    conditions = decoder.embed_text(torch.tensor([ids], device=model.device))
    units = [unit for units in decoder.stream(conditions, state, last=True) for unit in units]
    if decoder.is_full(state):
        raise ValueError(
            f"speech_decoder {type(decoder).__name__}: the text is too long: {len(ids)} tokens and their units exceed "
            "the positions that it is made for"
        )
    return units
