"""Codecs with several codebooks as ordinary vocoders, by flattening the codes of a frame into a sequence of units.

A residual codec has K codes per frame. Flattened, they are K units, unit = codebook * codebook_size + code, so that a
speech decoder for one stream of units works with any codec, at K times the frame rate. B batch, K codebooks, F frames,
U units, T samples.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from lightning_s2s.components.contracts import Vocoder

DecoderT = TypeVar("DecoderT")
"""State of a codec's decoder."""


def flatten_codes(codes: Tensor, codebook_size: int) -> Tensor:
    """Codes (B, K, F) -> units (B, F * K)."""
    offsets = torch.arange(codes.shape[1], device=codes.device) * codebook_size
    return (codes + offsets[:, None]).transpose(1, 2).flatten(1)


def unflatten_units(units: Tensor, num_codebooks: int, codebook_size: int) -> Tensor:
    """Units (B, U) -> codes (B, K, U // K); the units of an incomplete last frame are dropped.

    The position determines the codebook. If a speech decoder draws a unit of another codebook, its code is used with
    the codebook whose turn it is.
    """
    num_frames = units.shape[1] // num_codebooks
    frames = units[:, : num_frames * num_codebooks].unflatten(1, (num_frames, num_codebooks))
    return frames.transpose(1, 2) % codebook_size


@dataclass
class FlattenedStreamState(Generic[DecoderT]):
    """State of a stream.

    Attributes:
        decoder: State of the codec's decoder.
        waiting: (B, U) units of an incomplete frame, fewer than K.
        closed: Whether the last units were given.
    """

    decoder: DecoderT
    waiting: Tensor | None = None
    closed: bool = False


class FlattenedCodecVocoder(Vocoder[FlattenedStreamState[DecoderT]], Generic[DecoderT]):
    """Base of vocoders around a codec of K codebooks; a subclass encodes and decodes frames.

    The codec always stays in eval mode, since some codecs encode at random in training mode.
    """

    def set_rates(self, sample_rate: int, samples_per_frame: int, codebook_size: int, num_codebooks: int) -> None:
        """Set the codec's rates; called once by the constructor of a subclass."""
        self.sample_rate, self.samples_per_frame = sample_rate, samples_per_frame
        self.codebooks_per_frame, self.num_units = num_codebooks, num_codebooks * codebook_size
        self.samples_per_unit = samples_per_frame / num_codebooks

    @abstractmethod
    def encode(self, waveform: Tensor) -> Tensor:
        """One clip (T,), T at least 1 -> codes (K, F)."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, K, F), F at least 1 -> (B, T) in one shot."""

    @abstractmethod
    def start_decoder(self) -> DecoderT:
        """The state of a new decode."""

    @abstractmethod
    def decode_next(self, codes: Tensor, state: DecoderT, last: bool) -> Tensor:
        """Append codes (B, K, F), F may be 0, and return the samples (B, T) that are final now."""

    def train(self, mode: bool = True) -> FlattenedCodecVocoder[DecoderT]:
        return super().train(False)

    @torch.inference_mode()
    def tokenize(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T), right-padded, and (B,) samples -> units (B, U) and (B,) counts, K per frame, rounded up."""
        rows = [
            flatten_codes(self.encode(clip[:length])[None], self.codebook_size)[0] if length else lengths.new_zeros(0)
            for clip, length in zip(waveform, lengths.tolist(), strict=True)
        ]
        counts = torch.tensor([len(row) for row in rows], device=lengths.device)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), counts

    @torch.inference_mode()
    def synthesize(self, units: Tensor) -> Tensor:
        """Units (B, U) -> (B, T); an incomplete last frame is dropped."""
        self.check_units(units)
        codes = unflatten_units(units, self.codebooks_per_frame, self.codebook_size)
        return self.decode(codes) if codes.shape[-1] else torch.zeros(len(units), 0, device=units.device)

    def start_stream(self) -> FlattenedStreamState[DecoderT]:
        return FlattenedStreamState(self.start_decoder())

    @torch.inference_mode()
    def stream(self, units: Tensor, state: FlattenedStreamState[DecoderT], last: bool) -> Tensor:
        """Append units (B, U) and return the samples (B, T) that are final now; units of an incomplete frame wait.

        Raises:
            ValueError: A unit lies outside the codebook, or the stream was closed.
        """
        self.check_units(units)
        if state.closed:
            raise ValueError("this stream was closed by last=True; start a new one")
        state.closed = last
        units = units if state.waiting is None else torch.cat([state.waiting, units], dim=1)
        state.waiting = units[:, units.shape[1] // self.codebooks_per_frame * self.codebooks_per_frame :]
        codes = unflatten_units(units, self.codebooks_per_frame, self.codebook_size)
        if not codes.shape[-1] and not last:
            return torch.zeros(len(units), 0, device=units.device)
        return self.decode_next(codes, state.decoder, last)
