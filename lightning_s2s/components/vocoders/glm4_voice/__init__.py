"""`glm4_voice`: GLM-4-Voice's tokenizer and decoder, 16,384 units at 12.5 Hz, 22,050 Hz out, streaming.

Zeng et al., arXiv:2412.02612; OpenS2S (arXiv:2507.05177) speaks through it. Units pass through `conformer`, `flow` and
`hift`, in chunks by `streaming`; `tokenizer` is the opposite direction.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_s2s.components.base import PlainValues
from lightning_s2s.components.contracts import Vocoder
from lightning_s2s.components.registry import VOCODERS
from lightning_s2s.components.vocoders.glm4_voice.checkpoint import (
    load_tokenizer,
    read_decoder,
    read_tokenizer_config,
)
from lightning_s2s.components.vocoders.glm4_voice.config import (
    FlowConfig,
    HiftConfig,
    TokenizerConfig,
    check_sizes,
    with_values,
)
from lightning_s2s.components.vocoders.glm4_voice.flow import UnitToMel
from lightning_s2s.components.vocoders.glm4_voice.hift import HiftGenerator
from lightning_s2s.components.vocoders.glm4_voice.streaming import Glm4VoiceStreamState, stream_units
from lightning_s2s.components.vocoders.glm4_voice.tokenizer import Glm4VoiceTokenizer
from lightning_s2s.components.weights import load_tensors
from lightning_s2s.support.ranges import Count, Natural, NonNegative, Range, Seed


@VOCODERS.register("glm4_voice")
class Glm4VoiceVocoder(Vocoder[Glm4VoiceStreamState]):
    """GLM-4-Voice's tokenizer and flow-matching decoder: 16,384 units at 12.5 Hz, 22,050 Hz, streaming.

    One-shot synthesis computes what the published code does. It produces whole mel frames, so U units give up to one
    frame (256 samples, 12 ms) less than U x 1,764 samples. Streaming keeps a bounded window of the past and therefore
    differs from it, see `docs/components.md`; its output has the same length.

    Args:
        decoder: Folder with `flow.pt`, `hift.pt` and, as published, `config.yaml`; without that file the sizes are the
            published ones. None starts from random weights.
        tokenizer: Folder with `config.json`, `preprocessor_config.json` and `model.safetensors`. With None there is no
            `tokenize`, unless `config` has the tokenizer's sizes.
        config: Sizes that override those of the folders or the published ones: mappings `flow`, `hift` and `tokenizer`
            with the keys of `FlowConfig`, `HiftConfig` and `TokenizerConfig`.
        first_chunk_units: Units that a stream collects before its first chunk; a multiple of the block size, 10.
        chunk_units: Units in each later chunk; a multiple of the block size.
        left_context_units: Past units whose mel conditions a chunk, a multiple of the block size. A chunk costs as much
            as synthesising `left_context_units + chunk_units` units.
        overlap_units: Units at the end of a chunk whose mel is recomputed with the next chunk and cross-faded.
        num_steps: Number of Euler steps of the flow.
        guidance: Strength of the flow's classifier-free guidance.
        seed: Seed of the flow's noise and of the phases and noise of HiFT's source; all else is deterministic.

    Raises:
        ValueError: A folder is missing or broken, or options contradict each other.
    """

    paper = "arXiv:2412.02612"
    rates = "12.5 Hz, 16,384 units, 22,050 Hz"
    size = "132M, and 343M for `tokenize`"
    licence = "GLM-4-Voice model licence"
    sources = ("decoder", "tokenizer")

    def __init__(
        self,
        decoder: str | None = None,
        tokenizer: str | None = None,
        config: PlainValues | None = None,
        first_chunk_units: Count = 10,
        chunk_units: Count = 10,
        left_context_units: Natural = 30,
        overlap_units: Natural = 2,
        num_steps: Annotated[int, Range(1, 1_000)] = 10,
        guidance: NonNegative = 0.7,
        seed: Seed = 42,
    ):
        super().__init__()
        given: dict[str, Any] = dict(config or {})
        if unknown := sorted(given.keys() - {"flow", "hift", "tokenizer"}):
            raise ValueError(f"config: unknown key {unknown[0]!r}; known: flow, hift, tokenizer")
        flow_config, hift_config = FlowConfig(), HiftConfig()
        if decoder is not None:
            flow_config, hift_config, flow_tensors, hift_tensors = read_decoder(Path(decoder))
        flow_config = with_values(flow_config, given.get("flow") or {}, "config.flow")
        hift_config = with_values(hift_config, given.get("hift") or {}, "config.hift")
        check_sizes(flow_config, hift_config)
        self.tokenizer: Glm4VoiceTokenizer | None = None
        if tokenizer is not None or given.get("tokenizer"):
            self.tokenizer = _build_tokenizer(tokenizer, given.get("tokenizer") or {})
            num_units = self.tokenizer.config.quantize_vocab_size
            if decoder is None and "vocab_size" not in (given.get("flow") or {}):
                flow_config = dataclasses.replace(flow_config, vocab_size=num_units)
            if num_units != flow_config.vocab_size:
                raise ValueError(
                    f"tokenizer has {num_units} units (quantize_vocab_size), decoder {flow_config.vocab_size} "
                    f"(vocab_size); they must be equal"
                )
        self.flow, self.hift = UnitToMel(flow_config), HiftGenerator(hift_config)
        if decoder is not None:
            load_tensors(self.flow, flow_tensors, Path(decoder) / "flow.pt")
            load_tensors(self.hift, hift_tensors, Path(decoder) / "hift.pt")
        self.sample_rate = hift_config.sampling_rate
        self.samples_per_unit = round(self.sample_rate / flow_config.input_frame_rate)
        self.num_units = flow_config.vocab_size
        self.first_chunk_units, self.chunk_units = first_chunk_units, chunk_units
        self.left_context_units, self.overlap_units = left_context_units, overlap_units
        self.num_steps, self.guidance, self.seed = num_steps, guidance, seed
        self._check_options(flow_config.block_size)

    def _check_options(self, block: int) -> None:
        for name in ("first_chunk_units", "chunk_units", "left_context_units"):
            value = getattr(self, name)
            if value < block or value % block:
                raise ValueError(f"{name}: got {value}; a multiple of the encoder's block of {block} units is needed")
        limit = min(self.first_chunk_units, self.chunk_units, self.left_context_units)
        if not 0 <= self.overlap_units < limit:
            raise ValueError(
                f"overlap_units: got {self.overlap_units}; allowed: 0..{limit - 1}, less than any chunk and its context"
            )

    def pretrained_args(self, folder: Path) -> dict[str, Any]:
        config = {"flow": dataclasses.asdict(self.flow.config), "hift": dataclasses.asdict(self.hift.config)}
        if self.tokenizer is not None:
            config["tokenizer"] = dataclasses.asdict(self.tokenizer.config)
        return self.init_args | {"decoder": None, "tokenizer": None, "config": config}

    @property
    def tokenizer_sample_rate(self) -> int:
        return self.sample_rate if self.tokenizer is None else self.tokenizer.config.sampling_rate

    @torch.inference_mode()
    def tokenize(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) at 16 kHz, right-padded, and (B,) samples -> units (B, U) and (B,) counts, U = ceil(T / 1280).

        Raises:
            ValueError: The vocoder was built without a tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError(
                "vocoder glm4_voice was built without a tokenizer: it speaks but can't tokenize; give `tokenizer`, the "
                "folder of GLM-4-Voice's tokenizer (THUDM/glm-4-voice-tokenizer)"
            )
        return self.tokenizer(waveform, lengths)

    @torch.inference_mode()
    def synthesize(self, units: Tensor) -> Tensor:
        """Units (B, U) -> (B, T), as published; T = 256 floor(U x 6.890625), up to 255 samples below U x 1,764."""
        self.check_units(units)
        if not units.shape[1]:
            return torch.zeros(len(units), 0, device=units.device)
        mel = self.flow(units, seed=self.seed, num_steps=self.num_steps, guidance=self.guidance)
        return self.hift(mel, self.seed)

    def start_stream(self) -> Glm4VoiceStreamState:
        return Glm4VoiceStreamState(torch.Generator().manual_seed(self.seed))

    @torch.inference_mode()
    def stream(self, units: Tensor, state: Glm4VoiceStreamState, last: bool) -> Tensor:
        """Append units (B, U) and return the samples (B, T) that are final now; in total as many as one-shot."""
        self.check_units(units)
        return stream_units(self, units, state, last)


def _build_tokenizer(folder: str | None, values: dict[str, Any]) -> Glm4VoiceTokenizer:
    """A tokenizer with the weights of a folder, or a random one of the given sizes."""
    config = TokenizerConfig() if folder is None else read_tokenizer_config(Path(folder))
    tokenizer = Glm4VoiceTokenizer(with_values(config, values, "config.tokenizer"))
    if folder is not None:
        load_tokenizer(Path(folder), tokenizer)
    return tokenizer
