"""The YAMLs of experiments/construction: one is run as it is written, on small stand-ins for its models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lightning_s2s.cli import main
from lightning_s2s.construction import filters
from lightning_s2s.construction.chat import ChatReply, ChatServer, LocalChat
from lightning_s2s.construction.running import Ray
from lightning_s2s.construction.speech import Kokoro
from parts.construction import Tone, Writer, read_rows
from parts.paths import EXPERIMENTS, ROOT

FOLDER = EXPERIMENTS / "construction"


def test_all_yamls_are_known():
    assert {path.name for path in FOLDER.rglob("*.yaml")} == {"smollm2.yaml", "opens2s.yaml"}


class Counting(Writer):
    """No two of its lines are alike."""

    def answer(self, request):
        reply = super().answer(request)
        values = json.loads(reply.text)
        number = len(self.prompts)
        for name in set(values) & {"line", "reply"}:
            values[name] = " ".join(f"{word}{number * 7919 % 1000}" for word in ("They", "called", "about", name))
        return ChatReply(json.dumps(values), False, 10, 2)


def test_smollm2(workplace, monkeypatch):
    """Three lines for two emotions each; the words are taken for granted, the prosody classifier listens."""
    for package in ("json_repair", "datasketch", "pyworld"):
        pytest.importorskip(package, reason=f"{package} (extra: construction) can't be imported", exc_type=ImportError)
    writer, tone = Counting(), Tone()
    monkeypatch.setattr(LocalChat, "ask", lambda self, requests: [writer.answer(request) for request in requests])
    monkeypatch.setattr(Kokoro, "check", lambda self, voices: None)
    monkeypatch.setattr(Kokoro, "synthesise", lambda self, *asked: tone.synthesise(*asked))
    for kind, figures in (
        (filters.WordError, {"question_word_error": 0.0, "reply_word_error": 0.0}),
        (filters.Quality, {"question_mos": 3.0, "reply_mos": 4.0}),
    ):
        monkeypatch.setattr(kind, "measure", lambda self, batch, figures=figures: [figures for _ in batch])
    options = ["--writer.seeds.lines", "{train: 1, validation: 1, test: 1}"]
    written = yaml.safe_load((FOLDER / "smollm2.yaml").read_text())
    assert sum(written["writer"]["init_args"]["seeds"]["lines"].values()) * 2 == 100
    assert main(["construct", "--config", "experiments/construction/smollm2.yaml", *options]) == 0
    corpus = Path(written["output_dir"])
    rows = [row for split in ("train", "validation", "test") for row in read_rows(corpus / f"{split}.jsonl.gz")]
    assert rows and all("prosody_probability" in row["figures"] for row in rows)
    assert (corpus / "README.md").is_file() and list((corpus / "dataset" / "data").glob("*.parquet"))
    assert (Path(written["work_dir"]) / "report.html").is_file()


def test_opens2s_is_understood(monkeypatch):
    """Its servers and models are not here: the configuration is read, and the parts that it names are built."""
    monkeypatch.chdir(ROOT)
    received = []
    monkeypatch.setattr("lightning_s2s.construction.summary.summarise", lambda outcome, config: "")
    monkeypatch.setattr("lightning_s2s.commands.construct.make_corpus", received.append)
    assert main(["construct", "--config", "experiments/construction/opens2s.yaml", "--vocoder", "null"]) == 0
    (config,) = received
    assert isinstance(config.writer.chat, ChatServer) and isinstance(config.runner, Ray)
    assert config.writer.chat.extra == {"chat_template_kwargs": {"enable_thinking": False}}
    lines = config.writer.seeds.lines
    assert sum(lines.values()) * config.writer.seeds.emotions_per_line == pytest.approx(100_000, rel=0.01)
    assert {kind.name for kind in config.filters} >= {"reply_fits", "word_error", "speaker_similarity", "quality"}
