"""`construct`: its settings, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch  # noqa: F401 (its log handler keeps the stream that it finds at import: not one of a test's)
import pytest

from lightning_s2s.construction.speech import Kokoro

ROOT = Path(__file__).parents[2]
GRAMMAR = ROOT / "experiments" / "tiny" / "grammar.yaml"


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--config", "construction.yaml", "--ttts", "x"], 2, "unknown option '--ttts'; did you mean --tts?"),
        (
            ["--config", "construction.yaml", "--tts", "Pipr"],
            2,
            "tts: unknown engine 'Pipr'; did you mean Piper? known:",
        ),
        (
            ["--config", "construction.yaml", "--tts.foldr", "x"],
            2,
            "tts: unknown option of Kokoro 'foldr'; did you mean",
        ),
        (
            ["--config", "construction.yaml", "--grammar", GRAMMAR, "--tts.folder", "x"],
            1,
            "x: not a Kokoro folder, kokoro.onnx is missing",
        ),
        (["--config", "construction.yaml", "--prosody", "null"], 1, "prosody: Kokoro speaks every emotion alike"),
        (["--config", "construction.yaml", "--jitter", "x"], 2, "jitter: got 'x'; allowed: float"),
        (["--config", "construct.yaml"], 2, "--config construct.yaml: no such file; did you mean construction.yaml?"),
        (["--config", "construction.yaml", "--grammar", "x.yaml"], 1, "x.yaml: no such file or directory"),
        ([], 2, "missing: grammar, "),
    ],
)
def test_mistakes_of_construct(run, monkeypatch, tmp_path, arguments, code, expected):
    monkeypatch.chdir(tmp_path)
    content = (ROOT / "experiments" / "tiny" / "construction.yaml").read_text()
    (tmp_path / "construction.yaml").write_text(content)
    found, _, err = run("construct", *arguments)
    assert (found, err.count("\n")) == (code, 1)
    assert err.startswith(f"error: {expected}")


def test_construct_hands_its_settings_over(run, monkeypatch, tmp_path):
    from lightning_s2s.construction import pipeline, prosody

    received = []
    monkeypatch.setattr(pipeline, "construct", received.append)
    config = ROOT / "experiments" / "tiny" / "construction.yaml"
    assert run("construct", "--config", config, "--seed", "5", "--tts.folder", "voices")[0] == 0
    assert isinstance(received[0], pipeline.CorpusConfig)
    assert (received[0].seed, received[0].tts) == (5, Kokoro("voices"))
    assert isinstance(received[0].prosody["happy"], prosody.Prosody)
