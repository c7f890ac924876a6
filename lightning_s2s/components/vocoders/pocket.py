"""`pocket`: a small single-codebook codec, 25 units per second, with a streaming decoder.

Log-mel -> ConvNeXt encoder -> finite scalar quantisation -> causal ConvNeXt decoder -> pitch, envelope and
aperiodicity -> harmonic-plus-noise synthesis. The blocks follow Vocos (Siuzdak, arXiv:2306.00814), the quantiser FSQ
(Mentzer et al., arXiv:2309.15505). Speech parameters instead of a spectrum with phases: they are learnt from an hour of
speech on a CPU, where phases would need a discriminator and days.
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
from lightning_s2s.components.vocoders.source_filter import HarmonicNoiseSynthesizer, SpeechParameters, SynthesisState
from lightning_s2s.components.weights import load_weights
from lightning_s2s.support.ranges import Count, Range


@dataclass
class PocketStreamState:
    """What a running decode keeps between chunks: the left context of each convolution, and the synthesis' state."""

    context: dict[nn.Module, Tensor] = field(default_factory=dict)
    synthesis: SynthesisState = field(default_factory=SynthesisState)


class StreamingConv1d(nn.Conv1d):
    """Conv1d that sees `lookahead` future frames and otherwise the past, in one shot or chunk by chunk."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, lookahead: int = 0, groups: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, groups=groups)
        self.lookahead = lookahead
        self.past = kernel_size[0] - 1 - lookahead if isinstance(kernel_size, tuple) else kernel_size - 1 - lookahead

    def forward(self, x: Tensor, state: PocketStreamState, last: bool) -> Tensor:
        """(B, C, F) -> (B, C', F'); F' = F over the whole stream, `lookahead` frames late until `last`."""
        past = state.context.get(self)
        x = torch.cat([x.new_zeros(x.shape[0], x.shape[1], self.past) if past is None else past, x], dim=-1)
        if last:
            x = F.pad(x, (0, self.lookahead))
        context = self.past + self.lookahead
        state.context[self] = x[..., max(0, x.shape[-1] - context) :]
        if x.shape[-1] <= context:
            return x.new_zeros(x.shape[0], self.out_channels, 0)
        return super().forward(x)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, then a pointwise MLP, with a residual (Liu et al., arXiv:2201.03545).

    `causal` blocks see the past alone and take a stream's state; others are centred.
    """

    def __init__(self, width: int, expansion: int, kernel_size: int = 7, causal: bool = True, scale: float = 0.1):
        super().__init__()
        self.causal = causal
        if causal:
            self.depthwise = StreamingConv1d(width, width, kernel_size, groups=width)
        else:
            self.depthwise = nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, expansion * width)
        self.project = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor, state: PocketStreamState | None = None, last: bool = True) -> Tensor:
        """(B, C, F) -> (B, C, F)."""
        y = self.depthwise(x, state, last) if self.causal else self.depthwise(x)
        y = self.project(F.gelu(self.expand(self.norm(y.transpose(1, 2))))) * self.scale
        return x + y.transpose(1, 2)


class FiniteScalarQuantizer(nn.Module):
    """Rounds each of a few bounded numbers to a grid; one unit is the mixed-radix number of the grid point.

    Source: Mentzer et al., arXiv:2309.15505, with straight-through gradients.

    Args:
        levels: grid points of each dimension; their product is the number of units.
    """

    def __init__(self, levels: list[int]):
        super().__init__()
        self.num_units = math.prod(levels)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        basis = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., len(levels)) -> quantised values in [-1, 1] of the same shape, and units (...) int64."""
        half = (self.levels - 1) * (1 - 1e-3) / 2
        offset = (self.levels % 2 == 0) * 0.5
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
        self.spread = nn.BatchNorm1d(num_dims, affine=False)  # unit variance, or few grid points would be used

    def forward(self, mel: Tensor) -> Tensor:
        x = self.stem(mel.to(self.stem.weight.dtype))
        for block in self.blocks:
            x = block(x)
        x = self.down(x)
        for block in self.low_blocks:
            x = block(x)
        return self.spread(self.head(x.transpose(1, 2)).transpose(1, 2)).transpose(1, 2)


class PocketDecoder(nn.Module):
    """(B, U, num_dims) quantised values -> speech parameters at 100 Hz; at 25 Hz with 60 ms of look-ahead.

    One future unit (at 25 Hz 40 ms) and two future frames (20 ms) are seen by a convolution each.
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
        self.stem = StreamingConv1d(num_dims, width, 3, lookahead=1)
        self.low_blocks = nn.ModuleList(ConvNeXtBlock(width, expansion) for _ in range(3))
        self.up = nn.Linear(width, frames_per_unit * width)
        self.mix = StreamingConv1d(width, width, 7, lookahead=2, groups=width)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, expansion) for _ in range(5))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1 + num_bands + num_noise_bands)
        with torch.no_grad():  # where speech usually is
            self.head.bias[1 : 1 + num_bands] = -5.0

    def forward(self, values: Tensor, state: PocketStreamState, last: bool) -> SpeechParameters:
        x = self.stem(values.transpose(1, 2).to(self.stem.weight.dtype), state, last)
        for block in self.low_blocks:
            x = block(x, state, last)
        x = self.up(x.transpose(1, 2)).unflatten(-1, (self.frames_per_unit, -1)).flatten(1, 2).transpose(1, 2)
        x = self.mix(x, state, last)
        for block in self.blocks:
            x = block(x, state, last)
        with torch.autocast(x.device.type, enabled=False):  # a pitch needs more than bfloat16's 8 bits
            norm, head = ([part.weight.float(), part.bias.float()] for part in (self.norm, self.head))
            y = F.linear(F.layer_norm(x.transpose(1, 2).float(), self.norm.normalized_shape, *norm), *head)
        envelope, aperiodicity = y[..., 1 : 1 + self.num_bands], y[..., 1 + self.num_bands :].sigmoid()
        return SpeechParameters(y[..., 0], envelope, aperiodicity)


@VOCODERS.register("pocket")
class PocketVocoder(Vocoder[PocketStreamState]):
    """Single-codebook codec of 25 units per second at 16 kHz, streaming with 60 ms of look-ahead; a few MB.

    Args:
        checkpoint: folder with `model.safetensors`, as `save_pretrained` writes it; None starts from random weights.
        levels: grid points of the quantiser's dimensions; their product is the number of units.
        frames_per_unit: frames of 10 ms that a unit stands for; 4 are 25 units a second.
        encoder_width: channels of the tokeniser.
        decoder_width: channels of the decoder.
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
            # The encoder looks ahead: a clip is cut to its own units, so that it gets the same ones in any batch.
            self.quantize(clip[None, : count * self.samples_per_unit])[1][0] if count else lengths.new_zeros(0)
            for clip, count in zip(waveform, counts.tolist(), strict=True)
        ]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), counts

    def decode_values(self, values: Tensor, state: PocketStreamState, last: bool) -> Tensor:
        """Quantised values (B, U, dims) -> (B, T), what is final now; in all `samples_per_unit` for each."""
        return self.synthesizer(self.decoder(values, state, last), state.synthesis)

    def synthesize(self, units: Tensor) -> Tensor:
        return self.stream(units, self.start_stream(), last=True)

    def start_stream(self) -> PocketStreamState:
        return PocketStreamState()

    @torch.inference_mode()
    def stream(self, units: Tensor, state: PocketStreamState, last: bool) -> Tensor:
        self.check_units(units)
        return self.decode_values(self.quantizer.decode(units), state, last)
