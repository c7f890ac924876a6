"""`pocket`: a small single-codebook codec, 25 units per second, with a streaming decoder.

Log-mel -> ConvNeXt encoder -> finite scalar quantisation -> causal ConvNeXt decoder -> pitch, envelope and
aperiodicity -> harmonic-plus-noise synthesis. The blocks follow Vocos (Siuzdak, arXiv:2306.00814), the quantiser FSQ
(Mentzer et al., arXiv:2309.15505). The decoder predicts speech parameters instead of a spectrum with phases: they are
learnt from an hour of speech on a CPU, where phases would need a discriminator and days.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s2s.components.contracts import Vocoder
from lightning_s2s.components.log_mel import LogMelSpectrogram
from lightning_s2s.components.registry import VOCODERS
from lightning_s2s.components.vocoders.conv_stream import ConvStream
from lightning_s2s.components.vocoders.source_filter import HarmonicNoiseSynthesizer, SpeechParameters, SynthesisState
from lightning_s2s.components.weights import load_weights
from lightning_s2s.support.ranges import Count, Range


@dataclass
class PocketStreamState(ConvStream):
    """State of a stream: the left context of each convolution, and the state of the synthesis."""

    synthesis: SynthesisState = field(default_factory=SynthesisState)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, then a pointwise MLP, with a residual connection (Liu et al., arXiv:2201.03545).

    `causal` blocks see only the past and need the state of a stream; the others are centred.
    """

    def __init__(self, width: int, expansion: int, kernel_size: int = 7, causal: bool = True, scale: float = 0.1):
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel_size, padding=0 if causal else kernel_size // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, expansion * width)
        self.project = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor, state: PocketStreamState | None = None, last: bool = True) -> Tensor:
        """(B, C, F) -> (B, C, F)."""
        y = self.depthwise(x) if state is None else state.conv(self.depthwise, x, last, lookahead=0)
        y = self.project(F.gelu(self.expand(self.norm(y.transpose(1, 2))))) * self.scale
        return x + y.transpose(1, 2)


class FiniteScalarQuantizer(nn.Module):
    """Rounds each of a few bounded values to a grid; a unit is the mixed-radix index of the grid point.

    Source: Mentzer et al., arXiv:2309.15505, with straight-through gradients.

    Args:
        levels: Grid points in each dimension; their product is the number of units.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: list[int]):
        super().__init__()
        self.num_units = math.prod(levels)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        basis = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., len(levels)) -> quantised values in [-1, 1] of the same shape, and units (...) int64."""
        half = (self.levels - 1) * (1 - 1e-3) / 2
        offset = (self.levels % 2 == 0).float() * 0.5
        bounded = (x.float() + torch.tan(offset / half)).tanh() * half - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        units = ((rounded.detach().round() + self.levels // 2) * self.basis).sum(-1).long()
        return rounded / (self.levels // 2), units

    def decode(self, units: Tensor) -> Tensor:
        """Units (...) -> quantised values (..., len(levels))."""
        digits = units.unsqueeze(-1) // self.basis % self.levels
        return (digits - self.levels // 2) / (self.levels // 2)


class PocketEncoder(nn.Module):
    """(B, num_mels, F) log-mel at 100 Hz -> (B, F / frames_per_unit, num_dims), unquantised."""

    def __init__(self, num_mels: int, width: int, num_dims: int, frames_per_unit: int = 4, expansion: int = 3):
        super().__init__()
        self.stem = nn.Conv1d(num_mels, width, 7, padding=3)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, expansion, causal=False) for _ in range(4))
        self.down = nn.Conv1d(width, width, frames_per_unit, stride=frames_per_unit)
        self.low_blocks = nn.ModuleList(ConvNeXtBlock(width, expansion, causal=False) for _ in range(2))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_dims))
        self.spread = nn.BatchNorm1d(num_dims, affine=False)  # without unit variance, few grid points would be used

    def forward(self, mel: Tensor) -> Tensor:
        x = self.stem(mel.to(self.stem.weight.dtype))
        for block in self.blocks:
            x = block(x)
        x = self.down(x)
        for block in self.low_blocks:
            x = block(x)
        return self.spread(self.head(x.transpose(1, 2)).transpose(1, 2)).transpose(1, 2)


class PocketDecoder(nn.Module):
    """(B, U, num_dims) quantised values -> speech parameters at 100 Hz, with 60 ms of look-ahead at 25 Hz.

    `stem` looks ahead by one unit (40 ms at 25 Hz), `mix` by two frames (20 ms).
    """

    def __init__(
        self,
        num_dims: int,
        width: int,
        num_bands: int,
        num_noise_bands: int,
        frames_per_unit: int = 4,
        expansion: int = 3,
    ):
        super().__init__()
        self.num_bands, self.frames_per_unit = num_bands, frames_per_unit
        self.stem = nn.Conv1d(num_dims, width, 3)
        self.low_blocks = nn.ModuleList(ConvNeXtBlock(width, expansion) for _ in range(3))
        self.up = nn.Linear(width, frames_per_unit * width)
        self.mix = nn.Conv1d(width, width, 7, groups=width)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, expansion) for _ in range(5))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1 + num_bands + num_noise_bands)
        with torch.no_grad():  # the usual level of speech
            self.head.bias[1 : 1 + num_bands] = -5.0

    def forward(self, values: Tensor, state: PocketStreamState, last: bool) -> SpeechParameters:
        x = state.conv(self.stem, values.transpose(1, 2).to(self.stem.weight.dtype), last, lookahead=1)
        for block in self.low_blocks:
            x = block(x, state, last)
        x = self.up(x.transpose(1, 2)).unflatten(-1, (self.frames_per_unit, -1)).flatten(1, 2).transpose(1, 2)
        x = state.conv(self.mix, x, last, lookahead=2)
        for block in self.blocks:
            x = block(x, state, last)
        with torch.autocast(x.device.type, enabled=False):  # a pitch needs more than bfloat16's 8 bits
            shape, norm = self.norm.normalized_shape, self.norm
            y = F.layer_norm(x.transpose(1, 2).float(), shape, norm.weight.float(), norm.bias.float())
            y = F.linear(y, self.head.weight.float(), self.head.bias.float())
        envelope, aperiodicity = y[..., 1 : 1 + self.num_bands], y[..., 1 + self.num_bands :].sigmoid()
        return SpeechParameters(y[..., 0], envelope, aperiodicity)


@VOCODERS.register("pocket")
class PocketVocoder(Vocoder[PocketStreamState]):
    """Single-codebook codec of 25 units per second at 16 kHz, streaming with 60 ms of look-ahead; a few MB.

    Args:
        checkpoint: Folder with `model.safetensors`, as `save_pretrained` writes it; None starts from random weights.
        levels: Grid points in each dimension of the quantiser; their product is the number of units.
        frames_per_unit: Frames of 10 ms in a unit; 4 give 25 units per second.
        encoder_width: Channels of the tokeniser.
        decoder_width: Channels of the decoder.
    """

    paper = "arXiv:2306.00814"
    rates = "25 Hz, 1,000 units, 16,000 Hz"
    size = "5M"
    licence = "Apache-2.0"

    samples_per_unit: int

    def __init__(
        self,
        checkpoint: str | None = None,
        levels: tuple[Annotated[int, Range(2, 100_000)], ...] = (8, 5, 5, 5),
        encoder_width: Count = 160,
        decoder_width: Count = 256,
        frames_per_unit: Count = 4,
    ):
        super().__init__()
        self.mel = LogMelSpectrogram(16_000, 80, 160, 640)
        self.encoder = PocketEncoder(80, encoder_width, len(levels), frames_per_unit)
        self.quantizer = FiniteScalarQuantizer(list(levels))
        self.synthesizer = HarmonicNoiseSynthesizer(16_000, 160)
        bands = self.synthesizer.num_bands, self.synthesizer.num_noise_bands
        self.decoder = PocketDecoder(len(levels), decoder_width, *bands, frames_per_unit)
        self.frames_per_unit = frames_per_unit
        self.sample_rate, self.samples_per_unit = 16_000, 160 * frames_per_unit
        self.num_units = self.quantizer.num_units
        if checkpoint is not None:
            load_weights(self, checkpoint)

    def quantize(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) -> quantised values (B, U, dims) with straight-through gradients, and units (B, U).

        U = T // samples_per_unit.
        """
        mel, frames = self.mel(waveform), self.frames_per_unit
        return self.quantizer(self.encoder(mel[..., : mel.shape[-1] // frames * frames]))

    @torch.inference_mode()
    def tokenize(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        counts = lengths // self.samples_per_unit
        rows = [
            # The encoder looks ahead: clips are cut to whole units, so that they get the same units in any batch.
            self.quantize(clip[None, : count * self.samples_per_unit])[1][0] if count else lengths.new_zeros(0)
            for clip, count in zip(waveform, counts.tolist(), strict=True)
        ]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), counts

    def decode_values(self, values: Tensor, state: PocketStreamState, last: bool) -> Tensor:
        """Quantised values (B, U, dims) -> the samples (B, T) that are final now, in total `samples_per_unit` each."""
        return self.synthesizer(self.decoder(values, state, last), state.synthesis)

    def synthesize(self, units: Tensor) -> Tensor:
        return self.stream(units, self.start_stream(), last=True)

    def start_stream(self) -> PocketStreamState:
        return PocketStreamState()

    @torch.inference_mode()
    def stream(self, units: Tensor, state: PocketStreamState, last: bool) -> Tensor:
        self.check_units(units)
        return self.decode_values(self.quantizer.decode(units), state, last)
