"""Components that can't work together are refused when a model is built, in one line with both sides and the numbers.

Whether data fits the model is checked when a manifest is read, see `lightning_s2s.data.requirements`. The widths of
adapters and projections need no check: these are built from their neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lightning_s2s.components.contracts import Adapter, AudioEncoder, LanguageModel, SpeechDecoder, Vocoder
from lightning_s2s.components.speech_decoders.interleave import Interleave

LONGEST_CONDITION_SEC = 2.0
"""A text token takes about a quarter of a second to say; an interleave with this much speech per token would have to
speak words whose text is not known yet."""

DECLARED = {
    "encoder": ("sample_rate", "frame_rate_hz", "width"),
    "adapter": ("downsampling",),
    "llm": ("width", "vocabulary"),
    "speech_decoder": ("chunk_conditions", "chunk_units"),
    "vocoder": ("sample_rate", "samples_per_unit", "num_units", "num_codebooks", "codebooks_per_frame"),
}
"""Attributes of a component that its neighbours read, by slot; each must be a number above 0."""

PEFT_PARAMETERS = ("lora_", "trainable_tokens", "modules_to_save")
"""Parts of the names of parameters that peft adds."""


def check_parts(
    llm: LanguageModel,
    encoder: AudioEncoder | None,
    adapter: Adapter | None,
    speech_decoder: SpeechDecoder | None,
    vocoder: Vocoder | None,
) -> None:
    """Refuse components that don't make a model together.

    Raises:
        ValueError: A component lacks its counterpart, doesn't declare its numbers, or doesn't fit another.
    """
    parts = {"encoder": encoder, "adapter": adapter, "llm": llm, "speech_decoder": speech_decoder, "vocoder": vocoder}
    for slot, part in parts.items():
        if part is not None and slot != "adapter":  # its rate may depend on the encoder's: see `connect`
            check_declared(slot, part)
    if (encoder is None) != (adapter is None):
        raise ValueError("encoder and adapter go together: give both or neither")
    if speech_decoder is None and vocoder is not None:
        raise ValueError("speech_decoder and vocoder go together: a vocoder alone has no units to synthesize")
    if speech_decoder is not None and vocoder is None and speech_decoder.num_units is None:
        raise ValueError("speech_decoder and vocoder go together, unless num_units of the speech_decoder is given")
    _check_tokenizer(llm)
    if speech_decoder is not None and vocoder is not None:
        check_vocoder(speech_decoder, vocoder, speech_decoder.num_units)


def check_declared(slot: str, part: nn.Module) -> None:
    """Refuse a component that lacks a number in `DECLARED`.

    Raises:
        ValueError: A number is missing, or not above 0.
    """
    for attribute in DECLARED[slot]:
        value = getattr(part, attribute, None)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"{slot} {type_name(part)}: {attribute} must be a number above 0; got {value!r}")


def check_vocoder(decoder: SpeechDecoder, vocoder: Vocoder, num_units: int | None) -> None:
    """Refuse a vocoder that can't synthesize a decoder's units.

    Args:
        decoder: The speech decoder that produces the units.
        vocoder: The vocoder that synthesizes them.
        num_units: Number of units of the decoder; None takes the vocoder's.

    Raises:
        ValueError: Codebooks, units or rate don't fit.
    """
    source, target = f"speech_decoder {type_name(decoder)}", f"vocoder {type_name(vocoder)}"
    if vocoder.num_codebooks != 1:
        raise ValueError(f"{source} speaks one codebook, {target} has {vocoder.num_codebooks}")
    wanted, frame = decoder.codebooks_per_frame, vocoder.codebooks_per_frame
    if wanted not in (None, frame):
        raise ValueError(f"{source} speaks {wanted} codebooks per frame, {target} has {frame}")
    if num_units is not None and num_units > vocoder.num_units:
        raise ValueError(f"{source} speaks {num_units} units, {target} knows {vocoder.num_units}")
    interleave = getattr(decoder, "interleave", None)
    if isinstance(interleave, Interleave):
        seconds = interleave.num_units / interleave.num_conditions / vocoder.unit_rate_hz
        if seconds > LONGEST_CONDITION_SEC:
            raise ValueError(
                f"{source} with interleave {interleave} gives {seconds:.3g} s of speech for each text token at the "
                f"{vocoder.unit_rate_hz:g} units per second of {target}; at most {LONGEST_CONDITION_SEC:g} s make sense"
            )


def check_same_units(present: Vocoder, other: Vocoder) -> None:
    """Refuse to replace a vocoder by one whose units can't be the same.

    Raises:
        ValueError: The unit rate or the number of codebooks differs.
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
    """Refuse a component whose weights have several dtypes: it would fail in the middle of a reply.

    Components may differ from each other. The parameters that peft adds may be wider than the weights they adapt, and
    so may the modules that transformers keeps in float32.

    Raises:
        ValueError: A component has several dtypes; the message names it, the dtypes and a tensor of each.
    """
    for slot in DECLARED:
        part = getattr(model, slot, None)
        if part is None:
            continue
        kept = {name for module in part.modules() for name in _kept_in_float32(module)}
        examples: dict[torch.dtype, str] = {}
        for name, parameter in part.named_parameters():
            added_by_peft = any(fragment in name for fragment in PEFT_PARAMETERS)
            if parameter.is_floating_point() and not added_by_peft and kept.isdisjoint(name.split(".")):
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
    """Add the neighbours and their numbers to the message of an error in a component's `connect`.

    Args:
        part: The component whose `connect` is called in the body.
        neighbours: Description of each neighbour, by slot.
    """
    try:
        yield
    except ValueError as error:
        given = ", ".join(f"{slot} {what}" for slot, what in neighbours.items())
        raise ValueError(f"{type_name(part)} can't be built for {given}: {error}") from None


def type_name(part: object) -> str:
    """The name of a component in messages."""
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
