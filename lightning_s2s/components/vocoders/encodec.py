"""`encodec`: the codec of the package encodec at 24 kHz, 75 frames per second, 2 to 32 codebooks, exact streaming."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_s2s.components.base import PlainValues
from lightning_s2s.components.registry import VOCODERS
from lightning_s2s.components.vocoders.conv_stream import ConvStream, fold_weight_norms, stream_seanet
from lightning_s2s.components.vocoders.flattened import FlattenedCodecVocoder
from lightning_s2s.components.weights import WEIGHTS, load_tensors, read_state_dict
from lightning_s2s.support.ranges import Positive

SAMPLE_RATE, SAMPLES_PER_FRAME, CODEBOOK_SIZE, MAX_CODEBOOKS = 24_000, 320, 1024, 32
BANDWIDTHS = {1.5: 2, 3.0: 4, 6.0: 8, 12.0: 16, 24.0: 32}
"""kbit/s -> codebooks."""
SIZES = {"n_filters": 32, "dimension": 128, "lstm": 2}
"""Sizes that `config` may change, under the package's names, and their published values."""


@VOCODERS.register("encodec")
class EncodecVocoder(FlattenedCodecVocoder[ConvStream]):
    """EnCodec of the package `encodec`: 24 kHz, 75 frames per second of 2 to 32 codebooks, flattened; streams exactly.

    Défossez et al., arXiv:2210.13438. Encoder and decoder are causal. A stream keeps the LSTM's state and the left
    context of the convolutions; the first samples need 7 frames (93 ms), which the first convolution reflects.

    Args:
        checkpoint: The package's state dict, `encodec_24khz-d7cc33bc.th` or the same as safetensors, or a folder with
            `model.safetensors`; it is read as plain tensors.
        pretrained: Whether to download the published weights from the package's URL, instead of giving `checkpoint`.
            Without either, the weights are random.
        bandwidth: Bandwidth in kbit/s: 1.5, 3, 6, 12 or 24, for 2, 4, 8, 16 or 32 codebooks.
        config: Sizes of the network that differ from the published ones: `n_filters`, `dimension`, `lstm` (layers).

    Raises:
        ValueError: A file holds no EnCodec, or an option isn't allowed.
    """

    paper = "arXiv:2210.13438"
    rates = "150-2,400 Hz (75 Hz x 2-32), 2,048-32,768 units, 24,000 Hz"
    size = "15M"
    licence = "none named"
    extra = "codecs"
    sources = ("checkpoint", "pretrained")

    def __init__(
        self,
        checkpoint: str | None = None,
        pretrained: bool = False,
        bandwidth: Positive = 6.0,
        config: PlainValues | None = None,
    ):
        super().__init__()
        if bandwidth not in BANDWIDTHS:
            allowed = ", ".join(f"{one:g}" for one in BANDWIDTHS)
            raise ValueError(f"vocoder encodec: bandwidth must be one of {allowed}; got {bandwidth}")
        if pretrained and (checkpoint is not None or config is not None):
            raise ValueError("vocoder encodec: pretrained goes with neither checkpoint nor config")
        self.codec = build_encodec(config or {})
        if pretrained:
            self.codec.load_state_dict(_download())
        elif checkpoint is not None:
            _load(self.codec, Path(checkpoint))
        fold_weight_norms(self.codec)
        self.codec.set_target_bandwidth(bandwidth)
        self.set_rates(SAMPLE_RATE, SAMPLES_PER_FRAME, CODEBOOK_SIZE, BANDWIDTHS[bandwidth])
        self.eval()

    def pretrained_args(self, folder: Path) -> dict[str, Any]:
        return {**self.init_args, "checkpoint": None, "pretrained": False}

    def encode(self, waveform: Tensor) -> Tensor:
        """One clip (T,) -> codes (K, F), F = ceil(T / 320)."""
        ((codes, _),) = self.codec.encode(waveform[None, None])
        return codes[0]

    def decode(self, codes: Tensor) -> Tensor:
        return self.codec.decode([(codes, None)])[:, 0]

    def start_decoder(self) -> ConvStream:
        return ConvStream()

    def decode_next(self, codes: Tensor, state: ConvStream, last: bool) -> Tensor:
        vectors = self.codec.quantizer.decode(codes.transpose(0, 1))
        return stream_seanet(self.codec.decoder.model, vectors, state, last)[:, 0]


def build_encodec(config: dict[str, Any]) -> Any:
    """The package's 24 kHz model with random weights and codebooks.

    Raises:
        ValueError: `config` has an unknown key.
    """
    if unknown := sorted(config.keys() - SIZES.keys()):
        raise ValueError(f"vocoder encodec: config: unknown key {unknown[0]!r}; known: {', '.join(SIZES)}")
    from encodec.model import EncodecModel
    from encodec.modules import SEANetDecoder, SEANetEncoder
    from encodec.quantization import ResidualVectorQuantizer

    sizes = {**SIZES, **config}
    with warnings.catch_warnings():  # the package uses torch's old weight norm, which is folded soon after
        warnings.filterwarnings("ignore", ".*weight_norm.*", FutureWarning)
        encoder = SEANetEncoder(causal=True, norm="weight_norm", **sizes)
        decoder = SEANetDecoder(causal=True, norm="weight_norm", **sizes)
    return EncodecModel(
        encoder,
        decoder,
        # With k-means, the package leaves codebooks at zero until its first training batch.
        ResidualVectorQuantizer(sizes["dimension"], MAX_CODEBOOKS, CODEBOOK_SIZE, kmeans_init=False),
        list(BANDWIDTHS),
        sample_rate=SAMPLE_RATE,
        channels=1,
    )


def _download() -> dict[str, Tensor]:
    """The published weights, kept in torch hub's cache."""
    from encodec.model import ROOT_URL

    url = f"{ROOT_URL}encodec_24khz-d7cc33bc.th"
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except OSError as error:
        raise ValueError(f"vocoder encodec: pretrained: {url} can't be loaded ({error}); give checkpoint") from None


def _load(codec: Any, path: Path) -> None:
    path = path / WEIGHTS if path.is_dir() else path
    load_tensors(codec, read_state_dict(path, "EnCodec's weights"), path)
