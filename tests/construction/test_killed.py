"""`construct` killed at random moments by SIGKILL, and on Ray: every time the same corpus, byte by byte."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from construction_parts import RULES, FakeCodec, Tone
from test_prompted import Writer

from lightning_s2s.construction.augmentation import Augmentation
from lightning_s2s.construction.chat import ChatReply
from lightning_s2s.construction.config import CorpusConfig
from lightning_s2s.construction.filters import Duration, Filter, NearDuplicates, WordCount
from lightning_s2s.construction.pipeline import construct
from lightning_s2s.construction.running import Local, Ray
from lightning_s2s.construction.writing import GrammarWriter, PromptedWriter
from lightning_s2s.construction.writing.seeds import Seeds

for package in ("json_repair", "datasketch"):
    pytest.importorskip(package, reason=f"the package {package} (extra: construction) is not installed")

KILLS = 5


class SlowWriter(Writer):
    """Takes its time; what it writes depends on the prompt and the seed, and some of it is malformed."""

    identity = "slow writer"

    def answer(self, request):
        time.sleep(0.004)
        number = int(hashlib.sha256(f"{request.prompt} {request.seed}".encode()).hexdigest()[:8], 16)
        if number % 7 == 0:
            return ChatReply("nonsense", False, 10, 1)
        fields = request.schema["properties"]
        words = " ".join(str(number // 7**power % 1000) for power in range(5))
        values = {
            name: held["enum"][number % len(held["enum"])] if "enum" in held else words for name, held in fields.items()
        }
        return ChatReply(json.dumps(values), False, 10, 2)


class SlowTone(Tone):
    """Tones whose pitch and length depend on the words."""

    identity, concurrency = "slow tone", 2

    def synthesise(self, text, voice, emotion="neutral", style="", speed=1.0):
        time.sleep(0.004)
        number = int(hashlib.sha256(f"{text} {voice} {emotion}".encode()).hexdigest()[:8], 16)
        time_axis = np.arange(8000 + number % 8000) / 16_000
        return (0.3 * np.sin(2 * np.pi * (150 + number % 200) * time_axis)).astype(np.float32), 16_000


class Lottery(Filter):
    """A slow measurement."""

    name, hears, identity, batch_size = "lottery", True, "lottery", 2

    def measure(self, batch):
        time.sleep(0.01)
        return [{"luck": int(hashlib.sha256(heard.questions[0].encode()[-20:]).hexdigest()[:2], 16)} for heard in batch]

    def verdict(self, figures):
        return "" if figures["luck"] > 60 else "no luck"


def configuration(kind: str, runner=None) -> CorpusConfig:
    if kind == "grammar":
        grammar = Path("grammar.yaml")
        grammar.write_text(yaml.safe_dump(RULES))
        writer = GrammarWriter(
            str(grammar), {"train": 12, "validation": 2, "test": 2}, {"train": 3, "validation": 4, "test": 4},
            {"train": 4, "validation": 4, "test": 4}, replies_per_emotion=30, held_out_share=0.3,
        )  # fmt: skip
    else:
        chat = SlowWriter(batch_size=2, concurrency=2 if kind == "threads" else 1)
        writer = PromptedWriter(chat, Seeds({"train": 20, "validation": 3, "test": 3}, emotions_per_line=2), turns=2)
    return CorpusConfig(
        output_dir="corpus", work_dir="work", writer=writer, tts=SlowTone(True),
        assistant_tts=SlowTone(), vocoder=FakeCodec(), assistant_voice="anna",
        user_voices={"train": ["bob", "cleo"], "validation": ["dan"], "test": ["eve"]},
        augmentation=Augmentation(noise=["white"], share=0.5), dataset=True,
        filters=[WordCount(), NearDuplicates(), Duration(), Lottery()],
        runner=runner or Local(2 if kind == "processes" else 1),
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """All files of the corpus, and the report of what was left out."""
    files = [*(folder / "corpus").rglob("*"), folder / "work" / "report.html"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.is_file()}


@pytest.mark.parametrize("kind", ["grammar", "threads", "processes"])
def test_a_run_that_is_killed_five_times_equals_one_that_is_not(kind, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    start = time.monotonic()
    program = [sys.executable, __file__, kind]
    subprocess.run(program, cwd=tmp_path / "whole", check=True, capture_output=True)
    takes = time.monotonic() - start
    rng = random.Random(kind)
    kills = 0
    while kills < KILLS:
        child = subprocess.Popen(program, cwd=tmp_path / "killed", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert child.stdout.readline() == b"ready\n"  # imports are over
        time.sleep(rng.uniform(0.05, 0.6) * min(takes, 3.0) / 2)
        if child.poll() is not None:
            break  # all was done before the last kills
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills += 1
    assert kills >= 3
    subprocess.run(program, cwd=tmp_path / "killed", check=True, capture_output=True)
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert whole.keys() == killed.keys() and len(whole) > 12
    assert [name for name in whole if whole[name] != killed[name]] == []


def test_ray_and_processes_make_the_same_corpus(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the package ray (extra: ray) is not installed")
    found = []
    for name, runner in (("here", Local()), ("two", Local(2)), ("ray", Ray(workers=2))):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        outcome = construct(configuration("prompted", runner))
        assert 10 < len(outcome.kept) < len(outcome.candidates)
        found.append(contents(folder))
    assert found[0].keys() == found[1].keys() == found[2].keys()
    assert [name for name in found[0] if not found[0][name] == found[1][name] == found[2][name]] == []


if __name__ == "__main__":
    asked = configuration(sys.argv[1])
    print("ready", flush=True)
    construct(asked)
