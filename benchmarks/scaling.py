"""How cost grows with size: one section for each question, a table each.

    python benchmarks/scaling.py [SECTION ...] [--size tiny] [--repetitions 5] [--device cpu]

reply_length: time per audio chunk, in the first and the last quarter of short and long replies. Flat is a ratio of 1;
    attention over the past is what may grow.
sessions: sessions that start at once in one engine. Throughput is seconds of sound made in a second, beside that of one
    session at a time; first audio counts from the session's question, and all questions are asked at once.

training_step: forward and backward of stage 3 against rows, length and vocabulary, one of them growing at a time, with
    random weights and the encoder's states given, so that the side of text and speech is what grows. Seconds should
    grow no faster than rows and length do; memory (the peak beside model and batch, as Linux tells it) hardly with
    the vocabulary beyond the gradients of its weights, since the logits are bounded.

Settings of a section are measured one after the other in every repetition; printed are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import scaling_training
from models import SIZES, answer, build_model, make_question, start

from lightning_s2s.evaluation.hardware import describe_hardware
from lightning_s2s.evaluation.results import percentile
from lightning_s2s.streaming.engine import StreamingEngine

REPLY_TOKENS = (32, 64, 128, 256)
SESSION_COUNTS = (1, 2, 4, 8)
SESSION_TOKENS = 32


def reply_length(options: argparse.Namespace) -> None:
    """Cost per audio chunk against the length of the reply."""
    engines = {}
    for tokens in REPLY_TOKENS:
        model = build_model(options.size, tokens, options.device)
        engines[tokens] = StreamingEngine(model, max_positions=2048)
    question, gaps = make_question(), {tokens: ([], []) for tokens in REPLY_TOKENS}
    for repetition in range(options.repetitions + 1):
        for tokens, engine in engines.items():
            reply, _ = answer(engine, question, tokens)
            quarter = max(1, len(reply.chunk_gaps_sec) // 4)
            if repetition:  # the first warms up
                gaps[tokens][0].append(statistics.median(reply.chunk_gaps_sec[1 : 1 + quarter]))
                gaps[tokens][1].append(statistics.median(reply.chunk_gaps_sec[-1 - quarter : -1]))
    print("reply        chunk, first quarter   chunk, last quarter   last / first")
    for tokens, both in gaps.items():
        first, last = map(statistics.median, both)
        print(f"{tokens:4} tokens {1000 * first:15.1f} ms {1000 * last:18.1f} ms {last / first:14.2f}")


def sessions(options: argparse.Namespace) -> None:
    """Sessions in parallel against throughput and time to the first audio."""
    model = build_model(options.size, SESSION_TOKENS, options.device)
    engines = {count: StreamingEngine(model, count, max_positions=256) for count in SESSION_COUNTS}
    throughput = {count: [] for count in SESSION_COUNTS}
    first_audio = {count: [] for count in SESSION_COUNTS}
    for repetition in range(options.repetitions + 1):
        for count, engine in engines.items():
            began = time.perf_counter()
            streams = [start(engine, make_question(seed=seed), SESSION_TOKENS).finish() for seed in range(count)]
            replies = [list(stream)[-1].reply for stream in streams]
            took = time.perf_counter() - began
            if repetition:
                throughput[count].append(sum(reply.audio_sec for reply in replies) / took)
                first_audio[count] += [reply.marks["first_audio"] for reply in replies]
    alone = statistics.median(throughput[SESSION_COUNTS[0]])
    print("sessions   throughput   beside one   first audio, median   p95")
    for count in SESSION_COUNTS:
        made = statistics.median(throughput[count])
        median, p95 = (percentile(first_audio[count], percent) for percent in (50, 95))
        print(f"{count:8} {made:10.1f} x {made / alone:10.2f} x {1000 * median:15.0f} ms {1000 * p95:9.0f} ms")


def training_step(options: argparse.Namespace) -> None:
    """Cost and memory of a step against rows, text tokens and vocabulary."""
    for name in scaling_training.TABLES:
        print("\n".join(scaling_training.table(name, options.repetitions)), flush=True)


SECTIONS = {"reply_length": reply_length, "sessions": sessions, "training_step": training_step}


def main() -> None:
    """Run the sections that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; all without one")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if unknown := [name for name in options.sections if name not in SECTIONS]:
        parser.error(f"unknown section {unknown[0]!r}; known: {', '.join(SECTIONS)}")
    print(*(f"{label}: {text}" for label, text in describe_hardware().items()), sep="\n")
    for name in options.sections or SECTIONS:
        print(f"\n{name}")
        SECTIONS[name](options)


if __name__ == "__main__":
    main()
