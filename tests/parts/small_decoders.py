"""Speech decoders of every kind, tiny and with random weights, and what several tests do with them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.contracts import SpeechDecoder
from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.components.speech_decoders.ctc import CtcSpeechDecoder
from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
from lightning_s2s.components.speech_decoders.mtp import MtpSpeechDecoder
from lightning_s2s.components.vocoders.hf_codec import HfCodecVocoder
from lightning_s2s.components.vocoders.pocket import PocketVocoder
from lightning_s2s.generation.sampling import Sampler
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from parts import small_sizes
from parts.small_sizes import DEEP_QWEN

MIMI = {**small_sizes.MIMI, "codebook_size": 4, "num_quantizers": 3}
LLM_WIDTH, TEXT_VOCABULARY, NUM_UNITS = 8, 30, 12

DECODERS: dict[str, Callable[..., SpeechDecoder]] = {
    "interleaved": lambda **o: InterleavedSpeechDecoder("2:3", **{"config": DEEP_QWEN, "max_units": 14} | o),
    "gate": lambda **o: InterleavedSpeechDecoder("2:3", **{"config": DEEP_QWEN, "max_units": 14, "fusion": "gate"} | o),
    "mtp group": lambda **o: MtpSpeechDecoder("2:6", 3, **{"config": DEEP_QWEN, "max_units": 14} | o),
    "mtp delay": lambda **o: MtpSpeechDecoder("2:6", 3, "delay", **{"config": DEEP_QWEN, "max_units": 14} | o),
    "ctc": lambda **o: CtcSpeechDecoder(5, 2, **{"config": DEEP_QWEN} | o),
}


def connected(kind: str, **options) -> SpeechDecoder:
    """A decoder of `DECODERS`, built for 12 units and in eval mode."""
    torch.manual_seed(0)
    decoder = DECODERS[kind](**options)
    decoder.connect(LLM_WIDTH, TEXT_VOCABULARY, NUM_UNITS)
    return decoder.eval()


def whole_model(tokenizer_folder, kind: str, **options) -> SpeechToSpeechModel:
    """A model around such a decoder; the vocoder has 12 units, three codebooks of four where the decoder needs them."""
    torch.manual_seed(0)
    delayed = kind == "mtp delay"
    return SpeechToSpeechModel(
        CausalLanguageModel(config=DEEP_QWEN, tokenizer=str(tokenizer_folder)),
        MelEncoder(width=16, num_layers=1, num_heads=2),
        ConvAdapter(inner_width=8),
        DECODERS[kind](**options),
        HfCodecVocoder(config=MIMI) if delayed else PocketVocoder(levels=(4, 3), encoder_width=8, decoder_width=8),
    ).eval()


@torch.inference_mode()
def spoken(decoder, conditions: torch.Tensor, sizes: list[int], sampler=None) -> list[list[list[int]]]:
    """For each of the pieces that the conditions come in, the groups of units that it gives."""
    state = decoder.start_stream(torch.zeros(1, 512), sampler or Sampler(temperature=0.0))
    pieces = conditions.split(sizes, dim=1)
    return [list(decoder.stream(piece, state, last=number == len(pieces) - 1)) for number, piece in enumerate(pieces)]


def flat(given: list[list[list[int]]]) -> list[int]:
    """All units of `spoken`."""
    return [unit for groups in given for group in groups for unit in group]


class Endless:
    """A greedy sampler that never draws eos, the last id."""

    def __call__(self, logits: torch.Tensor) -> int:
        return int(logits[:-1].argmax())


class Scripted:
    """A sampler that gives a list of units and keeps the logits it saw."""

    def __init__(self, units: list[int]):
        self.units, self.seen = list(units), []

    def __call__(self, logits: torch.Tensor) -> int:
        self.seen.append(logits)
        return self.units.pop(0)


def watch_inputs(decoder) -> list[torch.Tensor]:
    """The inputs (1, S, D) of each run of the decoder's LM from now on."""
    seen: list[torch.Tensor] = []
    decoder.lm.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"].detach()), with_kwargs=True
    )
    return seen
