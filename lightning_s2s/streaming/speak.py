"""Speak a given text with the speech decoder alone, as a model can after stage 2a."""

from __future__ import annotations

import torch

from lightning_s2s.data.batch import SPEAKER_WIDTH
from lightning_s2s.generation.sampling import Sampler
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel


@torch.inference_mode()
def speak_text(
    model: SpeechToSpeechModel, text: str, sampler: Sampler, speaker: torch.Tensor | None = None
) -> list[int]:
    """Units for a text, drawn from text conditions in the order of a stream.

    Args:
        model: A model whose speech decoder was trained on text conditions.
        text: The text to speak.
        sampler: Draws the units.
        speaker: (512,) speaker embedding; zeros when None.

    Raises:
        ValueError: The model has no speech decoder, or the text is too long for it.
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
