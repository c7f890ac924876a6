"""`hf_codec`: the neural codecs of transformers, Mimi, DAC, EnCodec and X-Codec 2, by hub id or folder."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_s2s.components.base import PlainValues
from lightning_s2s.components.pretrained import build_model, check_model_type, load_pretrained, without_code
from lightning_s2s.components.registry import VOCODERS
from lightning_s2s.components.vocoders.conv_stream import ConvStream, fold_weight_norms, stream_seanet
from lightning_s2s.components.vocoders.flattened import DecoderT, FlattenedCodecVocoder
from lightning_s2s.components.vocoders.windowed import Window, WindowState, stream_window
from lightning_s2s.support.extras import install_command
from lightning_s2s.support.ranges import Count, Natural

WINDOW_OPTIONS = {"chunk_units": 25, "left_context_units": 50, "lookahead_units": 5}
"""Defaults for a codec that can't be streamed exactly; the others don't use them."""


class Codec(ABC, Generic[DecoderT]):
    """The differences between the codecs of transformers. B batch, K codebooks, F frames, T samples.

    Attributes:
        sample_rate: Sample rate in Hz.
        samples_per_frame: Samples in a frame.
        codebook_size: Number of codes in a codebook.
        max_codebooks: Number of codebooks.
        min_codebooks: Smallest number of codebooks that can be decoded.
    """

    samples_per_frame: int
    codebook_size: int
    max_codebooks: int
    min_codebooks: int = 1

    def __init__(self, model: Any):
        self.model, self.sample_rate = model, int(model.config.sampling_rate)

    @abstractmethod
    def encode(self, waveform: Tensor, num_codebooks: int) -> Tensor:
        """(T,) -> (1, K, F)."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """(B, K, F) -> (B, T)."""

    @abstractmethod
    def start(self) -> DecoderT:
        """The state of a new decode."""

    @abstractmethod
    def decode_next(self, codes: Tensor, state: DecoderT, last: bool) -> Tensor:
        """Append codes (B, K, F) and return the samples (B, T) that are final now."""

    def check(self, **needed: Any) -> None:
        """Raise ValueError unless the configuration is that of the published causal, mono models."""
        for key, value in needed.items():
            if (found := getattr(self.model.config, key)) != value:
                raise ValueError(
                    f"vocoder hf_codec: {self.model.config.model_type} with {key} {found!r} can't be streamed; "
                    f"{key} must be {value!r}"
                )


class EncodecCodec(Codec[ConvStream]):
    """EnCodec (arXiv:2210.13438) in its causal, mono form at 24 kHz."""

    def __init__(self, model: Any):
        super().__init__(model)
        self.check(
            audio_channels=1, normalize=False, chunk_length_s=None, use_causal_conv=True, norm_type="weight_norm",
            trim_right_ratio=1.0,
        )  # fmt: skip
        self.samples_per_frame, self.codebook_size = model.config.hop_length, model.config.codebook_size
        self.max_codebooks = model.config.num_quantizers

    def encode(self, waveform: Tensor, num_codebooks: int) -> Tensor:
        widest = self.model.config.target_bandwidths[-1]
        return self.model.encode(waveform[None, None], bandwidth=widest).audio_codes[0][:, :num_codebooks]

    def decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes[None], [None]).audio_values[:, 0]

    def start(self) -> ConvStream:
        return ConvStream()

    def decode_next(self, codes: Tensor, state: ConvStream, last: bool) -> Tensor:
        vectors = self.model.quantizer.decode(codes.transpose(0, 1))
        return stream_seanet(self.model.decoder.layers, vectors, state, last)[:, 0]


@dataclass
class MimiStream(ConvStream):
    """State of a stream of Mimi; `cache` holds as many positions as the attention window."""

    cache: Any = None


class MimiCodec(Codec[MimiStream]):
    """Mimi (arXiv:2410.00037): causal throughout, a Transformer with a sliding window between convolutions."""

    def __init__(self, model: Any):
        super().__init__(model)
        self.check(audio_channels=1, use_causal_conv=True, pad_mode="constant", trim_right_ratio=1.0)
        self.samples_per_frame = round(self.sample_rate / model.config.frame_rate)
        self.codebook_size, self.max_codebooks = model.config.codebook_size, model.config.num_quantizers
        self.min_codebooks = model.config.num_semantic_quantizers

    def encode(self, waveform: Tensor, num_codebooks: int) -> Tensor:
        return self.model.encode(waveform[None, None], num_quantizers=num_codebooks).audio_codes

    def decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes).audio_values[:, 0]

    def start(self) -> MimiStream:
        from transformers import DynamicCache

        return MimiStream(cache=DynamicCache(config=self.model.decoder.config))

    def decode_next(self, codes: Tensor, state: MimiStream, last: bool) -> Tensor:
        if not codes.shape[-1]:
            return torch.zeros(len(codes), 0, device=codes.device)  # nothing is pending
        decoder = self.model.decoder
        x = state.transposed(decoder.upsample.conv, self.model.quantizer.decode(codes), last, causal=True)
        x = decoder.decoder_transformer(
            x.transpose(1, 2), past_key_values=state.cache, use_cache=True
        ).last_hidden_state.transpose(1, 2)
        return stream_seanet(decoder.decoder_seanet.layers, x, state, last)[:, 0]


class DacCodec(Codec[ConvStream]):
    """Descript Audio Codec (arXiv:2306.06546): convolutions that look ahead by some ten frames."""

    def __init__(self, model: Any):
        super().__init__(model)
        self.samples_per_frame, self.codebook_size = model.config.hop_length, model.config.codebook_size
        self.max_codebooks = model.config.n_codebooks

    def encode(self, waveform: Tensor, num_codebooks: int) -> Tensor:
        padded = F.pad(waveform, (0, -len(waveform) % self.samples_per_frame))  # as its feature extractor does
        return self.model.encode(padded[None, None], n_quantizers=num_codebooks).audio_codes

    def decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(audio_codes=codes).audio_values

    def start(self) -> ConvStream:
        return ConvStream()

    def decode_next(self, codes: Tensor, state: ConvStream, last: bool) -> Tensor:
        decoder = self.model.decoder
        if codes.shape[-1]:
            vectors = self.model.quantizer.from_codes(codes)[0]
        else:
            vectors = decoder.conv1.weight.new_zeros(len(codes), decoder.conv1.in_channels, 0)
        x = state.conv(decoder.conv1, vectors, last)
        for block in decoder.block:
            x = state.transposed(block.conv_t1, block.snake1(x), last)
            for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
                y = state.conv(unit.conv1, unit.snake1(x), last)
                x = state.add(unit, x, state.conv(unit.conv2, unit.snake2(y), last))
        return decoder.tanh(state.conv(decoder.conv2, decoder.snake1(x), last))[:, 0]


class Xcodec2Codec(Codec[WindowState]):
    """X-Codec 2 (arXiv:2502.04128): one codebook; attention and normalisation over the whole reply."""

    max_codebooks = 1
    window: Window

    def __init__(self, model: Any):
        super().__init__(model)
        self.samples_per_frame = model.config.hop_length
        self.codebook_size = math.prod(model.config.quantization_levels)

    def encode(self, waveform: Tensor, num_codebooks: int) -> Tensor:
        try:
            from transformers import Xcodec2FeatureExtractor

            extractor = Xcodec2FeatureExtractor(sampling_rate=self.sample_rate, hop_length=self.samples_per_frame)
        except ImportError:
            raise ValueError(
                f"vocoder hf_codec: X-Codec 2 needs torchaudio to tokenise; {install_command('codecs')}"
            ) from None
        features = extractor(waveform.cpu(), sampling_rate=self.sample_rate, return_tensors="pt")
        codes = self.model.encode(**features.to(waveform.device)).audio_codes.long()
        return codes[..., : math.ceil(len(waveform) / self.samples_per_frame)]  # the last one may hold only padding

    def decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes).audio_values[:, 0]

    def start(self) -> WindowState:
        return WindowState()

    def decode_next(self, codes: Tensor, state: WindowState, last: bool) -> Tensor:
        return stream_window(self.decode, codes, state, last, self.window, self.samples_per_frame)


CODECS: dict[str, type[Codec[Any]]] = {
    "dac": DacCodec,
    "encodec": EncodecCodec,
    "mimi": MimiCodec,
    "xcodec2": Xcodec2Codec,
}
"""transformers' `model_type` -> codec."""


@VOCODERS.register("hf_codec")
class HfCodecVocoder(FlattenedCodecVocoder[ConvStream | WindowState]):
    """A codec of transformers: Mimi, DAC or EnCodec (streamed exactly), or X-Codec 2 (in windows), flattened.

    The rates, the number of units and how it streams are the checkpoint's, see `docs/vocoders.md`.

    Args:
        checkpoint: Hub id or folder, such as `kyutai/mimi`, `descript/dac_16khz`, `facebook/encodec_24khz`,
            `HKUSTAudio/xcodec2-hf`.
        config: Instead of a checkpoint, the configuration of a codec with random weights, with its `model_type`.
        num_codebooks: How many of the residual codebooks to use, from the first one; None uses all.
        chunk_units: Only for X-Codec 2: units that are decoded together; None is 25 (0.5 s).
        left_context_units: Only for X-Codec 2: past units in the window of a chunk; None is 50 (1 s).
        lookahead_units: Only for X-Codec 2: units after a chunk that its window waits for; None is 5 (0.1 s).

    Raises:
        ValueError: The checkpoint can't be loaded, is another kind of codec, or an option isn't allowed.
    """

    paper = "arXiv:2410.00037, arXiv:2306.06546, arXiv:2210.13438, arXiv:2502.04128"
    rates = "Mimi 12.5 Hz x 1-32, DAC 50-86 Hz x 1-32, EnCodec 75 Hz x 1-32, X-Codec 2 50 Hz; 16,000-44,100 Hz"
    size = "Mimi 96M, DAC 74-77M, EnCodec 15M, X-Codec 2 629M"
    licence = "Mimi CC-BY-4.0, DAC MIT, EnCodec none named, X-Codec 2 CC-BY-NC-4.0"

    def __init__(
        self,
        checkpoint: str | None = None,
        config: PlainValues | None = None,
        num_codebooks: Count | None = None,
        chunk_units: Count | None = None,
        left_context_units: Natural | None = None,
        lookahead_units: Natural | None = None,
    ):
        super().__init__()
        if (checkpoint is None) == (config is None):
            raise ValueError("vocoder hf_codec: give either checkpoint or config")
        self.model = _load(checkpoint) if checkpoint is not None else _build(config or {})
        fold_weight_norms(self.model)
        self.codec = CODECS[self.model.config.model_type](self.model)
        fewest, most = self.codec.min_codebooks, self.codec.max_codebooks
        num_codebooks = most if num_codebooks is None else num_codebooks
        if not fewest <= num_codebooks <= most:
            raise ValueError(
                f"vocoder hf_codec: num_codebooks: got {num_codebooks}; {self.model.config.model_type} has "
                f"{fewest}..{most}"
            )
        self._set_window(chunk_units, left_context_units, lookahead_units)
        self.set_rates(self.codec.sample_rate, self.codec.samples_per_frame, self.codec.codebook_size, num_codebooks)
        self.eval()

    def _set_window(self, *sizes: int | None) -> None:
        given = {name: size for name, size in zip(WINDOW_OPTIONS, sizes, strict=True) if size is not None}
        if not isinstance(self.codec, Xcodec2Codec):
            if given:
                raise ValueError(
                    f"vocoder hf_codec: {next(iter(given))} has no use: {self.model.config.model_type} is streamed "
                    "exactly; leave it out"
                )
            return
        chunk, left, right = (WINDOW_OPTIONS | given).values()
        if chunk < 1 or left < 0 or right < 0:
            raise ValueError(
                "vocoder hf_codec: chunk_units must be at least 1, left_context_units and lookahead_units at least 0; "
                f"got {chunk}, {left} and {right}"
            )
        self.codec.window = Window(chunk, left, right)

    def pretrained_args(self, folder: Path) -> dict[str, Any]:
        return {**self.init_args, "checkpoint": None, "config": without_code(self.model.config)}

    def _apply(self, fn: Any, recurse: bool = True) -> HfCodecVocoder:
        super()._apply(fn, recurse)
        self._clear_codebook_cache()
        return self

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self._clear_codebook_cache()
        super()._load_from_state_dict(*args, **options)

    def _clear_codebook_cache(self) -> None:
        """Drop Mimi's cached codebooks, which neither a move to a GPU nor loading weights would update."""
        for module in self.modules():
            if hasattr(module, "embed_sum"):
                setattr(module, "_embed", None)  # noqa: B010 (mypy takes it for a submodule)

    def encode(self, waveform: Tensor) -> Tensor:
        return self.codec.encode(waveform, self.codebooks_per_frame)[0]

    def decode(self, codes: Tensor) -> Tensor:
        return self.codec.decode(codes)

    def start_decoder(self) -> ConvStream | WindowState:
        return self.codec.start()

    def decode_next(self, codes: Tensor, state: ConvStream | WindowState, last: bool) -> Tensor:
        return self.codec.decode_next(codes, state, last)


def _load(checkpoint: str) -> Any:
    model_type = load_pretrained("AutoConfig", checkpoint).model_type
    check_model_type(model_type, CODECS, f"vocoder hf_codec: {checkpoint}")
    return load_pretrained("AutoModel", checkpoint, dtype="float32")


def _build(config: dict[str, Any]) -> Any:
    """A codec with random weights and codebooks: transformers initialises Mimi's and EnCodec's codebooks to zeros."""
    source = "vocoder hf_codec: config"
    check_model_type(config.get("model_type"), CODECS, source)
    model = build_model(config, source)
    for name, buffer in model.named_buffers():
        if name.endswith((".embed", ".embed_sum")):
            buffer.normal_()
    return model
