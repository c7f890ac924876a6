"""`pocket`: a small single-codebook codec, 25 units per second, with a causal streaming decoder.

Log-mel -> ConvNeXt encoder -> finite scalar quantisation -> causal ConvNeXt decoder -> ISTFT. The blocks follow Vocos
(Siuzdak, arXiv:2306.00814), the quantiser FSQ (Mentzer et al., arXiv:2309.15505).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s2s.checkpoints.weights import load_weights
from lightning_s2s.features import LogMelSpectrogram
from lightning_s2s.interfaces import Vocoder
from lightning_s2s.registry import VOCODERS


@dataclass
class PocketStreamState:
    """What a running decode keeps between chunks: the left context of each convolution and the overlap-add tail."""

    context: dict[nn.Module, Tensor] = field(default_factory=dict)
    tail: Tensor | None = None
    tail_envelope: Tensor | None = None
    num_skipped: int = 0


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
    """(B, num_mels, F) log-mel at 100 Hz -> (B, F / 4, num_dims) at 25 Hz, unquantised."""

    def __init__(self, num_mels: int, width: int, num_dims: int, expansion: int = 3):
        super().__init__()
        self.stem = nn.Conv1d(num_mels, width, 7, padding=3)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, expansion, causal=False) for _ in range(4))
        self.down = nn.Conv1d(width, width, 4, stride=4)
        self.low_blocks = nn.ModuleList(ConvNeXtBlock(width, expansion, causal=False) for _ in range(2))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_dims))
        self.spread = nn.BatchNorm1d(num_dims, affine=False)  # unit variance, or few grid points would be used

    def forward(self, mel: Tensor) -> Tensor:
        x = self.stem(mel)
        for block in self.blocks:
            x = block(x)
        x = self.down(x)
        for block in self.low_blocks:
            x = block(x)
        return self.spread(self.head(x.transpose(1, 2)).transpose(1, 2)).transpose(1, 2)


class PocketDecoder(nn.Module):
    """(B, U, num_dims) quantised values at 25 Hz -> (B, 640 U) samples, 75 ms of look-ahead.

    One future unit (40 ms) and two future frames (20 ms) are seen by a convolution each, and 15 ms is the overlap of
    the inverse Fourier transform's window.
    """

    def __init__(self, num_dims: int, width: int, win_length: int, hop_length: int, expansion: int = 3):
        super().__init__()
        self.win_length, self.hop_length = win_length, hop_length
        self.stem = StreamingConv1d(num_dims, width, 3, lookahead=1)
        self.low_blocks = nn.ModuleList(ConvNeXtBlock(width, expansion) for _ in range(2))
        self.up = nn.Linear(width, 4 * width)
        self.mix = StreamingConv1d(width, width, 7, lookahead=2, groups=width)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, expansion) for _ in range(6))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, win_length + 2)
        self.register_buffer("window", torch.hann_window(win_length), persistent=False)

    def forward(self, values: Tensor, state: PocketStreamState, last: bool) -> Tensor:
        x = self.stem(values.transpose(1, 2), state, last)
        for block in self.low_blocks:
            x = block(x, state, last)
        x = self.up(x.transpose(1, 2)).unflatten(-1, (4, -1)).flatten(1, 2).transpose(1, 2)
        x = self.mix(x, state, last)
        for block in self.blocks:
            x = block(x, state, last)
        if not x.shape[-1]:
            return self._overlap_add(x.new_zeros(x.shape[0], 0, self.win_length), state, last)
        with torch.autocast(x.device.type, enabled=False):  # a phase needs more than bfloat16's 8 bits
            magnitude, phase = self.head(self.norm(x.transpose(1, 2).float())).chunk(2, dim=-1)
        magnitude = magnitude.clamp(max=6.0).exp()
        frames = torch.fft.irfft(torch.polar(magnitude, phase), self.win_length) * self.window
        return self._overlap_add(frames, state, last)

    def _overlap_add(self, frames: Tensor, state: PocketStreamState, last: bool) -> Tensor:
        """(B, F, win_length) windowed frames -> the samples that no later frame can change."""
        batch, num_frames, _ = frames.shape
        overlap, edge = self.win_length - self.hop_length, (self.win_length - self.hop_length) // 2
        length = num_frames * self.hop_length + overlap
        signal, envelope = frames.new_zeros(batch, length), frames.new_zeros(1, length)
        if num_frames:
            signal = self._fold(frames, length)
            envelope = self._fold((self.window**2).expand(1, num_frames, -1), length)
        if state.tail is not None:
            signal[:, :overlap] += state.tail
            envelope[:, :overlap] += state.tail_envelope
        state.tail, state.tail_envelope = signal[:, -overlap:], envelope[:, -overlap:]
        end = length - edge if last else length - overlap
        start = min(edge - state.num_skipped, end)
        state.num_skipped += start
        return signal[:, start:end] / envelope[:, start:end].clamp(min=1e-8)

    def _fold(self, frames: Tensor, length: int) -> Tensor:
        folded = F.fold(frames.transpose(1, 2), (1, length), (1, self.win_length), stride=(1, self.hop_length))
        return folded[:, 0, 0]


@VOCODERS.register("pocket")
class PocketVocoder(Vocoder):
    """Single-codebook codec of 25 units per second at 16 kHz, streaming with 75 ms of look-ahead; a few MB.

    Args:
        checkpoint: folder with `model.safetensors`, as `save_pretrained` writes it; None starts from random weights.
        levels: grid points of the quantiser's dimensions; their product is the number of units.
        encoder_width: channels of the tokeniser.
        decoder_width: channels of the decoder.
    """

    licence = "Apache-2.0"

    def __init__(
        self,
        checkpoint: str | None = None,
        levels: tuple[int, ...] = (8, 5, 5, 5),
        encoder_width: int = 160,
        decoder_width: int = 256,
    ):
        super().__init__()
        self.mel = LogMelSpectrogram(16_000, 80, 160, 640)
        self.encoder = PocketEncoder(80, encoder_width, len(levels))
        self.quantizer = FiniteScalarQuantizer(list(levels))
        self.decoder = PocketDecoder(len(levels), decoder_width, 640, 160)
        self.sample_rate, self.samples_per_unit = 16_000, 640
        self.num_units = self.quantizer.num_units
        if checkpoint is not None:
            load_weights(self, checkpoint)

    def quantize(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) -> quantised values (B, U, dims) with straight-through gradients, and units (B, U); U = T // 640."""
        mel = self.mel(waveform)
        return self.quantizer(self.encoder(mel[..., : mel.shape[-1] // 4 * 4]))

    @torch.inference_mode()
    def tokenize(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        counts = lengths // self.samples_per_unit
        rows = [
            # The encoder looks ahead: a clip is cut to its own units, so that it gets the same ones in any batch.
            self.quantize(clip[None, : count * self.samples_per_unit])[1][0] if count else lengths.new_zeros(0)
            for clip, count in zip(waveform, counts.tolist(), strict=True)
        ]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), counts

    def decode_values(self, values: Tensor) -> Tensor:
        """Quantised values (B, U, dims) -> (B, 640 U), in one shot and with gradients."""
        return self.decoder(values, PocketStreamState(), last=True)

    @torch.inference_mode()
    def synthesize(self, units: Tensor) -> Tensor:
        self.check_units(units)
        return self.decode_values(self.quantizer.decode(units))

    def start_stream(self) -> PocketStreamState:
        return PocketStreamState()

    @torch.inference_mode()
    def stream(self, units: Tensor, state: PocketStreamState, last: bool) -> Tensor:
        self.check_units(units)
        return self.decoder(self.quantizer.decode(units), state, last)
