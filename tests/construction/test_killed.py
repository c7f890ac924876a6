"""`construct` killed at random places by SIGKILL, and on Ray: every time the same corpus, byte by byte."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from construction_parts import RULES, FakeCodec, Tone
from test_prompted import Writer

from lightning_s2s.commands.construct import make_corpus
from lightning_s2s.construction.augmentation import Augmentation
from lightning_s2s.construction.chat import ChatReply
from lightning_s2s.construction.config import CorpusConfig
from lightning_s2s.construction.filters import Duration, Filter, NearDuplicates, WordCount
from lightning_s2s.construction.running import Local, Ray
from lightning_s2s.construction.writing import GrammarWriter, PromptedWriter
from lightning_s2s.construction.writing.seeds import Seeds
from lightning_s2s.support.journal import Journal

for package in ("json_repair", "datasketch"):
    pytest.importorskip(package, reason=f"the package {package} (extra: construction) is not installed")

KILLS = 5


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
        return [{"luck": int(hashlib.sha256(heard.questions[0].encode()[-20:]).hexdigest()[:2], 16)} for heard in batch]

    def verdict(self, figures):
        return "" if figures["luck"] > 60 else "no luck"


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
        augmentation=Augmentation(noise=["white"], share=0.5), dataset=True,
        filters=[WordCount(), NearDuplicates(), Duration(), Lottery()],
        runner=runner or Local(2 if kind == "processes" else 1),
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """All files of the corpus, and the report of what was left out."""
    files = [*(folder / "corpus").rglob("*"), folder / "work" / "report.html"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.is_file()}


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[str, Path, int], tuple[int, int]]]:
    """Run `construct` in a process of its own: kind, folder, place to die at (0: none) -> exit status, places passed.

    All come from one process that has imported everything, since that takes far longer than a run.
    """
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(kind: str, folder: Path, dies_at: int = 0) -> tuple[int, int]:
        print(json.dumps([kind, str(folder), dies_at]), file=process.stdin, flush=True)
        status, places = json.loads(process.stdout.readline())
        return status, places

    yield run
    process.stdin.close()
    assert process.wait() == 0


@pytest.mark.parametrize(
    "kind", ["grammar", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("threads", "processes"))]
)
def test_a_run_that_is_killed_five_times_equals_one_that_is_not(kind, tmp_path, run):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    status, places = run(kind, tmp_path / "whole")
    assert status == 0 and places > 12 * KILLS
    rng = random.Random(kind)
    for _ in range(KILLS):  # together they get through less than five sixths of the work, so none is left undone
        assert run(kind, tmp_path / "killed", rng.randint(1, places // (KILLS + 1)))[0] == -signal.SIGKILL
    assert run(kind, tmp_path / "killed")[0] == 0
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert whole.keys() == killed.keys() and len(whole) > 12
    assert [name for name in whole if whole[name] != killed[name]] == []


@pytest.mark.slow
def test_ray_and_processes_make_the_same_corpus(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the package ray (extra: ray) is not installed")
    found = []
    for name, runner in (("here", Local()), ("two", Local(2)), ("ray", Ray(workers=2))):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        outcome = make_corpus(configuration("prompted", runner))
        assert 10 < len(outcome.kept) < len(outcome.candidates)
        found.append(contents(folder))
    assert found[0].keys() == found[1].keys() == found[2].keys()
    assert [name for name in found[0] if not found[0][name] == found[1][name] == found[2][name]] == []


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
