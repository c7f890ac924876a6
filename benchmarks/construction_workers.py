"""How fast a step of `construct` is with several workers beside one, here: Kokoro speaks texts.

    python benchmarks/construction_workers.py --kokoro KOKORO_FOLDER [--texts 60] [--runners 'local:1 local:2 ray:2']

Every runner speaks texts of its own, of the same lengths, into an empty folder; starting workers and loading the model
count, as they do in a run. Prints the speed of each and its ratio to the first.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from lightning_s2s.construction.running import Local, Ray, Runner, run_step
from lightning_s2s.construction.speech import Kokoro
from lightning_s2s.construction.speech.speaking import SpeakTexts

SENTENCE = "My {who} told me about the {what} number {number}, and we talked about it."
PEOPLE, THINGS = ("sister", "brother", "mother", "father"), ("house", "train", "party", "garden", "letter")


def runner(name: str) -> Runner:
    """`local:2` or `ray:2`."""
    kind, _, workers = name.partition(":")
    return Ray(workers=int(workers)) if kind == "ray" else Local(processes=int(workers))


def measure(name: str, kokoro: str, first: int, count: int) -> tuple[float, float]:
    """(seconds of speech, seconds of work) of a runner."""
    texts = [
        SENTENCE.format(who=PEOPLE[n % len(PEOPLE)], what=THINGS[n % len(THINGS)], number=first + n)
        for n in range(count)
    ]
    with tempfile.TemporaryDirectory() as folder:
        step = SpeakTexts("speech", Kokoro(kokoro), 1.0, Path(folder))
        start = time.monotonic()
        results = run_step(
            step, [("af_heart", text, "neutral") for text in texts], runner(name), Path(folder) / "steps"
        )
        return sum(result["sec"] for result in results), time.monotonic() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kokoro", required=True, help="Kokoro's folder")
    parser.add_argument("--texts", type=int, default=60)
    parser.add_argument("--runners", default="local:1 local:2 ray:2")
    options = parser.parse_args()
    names = options.runners.split()
    speeds = {}
    for number, name in enumerate(names):
        spoken, took = measure(name, options.kokoro, 100 * (number + 1), options.texts)
        speeds[name] = spoken / took
        print(
            f"{name}: {options.texts} texts, {spoken:.0f} s of speech in {took:.0f} s: {speeds[name]:.2f} s a second, "
            f"{speeds[name] / speeds[names[0]]:.2f} x {names[0]}",
            flush=True,
        )


if __name__ == "__main__":
    main()
