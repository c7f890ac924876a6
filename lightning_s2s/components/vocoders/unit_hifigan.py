"""`unit_hifigan`: SeamlessM4T's HiFi-GAN with a duration predictor, from discrete units of an SSL model to waveform."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s2s.components.base import PlainValues
from lightning_s2s.components.contracts import Vocoder
from lightning_s2s.components.encoders.ssl import SslEncoder
from lightning_s2s.components.pretrained import check_model_type, model_config, without_code
from lightning_s2s.components.registry import VOCODERS
from lightning_s2s.components.vocoders.conv_stream import ConvStream, fold_weight_norms
from lightning_s2s.components.weights import Shards, load_part, parameters_on_meta, read_state_dict
from lightning_s2s.support.ranges import Natural
from lightning_s2s.support.reading import read_json, reading

PREFIX = "vocoder."
"""Where a whole SeamlessM4T keeps its vocoder."""


@dataclass
class UnitHifiganStream(ConvStream):
    """State of a stream.

    Attributes:
        embedded: (B, C, U) embedded units whose duration isn't known yet.
        closed: Whether the last units were given.
    """

    embedded: Tensor | None = None
    closed: bool = False


@VOCODERS.register("unit_hifigan")
class UnitHifiganVocoder(Vocoder[UnitHifiganStream]):
    """Units of an SSL model and k-means -> 16 kHz by SeamlessM4T's HiFi-GAN, which predicts durations; streams exactly.

    Polyak et al., arXiv:2104.00355, as in SeamlessM4T (arXiv:2308.11596, v2: arXiv:2312.05187). Repeated units are
    merged, and the vocoder predicts how many frames of 20 ms a unit lasts, at least one: the length of a reply is known
    only once it is synthesised.

    Args:
        checkpoint: Folder of SeamlessM4T, v1 or v2, or of its vocoder alone (`config.json` and safetensors); of a
            whole model only the vocoder is read.
        hubert: Hub id or folder of the SSL model (HuBERT, wav2vec 2.0, ...) that units are made with; only `tokenize`
            needs it.
        kmeans: Centroids (num_centroids, D), as `.npy` or as the only tensor of a `.safetensors`; goes with `hubert`.
        hubert_layer: Transformer layer whose output k-means was trained on, counted from 1.
        deduplicate: Whether repeated units are merged and durations predicted. With false, a unit is a frame of 20 ms.
        speaker_id: Row of the vocoder's speaker embeddings.
        language_id: Row of its language embeddings; `vocoder_lang_code_to_id` of the checkpoint's generation config.
        config: Instead of the folders, configurations for random weights: `vocoder` (SeamlessM4T's, with its
            `model_type`), `hubert` (with its `model_type`) and `normalize`, whether clips are normalised for it.

    Raises:
        ValueError: A folder is missing or broken, or the parts don't fit each other.
    """

    paper = "arXiv:2104.00355"
    rates = "at most 50 Hz, 10,000 units, 16,000 Hz"
    size = "42M, and the SSL model for `tokenize`"
    licence = "CC-BY-NC-4.0"
    sources = ("checkpoint", "hubert", "kmeans")

    def __init__(
        self,
        checkpoint: str | None = None,
        hubert: str | None = None,
        kmeans: str | None = None,
        hubert_layer: Natural = 11,
        deduplicate: bool = True,
        speaker_id: Natural = 0,
        language_id: Natural = 0,
        config: PlainValues | None = None,
    ):
        super().__init__()
        given: dict[str, Any] = dict(config or {})
        if unknown := sorted(given.keys() - {"vocoder", "hubert", "normalize"}):
            raise ValueError(
                f"vocoder unit_hifigan: config: unknown key {unknown[0]!r}; known: vocoder, hubert, normalize"
            )
        if (checkpoint is None) == ("vocoder" not in given):
            raise ValueError("vocoder unit_hifigan: give either checkpoint or config with the key vocoder")
        if (hubert is None) != (kmeans is None):
            raise ValueError("vocoder unit_hifigan: hubert and kmeans go together: give both or neither")
        if checkpoint is not None:
            self.vocoder = _load_vocoder(Path(checkpoint))
        else:
            self.vocoder = _build_vocoder(given["vocoder"], "vocoder unit_hifigan: config.vocoder")
        fold_weight_norms(self.vocoder)
        sizes = self.vocoder.config
        self.sample_rate, self.num_units = sizes.sampling_rate, sizes.unit_hifi_gan_vocab_size
        self.samples_per_unit = math.prod(sizes.upsample_rates)
        self.deduplicate = self.predicts_durations = deduplicate
        for name, value, limit in (
            ("speaker_id", speaker_id, sizes.vocoder_num_spkrs),
            ("language_id", language_id, sizes.vocoder_num_langs),
        ):
            if not 0 <= value < limit:
                raise ValueError(f"vocoder unit_hifigan: {name}: got {value}; the vocoder has 0..{limit - 1}")
        self.speaker_id, self.language_id = speaker_id, language_id
        self.hubert: SslEncoder | None = None
        if hubert is not None and kmeans is not None:
            self._add_tokenizer(_ssl_encoder(hubert_layer, checkpoint=hubert), _read_centroids(Path(kmeans)))
        elif "hubert" in given:
            normalize = given.get("normalize", True)
            encoder = _ssl_encoder(hubert_layer, config=given["hubert"], normalize=normalize)
            self._add_tokenizer(encoder, torch.randn(self.num_units, encoder.width))
        self.eval()

    def _add_tokenizer(self, hubert: SslEncoder, centroids: Tensor) -> None:
        """Check that the SSL model, the centroids and the vocoder agree on the units."""
        if centroids.dim() != 2 or centroids.shape[1] != hubert.width or len(centroids) > self.num_units:
            raise ValueError(
                f"vocoder unit_hifigan: kmeans has shape {tuple(centroids.shape)}; at most {self.num_units} centroids "
                f"(the vocoder's units) of width {hubert.width} (the hidden states of hubert) are needed"
            )
        hop = round(self.sample_rate / hubert.frame_rate_hz)
        if hop != self.samples_per_unit:
            raise ValueError(
                f"vocoder unit_hifigan: hubert has a frame in {hop} samples, the vocoder in {self.samples_per_unit}; "
                "they must be equal"
            )
        self.hubert = hubert
        self.register_buffer("centroids", centroids)

    def pretrained_args(self, folder: Path) -> dict[str, Any]:
        config: dict[str, Any] = {"vocoder": without_code(self.vocoder.config)}
        if self.hubert is not None:
            encoder = self.hubert.pretrained_args(folder)
            config |= {"hubert": encoder["config"], "normalize": encoder["normalize"]}
        return self.init_args | {"checkpoint": None, "hubert": None, "kmeans": None, "config": config}

    def train(self, mode: bool = True) -> UnitHifiganVocoder:
        """Stays in eval mode, without dropout."""
        return super().train(False)

    # --- waveform -> units --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def tokenize(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) at 16 kHz, right-padded, and (B,) samples -> units (B, U) and (B,) counts.

        There is one unit for 320 samples, before repeated units are merged.

        Raises:
            ValueError: The vocoder was built without an SSL model.
        """
        if self.hubert is None:
            raise ValueError(
                "vocoder unit_hifigan was built without hubert and kmeans: it speaks but can't tokenize; give hubert, "
                "the SSL model, and kmeans, its centroids"
            )
        rows = [self._tokenize_clip(clip[:length]) for clip, length in zip(waveform, lengths.tolist(), strict=True)]
        counts = torch.tensor([len(row) for row in rows], device=lengths.device)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), counts

    def _tokenize_clip(self, clip: Tensor) -> Tensor:
        """(T,) -> (U,)."""
        assert self.hubert is not None
        if len(clip) < self.hubert.min_samples:
            return torch.zeros(0, dtype=torch.long, device=clip.device)
        hidden_states, _ = self.hubert(clip[None], torch.tensor([len(clip)], device=clip.device))
        units = torch.cdist(hidden_states[0], self.get_buffer("centroids")).argmin(-1)
        return units.unique_consecutive() if self.deduplicate else units

    # --- units -> waveform --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def synthesize(self, units: Tensor) -> Tensor:
        """Units (B, U) -> (B, T); rows that are shorter by their predicted durations are padded with zeros."""
        self.check_units(units)
        if not units.shape[1]:
            return torch.zeros(len(units), 0, device=units.device)
        embedded = self.vocoder.unit_embedding(units).transpose(1, 2)
        if not self.deduplicate:
            return self.vocoder.hifi_gan(self._with_voice(embedded))
        durations = to_durations(self.vocoder.dur_predictor(embedded.transpose(1, 2)))
        rows = [
            self.vocoder.hifi_gan(self._with_voice(row[None].repeat_interleave(count, dim=2)))[0]
            for row, count in zip(embedded, durations, strict=True)
        ]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def start_stream(self) -> UnitHifiganStream:
        return UnitHifiganStream()

    @torch.inference_mode()
    def stream(self, units: Tensor, state: UnitHifiganStream, last: bool) -> Tensor:
        """Append units (B, U) and return the samples (B, T) that are final now.

        Raises:
            ValueError: A unit lies outside the codebook, the stream was closed, or a batch of replies is streamed with
                predicted durations.
        """
        self.check_units(units)
        if state.closed:
            raise ValueError("this stream was closed by last=True; start a new one")
        if self.deduplicate and len(units) > 1:
            raise ValueError(
                f"vocoder unit_hifigan: got {len(units)} replies; with predicted durations one is streamed at a time"
            )
        state.closed = last
        embedded = self.vocoder.unit_embedding(units).transpose(1, 2)
        if self.deduplicate:
            embedded = self._lengthen(embedded, state, last)
        return self._speak(self._with_voice(embedded), state, last)

    def _lengthen(self, embedded: Tensor, state: UnitHifiganStream, last: bool) -> Tensor:
        """Append units (1, C, U) and return the frames (1, C, F) of those whose duration is final."""
        predictor = self.vocoder.dur_predictor
        x = predictor.activation_function(state.conv(predictor.conv1, embedded, last)).transpose(1, 2)
        x = state.conv(predictor.conv2, predictor.ln1(x).transpose(1, 2), last)
        x = predictor.ln2(predictor.activation_function(x).transpose(1, 2))
        durations = to_durations(predictor.proj(x).squeeze(2))[0]
        waiting = embedded if state.embedded is None else torch.cat([state.embedded, embedded], dim=-1)
        state.embedded = waiting[..., len(durations) :]
        return waiting[..., : len(durations)].repeat_interleave(durations, dim=2)

    def _with_voice(self, frames: Tensor) -> Tensor:
        """(B, C, F) -> (B, C', F): language embedding, frames and speaker embedding, concatenated."""
        language = self.vocoder.language_embedding.weight[self.language_id]
        speaker = self.vocoder.speaker_embedding.weight[self.speaker_id]
        wide = [part[None, :, None].expand(len(frames), -1, frames.shape[-1]) for part in (language, speaker)]
        return torch.cat([wide[0], frames, wide[1]], dim=1)

    def _speak(self, frames: Tensor, state: ConvStream, last: bool) -> Tensor:
        """Pass frames (B, C, F) through HiFi-GAN (Kong et al., arXiv:2010.05646) -> (B, T)."""
        generator, slope = self.vocoder.hifi_gan, self.vocoder.config.leaky_relu_slope
        x = state.conv(generator.conv_pre, frames, last)
        for number, upsampler in enumerate(generator.upsampler):
            x = state.transposed(upsampler, F.leaky_relu(x, slope), last)
            blocks = generator.resblocks[number * generator.num_kernels : (number + 1) * generator.num_kernels]
            total = self._stream_block(blocks[0], x, state, last)
            for block in blocks[1:]:
                total = state.add(block, total, self._stream_block(block, x, state, last))
            x = total / generator.num_kernels
        return state.conv(generator.conv_post, F.leaky_relu(x), last).tanh()[:, 0]

    def _stream_block(self, block: Any, x: Tensor, state: ConvStream, last: bool) -> Tensor:
        for conv1, conv2 in zip(block.convs1, block.convs2, strict=True):
            y = state.conv(conv1, F.leaky_relu(x, block.leaky_relu_slope), last)
            y = state.conv(conv2, F.leaky_relu(y, block.leaky_relu_slope), last)
            x = state.add(conv2, y, x)
        return x


def to_durations(logarithms: Tensor) -> Tensor:
    """The duration predictor's log(1 + frames) (B, U) -> frames (B, U) int64, rounded, at least 1."""
    return torch.expm1(logarithms).round().long().clamp(min=1)


def _build_vocoder(config: dict[str, Any], where: str) -> Any:
    """SeamlessM4T's vocoder with random weights."""
    from transformers import SeamlessM4TCodeHifiGan
    from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2CodeHifiGan

    classes = {"seamless_m4t": SeamlessM4TCodeHifiGan, "seamless_m4t_v2": SeamlessM4Tv2CodeHifiGan}
    check_model_type(config.get("model_type"), classes, where)
    settings = model_config(config, where)
    with reading(where, "configuration"):
        return classes[settings.model_type](settings)


def _load_vocoder(folder: Path) -> Any:
    """The vocoder out of a whole SeamlessM4T, without loading the rest, or out of a folder of its own."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected SeamlessM4T or its vocoder, with config.json")
    shards = Shards(folder, lambda name: name.startswith(PREFIX))
    prefix = PREFIX if any(name.startswith(PREFIX) for name in shards.files) else ""
    with parameters_on_meta():
        vocoder = _build_vocoder(read_json(folder / "config.json"), str(folder / "config.json"))
    load_part(vocoder, shards, {name: name.removeprefix(prefix) for name in shards.files if name.startswith(prefix)})
    return vocoder.float()


def _ssl_encoder(layer: int, **options: Any) -> SslEncoder:
    try:
        return SslEncoder(layers=layer, **options)
    except ValueError as error:
        raise ValueError(f"vocoder unit_hifigan: hubert, hubert_layer {layer}: {error}") from None


def _read_centroids(path: Path) -> Tensor:
    """(num_centroids, D); nothing pickled is read."""
    if path.suffix != ".npy":
        tensors = read_state_dict(path, "the centroids of k-means")
        if len(tensors) != 1:
            raise ValueError(f"{path}: holds {len(tensors)} tensors; the centroids alone are needed")
        return next(iter(tensors.values())).float()
    import numpy as np

    try:
        return torch.from_numpy(np.load(path, allow_pickle=False)).float()
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a readable .npy file of numbers ({str(error).splitlines()[0]})") from None
