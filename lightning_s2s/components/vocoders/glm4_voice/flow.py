"""Units -> mel by conditional flow matching: encoder, length regulator, U-Net estimator, Euler steps.

Lipman et al., arXiv:2210.02747; the estimator is Matcha-TTS's (Mehta et al., arXiv:2309.03199), the conditioning on a
mel prompt CosyVoice's (Du et al., arXiv:2407.05407). B batch, U units, F mel frames, C channels. Attribute names are
those of the published state dict.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s2s.components.vocoders.glm4_voice.config import NORM_GROUPS, FlowConfig
from lightning_s2s.components.vocoders.glm4_voice.conformer import BlockConformerEncoder, named

TIME_SCALE = 1000
"""Factor by which Matcha-TTS scales the flow's time in [0, 1] before the sinusoidal embedding."""


def _conv_block(channels: int, out_channels: int) -> nn.Sequential:
    """(B, C, F) -> (B, C', F): convolution, GroupNorm over the whole length, Mish."""
    conv = nn.Conv1d(channels, out_channels, 3, padding=1)
    return named(block=nn.Sequential(conv, nn.GroupNorm(NORM_GROUPS, out_channels), nn.Mish()))


class ResnetBlock(nn.Module):
    """Two convolution blocks with the time embedding added in between, and a residual connection."""

    def __init__(self, channels: int, out_channels: int, time_width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_width, out_channels))
        self.block1 = _conv_block(channels, out_channels)
        self.block2 = _conv_block(out_channels, out_channels)
        self.res_conv = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, F) and (B, T) -> (B, C', F)."""
        return self.block2(self.block1(x) + self.mlp(time).unsqueeze(-1)) + self.res_conv(x)


class Attention(nn.Module):
    """Multi-head self-attention over all frames."""

    def __init__(self, channels: int, num_heads: int, head_width: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, num_heads * head_width, bias=False)
        self.to_k = nn.Linear(channels, num_heads * head_width, bias=False)
        self.to_v = nn.Linear(channels, num_heads * head_width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(num_heads * head_width, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, C) -> (B, F, C)."""
        query, key, value = (
            to(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out[0](F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Pre-norm attention and feed-forward network, each with a residual connection."""

    def __init__(self, channels: int, num_heads: int, head_width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, num_heads, head_width)
        self.norm3 = nn.LayerNorm(channels)
        # Index 1 of `net` is a dropout in the published code.
        widen = named(proj=nn.Linear(channels, 4 * channels), gelu=nn.GELU())
        self.ff = named(net=nn.Sequential(widen, nn.Identity(), nn.Linear(4 * channels, channels)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, C) -> (B, F, C)."""
        x = x + self.attn1(self.norm1(x))
        return x + self.ff(self.norm3(x))


class TimeMLP(nn.Module):
    """The flow's time as sinusoids -> its embedding."""

    def __init__(self, width: int, time_width: int):
        super().__init__()
        self.linear_1 = nn.Linear(width, time_width)
        self.linear_2 = nn.Linear(time_width, time_width)

    def forward(self, time: Tensor) -> Tensor:
        """(B,) in [0, 1] -> (B, T)."""
        half = self.linear_1.in_features // 2
        rate = torch.exp(torch.arange(half, device=time.device).float() * -(math.log(10_000) / (half - 1)))
        angle = TIME_SCALE * time.unsqueeze(1) * rate
        sinusoids = torch.cat([angle.sin(), angle.cos()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(sinusoids)))


class UNetLevel(nn.ModuleList):
    """A level of the U-Net: a ResNet block, Transformer blocks and, where the level has one, a change of the rate."""

    def __init__(self, config: FlowConfig, channels: int, out_channels: int, *resample: nn.Module):
        blocks = [
            TransformerBlock(out_channels, config.num_heads, config.attention_head_dim) for _ in range(config.n_blocks)
        ]
        resnet = ResnetBlock(channels, out_channels, 4 * config.channels[0])
        super().__init__([resnet, nn.Sequential(*blocks), *resample])

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, F) and (B, T) -> (B, C', F) before, and (B, C', F') after the change of the rate."""
        x = self[1](self[0](x, time).transpose(1, 2)).transpose(1, 2)
        return x, self[2](x) if len(self) > 2 else x


class Estimator(nn.Module):
    """The U-Net that gives the flow's direction at a time, from noisy mel, `mu`, speaker and mel prompt."""

    def __init__(self, config: FlowConfig):
        super().__init__()
        channels = list(config.channels)
        self.time_mlp = TimeMLP(config.estimator_in_channels, 4 * channels[0])

        def resample(width: int, level: int, up: bool) -> nn.Module:
            if level == len(channels) - 1:
                return nn.Conv1d(width, width, 3, padding=1)
            return named(conv=nn.ConvTranspose1d(width, width, 4, 2, 1) if up else nn.Conv1d(width, width, 3, 2, 1))

        self.down_blocks = nn.ModuleList(
            UNetLevel(config, before, after, resample(after, level, up=False))
            for level, (before, after) in enumerate(
                zip([config.estimator_in_channels, *channels], channels, strict=False)
            )
        )
        self.mid_blocks = nn.ModuleList(
            UNetLevel(config, channels[-1], channels[-1]) for _ in range(config.num_mid_blocks)
        )
        upwards = [*channels[::-1], channels[0]]
        self.up_blocks = nn.ModuleList(
            UNetLevel(config, 2 * before, after, resample(after, level, up=True))
            for level, (before, after) in enumerate(zip(upwards, upwards[1:], strict=False))
        )
        self.final_block = _conv_block(channels[0], channels[0])
        self.final_proj = nn.Conv1d(channels[0], config.output_size, 1)

    def forward(self, x: Tensor, mu: Tensor, time: Tensor, speaker: Tensor, prompt: Tensor) -> Tensor:
        """(B, C, F), (B, C, F), (B,), (B, C) and (B, C, F) -> (B, C, F), without padding."""
        embedded = self.time_mlp(time)
        x = torch.cat([x, mu, speaker.unsqueeze(-1).expand(-1, -1, x.shape[-1]), prompt], dim=1)
        skips = []
        for stage in self.down_blocks:
            skip, x = stage(x, embedded)
            skips.append(skip)
        for stage in self.mid_blocks:
            x, _ = stage(x, embedded)
        for stage in self.up_blocks:
            skip = skips.pop()
            _, x = stage(torch.cat([x[..., : skip.shape[-1]], skip], dim=1), embedded)
        return self.final_proj(self.final_block(x))


class FlowDecoder(nn.Module):
    """Noise -> mel in Euler steps, finest at the start (cosine schedule), with classifier-free guidance."""

    def __init__(self, config: FlowConfig):
        super().__init__()
        self.estimator = Estimator(config)

    def forward(
        self, noise: Tensor, mu: Tensor, speaker: Tensor, prompt: Tensor, num_steps: int, guidance: float
    ) -> Tensor:
        """(B, C, F) each, speaker (B, C) -> mel (B, C, F)."""
        times = 1 - torch.cos(torch.linspace(0, 1, num_steps + 1) * 0.5 * torch.pi)
        x, time = noise, times[0]
        mu, speaker, prompt = (torch.cat([part, torch.zeros_like(part)]) for part in (mu, speaker, prompt))
        for following in times[1:]:
            step = following - time
            at = time.to(x.device).expand(len(mu))
            with_condition, without = self.estimator(x.repeat(2, 1, 1), mu, at, speaker, prompt).chunk(2)
            x = x + float(step) * ((1.0 + guidance) * with_condition - guidance * without)
            time = time + step
        return x


def _length_regulator(channels: int, num_convolutions: int) -> nn.Sequential:
    """(B, C, F) hidden states, repeated to the mel's rate -> (B, C, F) `mu`; GroupNorm over the whole length."""
    layers: list[nn.Module] = []
    for _ in range(num_convolutions):
        layers += [nn.Conv1d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.Mish()]
    return named(model=nn.Sequential(*layers, nn.Conv1d(channels, channels, 1)))


class UnitToMel(nn.Module):
    """Units -> log-mel of 80 bands, 86.13 frames a second.

    The published code always passes zeros as the speaker embedding, so the bias of its projection is the speaker.
    """

    def __init__(self, config: FlowConfig):
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(config.vocab_size, config.input_size)
        self.spk_embed_affine_layer = nn.Linear(config.spk_embed_dim, config.output_size)
        self.encoder = BlockConformerEncoder(
            config.input_size,
            config.encoder_size,
            config.attention_heads,
            config.linear_units,
            config.num_blocks,
            config.block_size,
        )
        self.encoder_proj = nn.Linear(config.encoder_size, config.output_size)
        self.decoder = FlowDecoder(config)
        self.length_regulator = _length_regulator(config.output_size, config.regulator_convolutions)

    def num_frames(self, num_units: int) -> int:
        """Mel frames of `num_units` units, rounded down in the published code's float32 arithmetic."""
        config = self.config
        units = torch.tensor(num_units, dtype=torch.float32)
        return int(units / config.input_frame_rate * config.sampling_rate / config.mel_hop_length)

    def encode(self, units: Tensor) -> Tensor:
        """(B, U) -> (B, C, U)."""
        return self.encoder_proj(self.encoder(self.input_embedding(units))).transpose(1, 2)

    def noise(self, num_frames: int, seed: int) -> Tensor:
        """(1, C, F) on the CPU: what the published code draws after `torch.manual_seed(seed)`."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(1, self.config.output_size, num_frames, generator=generator)

    def solve(self, repeated: Tensor, noise: Tensor, prompt: Tensor, num_steps: int, guidance: float) -> Tensor:
        """Repeated hidden states (B, C, F), noise (1, C, F), past mel (B, C, F') with F' <= F -> mel (B, C, F)."""
        mu = self.length_regulator(repeated)
        speaker = self.spk_embed_affine_layer.bias.expand(len(mu), -1)
        prompt = F.pad(prompt.to(mu.dtype), (0, mu.shape[-1] - prompt.shape[-1]))
        return self.decoder(noise.to(mu).expand(len(mu), -1, -1), mu, speaker, prompt, num_steps, guidance)

    def forward(
        self,
        units: Tensor,
        prompt: Tensor | None = None,
        seed: int = 42,
        num_steps: int = 10,
        guidance: float = 0.7,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Units (B, U) -> mel (B, C, F) as published, F = `num_frames(U)`, without the frames of the prompt.

        Args:
            units: Units of the prompt, followed by the new ones.
            prompt: (B, C, F') mel of the first units.
            seed: Seed of the noise. All rows share the noise, so that batched equals single.
            num_steps: Number of Euler steps.
            guidance: Strength of classifier-free guidance.
            noise: (1, C, F) noise to use instead of drawing it from `seed`.
        """
        num_frames = self.num_frames(units.shape[1])
        repeated = F.interpolate(self.encode(units), size=num_frames, mode="nearest")
        if prompt is None:
            prompt = repeated[..., :0]
        noise = self.noise(num_frames, seed) if noise is None else noise
        return self.solve(repeated, noise, prompt, num_steps, guidance)[..., prompt.shape[-1] :]
