"""`construct` on a small corpus, in forks that can be killed where they change files; started by the tests.

It reads a run a line from standard input, JSON of kind, folder and place to die at (0: none), and answers each with its
exit status and the number of places that it passed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import yaml

from lightning_s2s.commands.construct import make_corpus
from lightning_s2s.construction.chat import ChatReply
from lightning_s2s.construction.config import CorpusConfig
from lightning_s2s.construction.filters import Duration, Filter, NearDuplicates, Rejection, WordCount
from lightning_s2s.construction.running import Local
from lightning_s2s.construction.writing import GrammarWriter, PromptedWriter
from lightning_s2s.construction.writing.seeds import Seeds
from lightning_s2s.data.augmentation import CorpusAugmentation
from lightning_s2s.support.journal import Journal
from parts.construction import RULES, FakeCodec, Tone, Writer


class HashWriter(Writer):
    """What it writes depends on the prompt and the seed, and some of it is malformed."""

    identity = "hash writer"

    def answer(self, request):
        number = int(hashlib.sha256(f"{request.prompt} {request.seed}".encode()).hexdigest()[:8], 16)
        if number % 7 == 0:
            return ChatReply("nonsense", False, 10, 1)
        fields = request.schema["properties"]
        words = " ".join(str(number // 7**power % 1000) for power in range(5))
        values = {
            name: held["enum"][number % len(held["enum"])] if "enum" in held else words for name, held in fields.items()
        }
        return ChatReply(json.dumps(values), False, 10, 2)


class HashTone(Tone):
    """Tones whose pitch and length depend on the words."""

    identity, concurrency = "hash tone", 2

    def synthesise(self, text, voice, emotion="neutral", style="", speed=1.0):
        number = int(hashlib.sha256(f"{text} {voice} {emotion}".encode()).hexdigest()[:8], 16)
        time_axis = np.arange(8000 + number % 8000) / 16_000
        return (0.3 * np.sin(2 * np.pi * (150 + number % 200) * time_axis)).astype(np.float32), 16_000


class Lottery(Filter):
    """A measurement that hears."""

    name, hears, identity, batch_size = "lottery", True, "lottery", 2

    def measure(self, batch):
        return [{"luck": int(hashlib.sha256(item.questions[0].encode()[-20:]).hexdigest()[:2], 16)} for item in batch]

    def verdict(self, figures):
        return None if figures["luck"] > 60 else Rejection("no luck")


def configuration(kind: str, runner=None) -> CorpusConfig:
    if kind == "grammar":
        grammar = Path("grammar.yaml")
        grammar.write_text(yaml.safe_dump(RULES))
        writer = GrammarWriter(
            str(grammar), {"train": 4, "validation": 2, "test": 2}, {"train": 1, "validation": 1, "test": 1},
            {"train": 4, "validation": 4, "test": 4}, replies_per_emotion=30, held_out_share=0.3,
        )  # fmt: skip
    else:
        chat = HashWriter(batch_size=2, concurrency=2 if kind == "threads" else 1)
        lines = {"train": 20 if kind == "prompted" else 4, "validation": 2, "test": 2}
        writer = PromptedWriter(chat, Seeds(lines, emotions_per_line=2), turns=2)
    return CorpusConfig(
        output_dir="corpus", work_dir="work", writer=writer, tts=HashTone(True),
        assistant_tts=HashTone(), vocoder=FakeCodec(), assistant_voice="anna",
        user_voices={"train": ["bob", "cleo"], "validation": ["dan"], "test": ["eve"]},
        augmentation=CorpusAugmentation(noise=["white"], share=0.5), dataset=True,
        filters=[WordCount(), NearDuplicates(), Duration(), Lottery()],
        runner=runner or Local(2 if kind == "processes" else 1),
    )  # fmt: skip


class Places:
    """Counts where a process changes files, and kills it at one of them.

    Places are the openings of files for writing, their renamings, and, in the middle of what is written, additions to a
    journal.
    """

    def __init__(self, dies_at: int):
        self.dies_at, self.passed, self._numbers = dies_at, 0, itertools.count(1)
        sys.addaudithook(self._watch)
        append = Journal._append

        def append_in_two(journal: Journal, lines: list[bytes]) -> None:
            content = b"".join(lines)
            append(journal, [content[: len(content) // 2]])
            self._pass()
            append(journal, [content[len(content) // 2 :]])

        Journal._append = append_in_two

    def _watch(self, event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event == "os.rename":
            self._pass()

    def _pass(self) -> None:
        self.passed = next(self._numbers)
        if self.passed == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)


def serve() -> None:
    """Fork a run for each line of standard input, and tell how it ended."""
    import datasets  # noqa: F401 (else each run would import it)

    for line in sys.stdin:
        kind, folder, dies_at = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.chdir(folder)
            places = Places(dies_at)
            make_corpus(configuration(kind))
            os.write(writing, str(places.passed).encode())
            os._exit(0)
        os.close(writing)
        with open(reading) as told:
            places = int(told.read() or 0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([status, places]), flush=True)


if __name__ == "__main__":
    serve()
