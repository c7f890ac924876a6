"""What can't work together is refused when a model is built, in one line that names both sides and the numbers.

What data must fit a model is checked when it is read, see `lightning_s2s.data.requirements`. The widths of adapters and
projections need no check: they are built from their neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lightning_s2s.components.contracts import Adapter, AudioEncoder, LanguageModel, SpeechDecoder, Vocoder
from lightning_s2s.components.speech_decoders.interleave import Interleave

LONGEST_CONDITION_SEC = 2.0
"""A text token is about a quarter of a second of speech; an interleave that asks for this much speaks far ahead of its
text, of words that it doesn't know yet."""

DECLARED = {
    "encoder": ("sample_rate", "frame_rate_hz", "width"),
    "adapter": ("downsampling",),
    "llm": ("width", "vocabulary"),
    "speech_decoder": ("chunk_conditions", "chunk_units"),
    "vocoder": ("sample_rate", "samples_per_unit", "num_units", "num_codebooks", "codebooks_per_frame"),
}
"""The numbers that the neighbours of a component read, by slot; each above 0."""

ADAPTERS_OF_PEFT = ("lora_", "trainable_tokens", "modules_to_save")
"""In the names of parameters that peft adds."""


def check_parts(
    llm: LanguageModel,
    encoder: AudioEncoder | None,
    adapter: Adapter | None,
    speech_decoder: SpeechDecoder | None,
    vocoder: Vocoder | None,
) -> None:
    """Refuse parts that can't make a model.

    Raises:
        ValueError: one lacks its companion, doesn't declare its numbers, or doesn't fit another.
    """
    parts = {"encoder": encoder, "adapter": adapter, "llm": llm, "speech_decoder": speech_decoder, "vocoder": vocoder}
    for slot, part in parts.items():
        if part is not None and slot != "adapter":  # whose rate may depend on the encoder's: see `connect`
            check_declared(slot, part)
    if (encoder is None) != (adapter is None):
        raise ValueError("encoder and adapter go together: give both or neither")
    if speech_decoder is None and vocoder is not None:
        raise ValueError("speech_decoder and vocoder go together: a vocoder alone has nothing to say")
    if speech_decoder is not None and vocoder is None and speech_decoder.num_units is None:
        raise ValueError("speech_decoder and vocoder go together, unless num_units of the speech_decoder is given")
    _check_tokenizer(llm)
    if speech_decoder is not None and vocoder is not None:
        check_voice(speech_decoder, vocoder, speech_decoder.num_units)


def check_declared(slot: str, part: nn.Module) -> None:
    """Refuse a component that lacks one of the numbers that its neighbours read.

    Raises:
        ValueError: one is missing, or not above 0.
    """
    for attribute in DECLARED[slot]:
        value = getattr(part, attribute, None)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"{slot} {type_name(part)}: {attribute} must be a number above 0; got {value!r}")


def check_voice(decoder: SpeechDecoder, vocoder: Vocoder, num_units: int | None) -> None:
    """Refuse a vocoder that can't speak a decoder's units.

    Args:
        decoder: gives the units.
        vocoder: speaks them.
        num_units: how many the decoder has; None takes the vocoder's number.

    Raises:
        ValueError: codebooks, units or rate don't fit.
    """
    speaker, voice = f"speech_decoder {type_name(decoder)}", f"vocoder {type_name(vocoder)}"
    if vocoder.num_codebooks != 1:
        raise ValueError(f"{speaker} speaks one codebook, {voice} has {vocoder.num_codebooks}")
    wanted, frame = decoder.codebooks_per_frame, vocoder.codebooks_per_frame
    if wanted not in (None, frame):
        raise ValueError(f"{speaker} speaks {wanted} codebooks per frame, {voice} has {frame}")
    if num_units is not None and num_units > vocoder.num_units:
        raise ValueError(f"{speaker} speaks {num_units} units, {voice} knows {vocoder.num_units}")
    interleave = getattr(decoder, "interleave", None)
    if isinstance(interleave, Interleave):
        seconds = interleave.num_units / interleave.num_conditions / vocoder.unit_rate_hz
        if seconds > LONGEST_CONDITION_SEC:
            raise ValueError(
                f"{speaker} with interleave {interleave} gives {seconds:.3g} s of speech for each text token at the "
                f"{vocoder.unit_rate_hz:g} units per second of {voice}; at most {LONGEST_CONDITION_SEC:g} s make sense"
            )


def check_same_units(present: Vocoder, other: Vocoder) -> None:
    """Refuse a vocoder in place of another whose units can't be the same.

    Raises:
        ValueError: rate or codebooks differ.
    """
    for what, mine, given in (
        ("units per second", present.unit_rate_hz, other.unit_rate_hz),
        ("codebooks per frame", present.codebooks_per_frame, other.codebooks_per_frame),
    ):
        if abs(mine - given) > 1e-6 * mine:
            raise ValueError(
                f"the model speaks the units of vocoder {type_name(present)}, {mine:g} {what}; "
                f"vocoder {type_name(other)} has {given:g}"
            )


def check_dtypes(model: nn.Module) -> None:
    """Refuse a model with a component whose weights have several dtypes: it would fail in the middle of an answer.

    Components may differ from each other. What peft adds may be wider than what it adapts, and so may the modules that
    transformers keeps in float32.

    Raises:
        ValueError: a component has several; the message names it, the dtypes and a tensor of each.
    """
    for slot in DECLARED:
        part = getattr(model, slot, None)
        if part is None:
            continue
        kept = {name for module in part.modules() for name in _kept_in_float32(module)}
        examples: dict[torch.dtype, str] = {}
        for name, parameter in part.named_parameters():
            adapts = any(adapter in name for adapter in ADAPTERS_OF_PEFT)
            if parameter.is_floating_point() and not adapts and kept.isdisjoint(name.split(".")):
                examples.setdefault(parameter.dtype, name)
        if len(examples) > 1:
            found = ", ".join(f"{str(dtype).removeprefix('torch.')} ({name})" for dtype, name in examples.items())
            raise ValueError(
                f"{slot} {type_name(part)}: its weights have several dtypes, {found}; give it one with .to(dtype)"
            )


def _kept_in_float32(module: nn.Module) -> Iterator[str]:
    for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
        yield from getattr(module, attribute, None) or ()


@contextmanager
def connecting(part: nn.Module, **neighbours: object) -> Iterator[None]:
    """Name the neighbours, and their numbers, in what a component says against being built between them.

    Args:
        part: the component whose `connect` is called inside.
        neighbours: its slot, then each neighbour's slot, with what it brings.
    """
    try:
        yield
    except ValueError as error:
        brought = ", ".join(f"{slot} {what}" for slot, what in neighbours.items())
        raise ValueError(f"{type_name(part)} can't be built for {brought}: {error}") from None


def type_name(part: object) -> str:
    """How messages call a component."""
    return type(part).__name__


def _check_tokenizer(llm: LanguageModel) -> None:
    if missing := llm.tokenizer.missing_special_tokens():
        raise ValueError(
            f"llm {type_name(llm)}: its tokenizer lacks {', '.join(missing)}, which mark speech; add them with "
            "ensure_special_tokens() and let its embeddings grow"
        )
    if len(llm.tokenizer) > llm.vocabulary:
        raise ValueError(
            f"llm {type_name(llm)}: its tokenizer has {len(llm.tokenizer)} tokens, its vocabulary {llm.vocabulary}"
        )
