"""Mel -> waveform: HiFT, a harmonic-plus-noise source filtered by convolutions, then an inverse Fourier transform.

Li et al., HiFTNet, arXiv:2309.09493; the source is Wang et al., arXiv:1904.12088. B batch, F mel frames, C channels, T
samples. Attribute names are those of the published state dict, whose weight norm is folded when it is loaded.

Apart from the source's phase, every sample depends on a few frames around it. A sliding window over the mel and the
source therefore gives the same samples as one pass over the whole: `HiftStreamState`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s2s.components.vocoders.glm4_voice.config import HiftConfig


@dataclass
class SourceState:
    """State of the source between two frames.

    Attributes:
        generator: Draws the source's noise frame by frame, so that it doesn't depend on how the mel is chunked.
        start: (H,) phases at the first sample, in cycles.
        phase: (B, 1) float64 phase of the fundamental, in cycles.
    """

    generator: torch.Generator
    start: Tensor
    phase: Tensor


@dataclass
class HiftStreamState:
    """The sliding window of a stream; its size doesn't depend on the length of the reply.

    Attributes:
        source_state: State of the source.
        mel: (B, C, F) mel from frame `first_frame` on.
        source: (B, 1, T) final source from the same frame on.
        first_frame: Index of the window's first frame.
        num_frames: Frames whose samples have been returned.
    """

    source_state: SourceState | None = None
    mel: Tensor | None = None
    source: Tensor | None = None
    first_frame: int = 0
    num_frames: int = 0


class Snake(nn.Module):
    """x + sin(a x)^2 / a, with a for each channel (Ziyin et al., arXiv:2006.08195)."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        alpha = self.alpha.unsqueeze(-1)
        return x + (alpha * x).sin().square() / (alpha + 1e-9)


def _same_conv(channels: int, out_channels: int, kernel: int, dilation: int = 1) -> nn.Conv1d:
    return nn.Conv1d(channels, out_channels, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)


class ResBlock(nn.Module):
    """Pairs of convolutions, the first of each dilated, with Snake activations and residual connections."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()
        self.convs1 = nn.ModuleList(_same_conv(channels, channels, kernel, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(_same_conv(channels, channels, kernel) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        for first, second, before, between in zip(
            self.convs1, self.convs2, self.activations1, self.activations2, strict=True
        ):
            x = x + second(between(first(before(x))))
        return x


def _block_reach(kernel: int, dilations: tuple[int, ...]) -> int:
    """Positions to either side that an output of a `ResBlock` depends on."""
    return sum(dilation * (kernel - 1) // 2 + (kernel - 1) // 2 for dilation in dilations)


class PitchPredictor(nn.Module):
    """Mel -> fundamental frequency in Hz."""

    def __init__(self, channels: int, width: int, num_convolutions: int):
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(num_convolutions):
            layers += [nn.Conv1d(width if number else channels, width, 3, padding=1), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, 1)
        self.reach = num_convolutions

    def forward(self, mel: Tensor) -> Tensor:
        """(B, C, F) -> (B, F)."""
        return self.classifier(self.condnet(mel).transpose(1, 2)).squeeze(-1).abs()


class HarmonicSource(nn.Module):
    """Sines at the multiples of a pitch, noise where there is none, mixed into one signal."""

    def __init__(self, config: HiftConfig, frame_length: int):
        super().__init__()
        self.config, self.frame_length = config, frame_length
        self.l_linear = nn.Linear(config.nb_harmonics + 1, 1)

    def start(self, batch: int, seed: int, device: torch.device) -> SourceState:
        """The state before the first frame: random phases for all harmonics but the fundamental."""
        generator = torch.Generator().manual_seed(seed)
        start = torch.rand(self.config.nb_harmonics + 1, generator=generator)
        start[0] = 0
        return SourceState(generator, start.to(device), torch.zeros(batch, 1, dtype=torch.float64, device=device))

    def forward(self, pitch: Tensor, state: SourceState) -> Tensor:
        """(B, F) Hz -> (B, 1, T); all rows share the noise, so that batched equals single."""
        config, size = self.config, (self.frame_length, self.config.nb_harmonics + 1)
        batch, num_frames = pitch.shape
        step = pitch.double().unsqueeze(-1) / config.sampling_rate  # cycles in a sample
        ends = state.phase + (step.squeeze(-1) * self.frame_length).cumsum(1)
        starts = torch.cat([state.phase, ends], dim=1)[:, :-1].unsqueeze(-1)
        if num_frames:
            state.phase = ends[:, -1:] % 1
        phase = (starts + step * torch.arange(1, self.frame_length + 1, device=pitch.device)) % 1
        multiples = torch.arange(1, config.nb_harmonics + 2, device=pitch.device)
        cycles = (phase.unsqueeze(-1) * multiples + state.start) % 1
        drawn = [torch.randn(size, generator=state.generator) for _ in range(num_frames)]
        noise = torch.stack(drawn).to(pitch.device) if drawn else torch.zeros(0, *size, device=pitch.device)
        voiced = (pitch > config.nsf_voiced_threshold).float()[..., None, None]
        loudness = voiced * config.nsf_sigma + (1 - voiced) * config.nsf_alpha / 3
        waves = voiced * config.nsf_alpha * (2 * math.pi * cycles.float()).sin() + loudness * noise
        mixed = self.l_linear(waves.to(self.l_linear.weight.dtype)).float().tanh()
        return mixed.reshape(batch, 1, num_frames * self.frame_length)


class HiftGenerator(nn.Module):
    """Log-mel -> waveform, `frame_length` samples a frame."""

    def __init__(self, config: HiftConfig):
        super().__init__()
        self.config = config
        rates, kernels = config.upsample_rates, config.upsample_kernel_sizes
        self.frame_length = math.prod(rates) * config.hop_len
        self.m_source = HarmonicSource(config, self.frame_length)
        self.conv_pre = _same_conv(config.in_channels, config.base_channels, 7)
        widths = [config.base_channels >> stage for stage in range(len(rates) + 1)]
        self.ups, self.source_downs = nn.ModuleList(), nn.ModuleList()
        self.source_resblocks, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for stage, (rate, kernel) in enumerate(zip(rates, kernels, strict=True)):
            width, stride = widths[stage + 1], math.prod(rates[stage + 1 :])
            self.ups.append(nn.ConvTranspose1d(widths[stage], width, kernel, rate, padding=(kernel - rate) // 2))
            down = (1, 1, 0) if stride == 1 else (2 * stride, stride, stride // 2)
            self.source_downs.append(nn.Conv1d(config.n_fft + 2, width, *down))
            sizes = (config.source_resblock_kernel_sizes[stage], config.source_resblock_dilation_sizes[stage])
            self.source_resblocks.append(ResBlock(width, *sizes))
            for sizes in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True):
                self.resblocks.append(ResBlock(width, *sizes))
        self.conv_post = _same_conv(widths[-1], config.n_fft + 2, 7)
        self.f0_predictor = PitchPredictor(config.in_channels, config.f0_channels, config.f0_convolutions)
        self.reach = self._reach()

    def _reach(self) -> int:
        """Frames of mel and of source, to either side of a frame, that its samples depend on."""
        config = self.config
        positions = config.n_fft // config.hop_len + 3  # and the last convolution's padding
        samples = 0
        for stage in reversed(range(len(config.upsample_rates))):
            positions += max(map(_block_reach, config.resblock_kernel_sizes, config.resblock_dilation_sizes))
            stride = config.hop_len * math.prod(config.upsample_rates[stage + 1 :])
            kernel, dilations = config.source_resblock_kernel_sizes[stage], config.source_resblock_dilation_sizes[stage]
            of_source = (positions + _block_reach(kernel, dilations) + 2) * stride + config.n_fft
            samples = max(samples, of_source)
            rate, kernel = config.upsample_rates[stage], config.upsample_kernel_sizes[stage]
            positions = -(-(positions + 1 + kernel) // rate)
        return max(positions + 3, -(-samples // self.frame_length)) + 1

    def decode(self, mel: Tensor, source: Tensor) -> Tensor:
        """Mel (B, C, F) and its source (B, 1, T) -> samples (B, T), T = F * `frame_length`."""
        config, num_kernels = self.config, len(self.config.resblock_kernel_sizes)
        window = torch.hann_window(config.n_fft, device=mel.device)
        dtype = self.conv_pre.weight.dtype
        spectrum = torch.stft(
            source.squeeze(1).float(), config.n_fft, config.hop_len, window=window, return_complex=True
        )
        spectrum = torch.cat([spectrum.real, spectrum.imag], dim=1).to(dtype)
        x = self.conv_pre(mel.to(dtype))
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, config.lrelu_slope))
            if stage == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")
            x = x + self.source_resblocks[stage](self.source_downs[stage](spectrum))
            blocks = self.resblocks[stage * num_kernels : (stage + 1) * num_kernels]
            x = torch.stack([block(x) for block in blocks]).mean(0)
        x = self.conv_post(F.leaky_relu(x)).float()
        bins = config.n_fft // 2 + 1
        magnitude, phase = x[:, :bins].exp().clamp(max=1e2), x[:, bins:].sin()
        samples = torch.istft(torch.polar(magnitude, phase), config.n_fft, config.hop_len, window=window)
        return samples.clamp(-config.audio_limit, config.audio_limit)

    def forward(self, mel: Tensor, seed: int = 42) -> Tensor:
        """Mel (B, C, F) -> samples (B, T), in one shot; the seed determines the source."""
        return self.stream(mel, HiftStreamState(), seed, last=True)

    def stream(self, mel: Tensor, state: HiftStreamState, seed: int, last: bool) -> Tensor:
        """Append F frames (B, C, F) and return the samples (B, T) that are final now; `state` is updated in place.

        Samples lag `lookahead` frames behind the mel; the joined chunks equal `forward` of all frames.
        """
        if state.mel is None:
            state.mel, state.source = mel[..., :0], mel.new_zeros(len(mel), 1, 0, dtype=torch.float32)
            state.source_state = self.m_source.start(len(mel), seed, mel.device)
        assert state.source is not None and state.source_state is not None
        state.mel = torch.cat([state.mel, mel], dim=-1)
        size, known = state.mel.shape[-1], state.source.shape[-1] // self.frame_length
        settled = size if last else max(known, size - self.f0_predictor.reach)
        if settled > known:
            context = max(0, known - self.f0_predictor.reach)
            dtype = self.conv_pre.weight.dtype
            pitch = self.f0_predictor(state.mel[..., context:].to(dtype)).float()
            more = self.m_source(pitch[:, known - context : settled - context], state.source_state)
            state.source = torch.cat([state.source, more], dim=-1)
        begin = state.num_frames - state.first_frame
        end = settled if last else settled - self.reach
        if end <= begin:
            return mel.new_zeros(len(mel), 0, dtype=torch.float32)
        samples = self.decode(state.mel[..., :settled], state.source)
        state.num_frames = state.first_frame + end
        if drop := max(0, end - self.reach):
            state.first_frame += drop
            state.mel, state.source = state.mel[..., drop:], state.source[..., drop * self.frame_length :]
        return samples[:, begin * self.frame_length : end * self.frame_length]

    @property
    def lookahead(self) -> int:
        """Number of frames that must follow before a frame's samples are final."""
        return self.reach + self.f0_predictor.reach
