"""How fast a reply is streamed, beside the published manner: `generate` entered again for every N tokens.

    python benchmarks/streaming.py [--size tiny] [--tokens 64] [--wait 24] [--repetitions 5] [--no-compile]

The reference answers as published code of such models does: after every N text tokens, and for every M units,
transformers' `generate` reads all that was written so far again, and the vocoder all units so far. OpenS2S
(arXiv:2507.05177) waits for 24 units before its first sound, and so does the reference; `--wait 0` does not. Weights,
greedy choices, text and units are the same (the script checks it); closing tokens are suppressed, so that all replies
have the same length. Every manner answers once in each repetition, one after the other; printed are medians, and the
ratio of the reference's to each one's: 2.0 x is half the time.

The last lines say what the loop costs beside the components: the share of a reply's time that is spent in no forward
of encoder, adapter, LLM, speech decoder or vocoder.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from models import SAMPLE_RATE, SIZES, answer, build_model, make_question, text_ends
from torch import Tensor

from lightning_s2s.data.batch import AUDIO_PLACEHOLDER
from lightning_s2s.evaluation.hardware import describe_hardware
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.streaming.engine import StreamingEngine


@dataclass(frozen=True)
class Measured:
    """One answer: what was said, and seconds since the question."""

    text_ids: list[int]
    unit_ids: list[int]
    first_audio_sec: float
    total_sec: float


@torch.inference_mode()
def answer_as_published(model: SpeechToSpeechModel, question: Tensor, num_tokens: int, wait_units: int) -> Measured:
    """`generate` entered again for every group, over everything so far, and a vocoder fed all units so far."""
    start = time.perf_counter()
    llm, decoder, device = model.llm, model.speech_decoder, model.device
    audio, lengths = model.encode_audio(question[None].to(device), torch.tensor([len(question)], device=device))
    prompt = llm.tokenizer.encode_prompt([{"role": "user", "content": [{"text": "", "audio": "x"}]}], spoken=True)
    place = prompt.index(AUDIO_PLACEHOLDER)
    embedded = llm.embed(torch.tensor([prompt], device=device).clamp(min=0))
    written = torch.cat([embedded[:, :place], audio[:, : int(lengths[0])], embedded[:, place + 1 :]], dim=1)
    spoken = decoder.embed_speaker(torch.zeros(1, 512, device=device))
    text, units, sent, first_audio = [], [], 0, None
    while len(text) < num_tokens:
        group = llm.model.generate(
            inputs_embeds=written, max_new_tokens=min(decoder.chunk_conditions, num_tokens - len(text)),
            output_hidden_states=True, **greedy(text_ends(model)),
        )  # fmt: skip
        hidden = torch.cat([step[-1][:, -1:] for step in group.hidden_states], dim=1)
        text += group.sequences[0].tolist()
        written = torch.cat([written, llm.embed(group.sequences)], dim=1)
        spoken = torch.cat([spoken, decoder.project(hidden, group.sequences)], dim=1)
        left = decoder.max_units - len(units)
        num_units = left if len(text) == num_tokens else min(decoder.chunk_units, left)
        while num_units > 0:
            ids = decoder.lm.generate(
                inputs_embeds=spoken, max_new_tokens=min(decoder.chunk_units, num_units), **greedy(decoder.eos_ids)
            ).sequences
            units += ids[0].tolist()
            num_units -= ids.shape[1]
            spoken = torch.cat([spoken, decoder.lm.get_input_embeddings()(ids)], dim=1)
            if len(units) < min(wait_units, decoder.max_units):
                continue
            waveform = model.vocoder.synthesize(torch.tensor([units], device=device))[0].cpu()
            fresh, sent = waveform[sent:], len(waveform)
            if first_audio is None and len(fresh):
                first_audio = time.perf_counter() - start
    return Measured(text, units, first_audio, time.perf_counter() - start)


def greedy(suppressed: list[int]) -> dict:
    """Options of `generate`."""
    return {
        "do_sample": False, "suppress_tokens": suppressed, "pad_token_id": 0, "eos_token_id": None,
        "return_dict_in_generate": True,
    }  # fmt: skip


def answer_in_engine(engine: StreamingEngine, question: Tensor, num_tokens: int) -> Measured:
    """One session of the engine."""
    start = time.perf_counter()
    reply, _ = answer(engine, question, num_tokens)
    return Measured(reply.text_ids, reply.unit_ids, reply.marks["first_audio"], time.perf_counter() - start)


class ForwardClock:
    """Seconds spent in the forwards of a model's components."""

    def __init__(self, model: SpeechToSpeechModel):
        self.total_sec, self.started = 0.0, 0.0
        llm, decoder, vocoder = model.llm.model, model.speech_decoder, model.vocoder
        self.hooks = []
        for module in (
            model.encoder, model.adapter, llm.base_model, llm.get_input_embeddings(), llm.get_output_embeddings(),
            decoder.lm.base_model, decoder.lm.get_input_embeddings(), decoder.lm.get_output_embeddings(),
            decoder.llm_projection, decoder.llm_norm, decoder.speaker_projection, decoder.speaker_norm,
        ):  # fmt: skip
            self.hooks += [module.register_forward_pre_hook(self._start), module.register_forward_hook(self._stop)]
        self.vocoder, self.stream = vocoder, vocoder.stream
        vocoder.stream = self._timed_stream

    def _start(self, *_: object) -> None:
        self.started = time.perf_counter()

    def _stop(self, *_: object) -> None:
        self.total_sec += time.perf_counter() - self.started

    def _timed_stream(self, *arguments: object) -> Tensor:
        self._start()
        chunk = self.stream(*arguments)
        self._stop()
        return chunk

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self.hooks:
            hook.remove()
        del self.vocoder.stream


def loop_share(engine: StreamingEngine, question: Tensor, num_tokens: int) -> float:
    """Share of a reply's time outside of its forwards."""
    clock = ForwardClock(engine.model)
    took = answer_in_engine(engine, question, num_tokens).total_sec
    clock.remove()
    return 1 - clock.total_sec / took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--tokens", type=int, default=64, help="text tokens of a reply")
    parser.add_argument(
        "--wait", type=int, default=24, help="units that the reference waits for before its first sound"
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled engine out")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(*(f"{label}: {text}" for label, text in describe_hardware().items()), sep="\n")
    model, question = build_model(options.size, options.tokens, options.device), make_question()
    # The cache holds what a reply needs: prompt and text, or speaker, text and units.
    max_positions = 64 * (1 + (4 * options.tokens + 127) // 64)
    eager = StreamingEngine(model, max_positions=max_positions)
    manners: dict[str, Callable[[], Measured]] = {
        "generate entered again": lambda: answer_as_published(model, question, options.tokens, options.wait),
        "engine": lambda: answer_in_engine(eager, question, options.tokens),
    }
    overlapping = StreamingEngine(model, max_positions=max_positions, overlap=True)
    manners["engine, overlap"] = lambda: answer_in_engine(overlapping, question, options.tokens)
    if not options.no_compile:
        compiled = StreamingEngine(model, max_positions=max_positions, compile=True)
        start = time.perf_counter()
        compiled.warm_up()
        print(f"compiling took {time.perf_counter() - start:.0f} s")
        manners["engine, compiled"] = lambda: answer_in_engine(compiled, question, options.tokens)

    runs: dict[str, list[Measured]] = {name: [] for name in manners}
    for repetition in range(options.repetitions + 1):
        for name, run in manners.items():
            measured = run()
            if repetition:  # the first warms up
                runs[name].append(measured)
    reference = runs["generate entered again"]
    expected = reference[0]
    audio_sec = len(expected.unit_ids) * model.vocoder.samples_per_unit / SAMPLE_RATE
    print(
        f"\n{options.size}: {len(expected.text_ids)} tokens, {len(expected.unit_ids)} units, {audio_sec:.1f} s of sound"
    )
    for name, measured in runs.items():
        for run in measured:
            assert (run.text_ids, run.unit_ids) == (expected.text_ids, expected.unit_ids), f"{name}: another reply"
        print(f"{name:24}", end="")
        for what, label in (("first_audio_sec", "first audio"), ("total_sec", "whole reply")):
            took, base = (statistics.median(getattr(run, what) for run in some) for some in (measured, reference))
            print(f"   {label} {took:.3f} s, {base / took:4.1f} x", end="")
        print()
    shares = [loop_share(eager, question, options.tokens) for _ in range(options.repetitions)]
    print(f"loop beside the forwards: {100 * statistics.median(shares):.1f}% of a reply's time")


if __name__ == "__main__":
    main()
