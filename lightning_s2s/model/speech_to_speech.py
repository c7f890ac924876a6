"""SpeechToSpeechModel: wires encoder, adapter, LLM, speech decoder and vocoder; no losses, no Lightning."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from lightning_s2s.components.contracts import Adapter, AudioEncoder, LanguageModel, SpeechDecoder, Vocoder
from lightning_s2s.components.unit_logits import UnitLogits
from lightning_s2s.data.batch import IGNORE_INDEX, SPEAKER_WIDTH, DialogueBatch
from lightning_s2s.model.compatibility import (
    check_declared,
    check_parts,
    check_same_units,
    check_vocoder,
    connecting,
    type_name,
)
from lightning_s2s.model.splice import Spliced, gather_segments, splice_audio


@dataclass(frozen=True)
class ModelOutput:
    """The inputs of the losses. Of the text, only the P positions that have a label.

    Attributes:
        text_states: (P, D) Hidden states of the LLM; their logits are `llm.logits(text_states)`.
        text_labels: (P,) Token that follows each position.
        units: Output of the speech decoder; None without spoken turns.
        audio_embeds: (N, F, D) Output of the adapter for each clip; None without audio.
        audio_lengths: (N,) Positions of each clip; None without audio.
    """

    text_states: Tensor
    text_labels: Tensor
    units: UnitLogits | None = None
    audio_embeds: Tensor | None = None
    audio_lengths: Tensor | None = None


class SpeechToSpeechModel(nn.Module):
    """Raw speech -> encoder -> adapter -> LLM -> speech decoder -> vocoder (OpenS2S, arXiv:2507.05177).

    Args:
        llm: The language model.
        encoder: Maps speech to hidden states; without one the model reads text only.
        adapter: Maps the encoder's hidden states to the LLM's embeddings; required with an encoder.
        speech_decoder: Maps hidden states to units; without one the model answers in text.
        vocoder: Maps units to a waveform; needs a speech decoder. A speech decoder that knows its number of units works
            without a vocoder, and the model then outputs units.

    Raises:
        ValueError: Components don't fit each other.
    """

    def __init__(
        self,
        llm: LanguageModel,
        encoder: AudioEncoder | None = None,
        adapter: Adapter | None = None,
        speech_decoder: SpeechDecoder | None = None,
        vocoder: Vocoder | None = None,
    ):
        super().__init__()
        check_parts(llm, encoder, adapter, speech_decoder, vocoder)
        self.encoder, self.adapter, self.llm = encoder, adapter, llm
        self.speech_decoder, self.vocoder = speech_decoder, vocoder
        self.num_units: int | None = None
        """Number of different units; None without a speech decoder."""
        self.attachments: dict[str, bytes] = {}
        """Files of a published checkpoint other than weights, by name: kept in model folders and restored on export."""
        if encoder is not None and adapter is not None:
            source = f"{type_name(encoder)} (width {encoder.width})"
            with connecting(adapter, encoder=source, llm=f"{type_name(llm)} (width {llm.width})"):
                adapter.connect(encoder.width, llm.width, encoder.frame_rate_hz)
            check_declared("adapter", adapter)
        if speech_decoder is not None:
            self.num_units = speech_decoder.num_units or (vocoder.num_units if vocoder else 0)
            language_model = f"{type_name(llm)} (width {llm.width}, {llm.vocabulary} tokens)"
            with connecting(speech_decoder, llm=language_model, units=self.num_units):
                speech_decoder.connect(llm.width, llm.vocabulary, self.num_units)

    def attach_vocoder(self, vocoder: Vocoder) -> None:
        """Set or replace the vocoder, and move it to the model's device.

        Raises:
            ValueError: The vocoder doesn't know the speech decoder's units, or its unit rate differs from that of the
                vocoder it replaces.
        """
        decoder = self.speech_decoder
        if decoder is None:
            raise ValueError("this model has no speech decoder, so a vocoder has no units to synthesize")
        check_vocoder(decoder, vocoder, self.num_units or decoder.num_units)
        if self.vocoder is not None:
            check_same_units(self.vocoder, vocoder)
        self.vocoder = vocoder.to(self.device).eval()

    @property
    def can_answer(self) -> bool:
        """Whether the model has an encoder, and so can answer a spoken question."""
        return self.encoder is not None

    @property
    def device(self) -> torch.device:
        """Device of the LLM's weights."""
        return next(self.llm.parameters()).device

    def require_encoder(self) -> tuple[AudioEncoder, Adapter]:
        """The encoder and the adapter.

        Raises:
            ValueError: The model has none.
        """
        if self.encoder is None or self.adapter is None:
            raise ValueError("this model has no encoder: it can't read audio")
        return self.encoder, self.adapter

    def require_speech_decoder(self) -> SpeechDecoder:
        """The speech decoder.

        Raises:
            ValueError: The model has none.
        """
        if self.speech_decoder is None:
            raise ValueError("this model has no speech decoder: it can't speak")
        return self.speech_decoder

    def require_vocoder(self) -> Vocoder:
        """The vocoder.

        Raises:
            ValueError: The model has none.
        """
        if self.vocoder is None:
            raise ValueError("this model has no vocoder: it can't turn units into audio")
        return self.vocoder

    def encode_audio(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (N, T) and (N,) samples -> input embeddings of the LLM (N, F, D) and (N,) positions."""
        encoder, adapter = self.require_encoder()
        return adapter(*encoder(waveform, lengths))

    def encode_batch(self, batch: DialogueBatch) -> tuple[Tensor, Tensor]:
        """`encode_audio` of a batch's clips; skips the encoder if the batch brings its hidden states."""
        if batch.encoded is not None:
            _, adapter = self.require_encoder()
            return adapter(*batch.encoded)
        return self.encode_audio(batch.waveform, batch.waveform_lengths)

    def splice(self, batch: DialogueBatch, audio_embeds: Tensor | None, audio_lengths: Tensor | None) -> Spliced:
        """The LLM's input for a batch of dialogues, see `lightning_s2s.model.splice.splice_audio`."""
        token_embeds = self.llm.embed(batch.input_ids.clamp(min=0))
        if audio_embeds is None or audio_lengths is None:
            audio_embeds, audio_lengths = token_embeds.new_zeros(0, 0, self.llm.width), batch.input_lengths[:0]
        return splice_audio(
            batch.input_ids,
            batch.input_lengths,
            batch.labels,
            batch.segments,
            token_embeds,
            audio_embeds,
            audio_lengths,
        )

    def forward(self, batch: DialogueBatch, speak: bool = True, every_part: bool = False) -> ModelOutput:
        """Run teacher-forced over a batch of dialogues.

        Args:
            batch: Batch of dialogues.
            speak: Also run the speech decoder over the batch's spoken turns.
            every_part: Run every component, even on a batch without audio or units. Ranks with different batches then
                gather the same weights and reduce the same gradients, and the optimiser sees the same on one rank as on
                many. The extra terms are zero.
        """
        audio_embeds = audio_lengths = dummy_embeds = None
        if batch.num_audios:
            audio_embeds, audio_lengths = self.encode_batch(batch)
        elif every_part and self.encoder is not None:  # before the LLM: all ranks must gather in the same order
            silence = torch.zeros(1, self.encoder.sample_rate, device=self.device)
            dummy_embeds, _ = self.encode_audio(silence, torch.tensor([self.encoder.sample_rate], device=self.device))
        spliced = self.splice(batch, audio_embeds, audio_lengths)
        if dummy_embeds is not None:
            spliced = replace(spliced, inputs_embeds=spliced.inputs_embeds + 0 * dummy_embeds.sum())
        hidden = self.llm(spliced.inputs_embeds, spliced.mask)
        following = spliced.labels[:, 1:]
        labelled = following != IGNORE_INDEX
        units = None
        num_turns = batch.num_spoken
        if speak and num_turns and self.speech_decoder is not None:
            conditions, lengths = gather_segments(hidden, spliced.segments, num_turns)
            tokens, _ = self._predicted_tokens(batch)
            units = self._speak(self.speech_decoder.project(conditions, tokens), lengths, batch)
        elif speak and every_part and self.speech_decoder is not None:
            units = self._speak_dummy(hidden[:1, :1])
        return ModelOutput(hidden[:, :-1][labelled], following[labelled], units, audio_embeds, audio_lengths)

    def forward_text_to_units(self, batch: DialogueBatch) -> UnitLogits:
        """The speech decoder alone (stage 2a), conditioned on the tokens that the hidden states predict.

        Stage 2b then replaces each token by the hidden state that predicts it.
        """
        tokens, lengths = self._predicted_tokens(batch)
        return self._speak(self.require_speech_decoder().embed_text(tokens), lengths, batch)

    def _predicted_tokens(self, batch: DialogueBatch) -> tuple[Tensor, Tensor]:
        """(M, S) The token that each hidden state of a spoken turn predicts, the one after it; and (M,) lengths."""
        ids = batch.input_ids
        following = torch.cat([ids[:, 1:], ids[:, -1:]], dim=1)
        return gather_segments(following, batch.segments, batch.num_spoken)

    def _speak(self, conditions: Tensor, lengths: Tensor, batch: DialogueBatch) -> UnitLogits:
        decoder = self.require_speech_decoder()
        return decoder(conditions, lengths, batch.units, batch.unit_lengths, batch.speaker_embedding)

    def _speak_dummy(self, hidden: Tensor) -> UnitLogits:
        """Run the speech decoder over one dummy frame of units; returns no labels."""
        decoder = self.require_speech_decoder()
        tokens = torch.zeros(1, 1, dtype=torch.long, device=hidden.device)
        frame = tokens.expand(1, decoder.codebooks_per_frame or 1)
        length = torch.ones(1, dtype=torch.long, device=hidden.device)
        conditions = decoder.project(hidden, tokens)
        units = decoder(conditions, length, frame, length * frame.shape[1], conditions.new_zeros(1, SPEAKER_WIDTH))
        return replace(units, **{field.name: getattr(units, field.name)[:0] for field in fields(units)})
