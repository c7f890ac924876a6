"""`construct`: its settings, and what it refuses."""

from __future__ import annotations

import lightning.pytorch  # noqa: F401 (its log handler keeps the stream that it finds at import: not one of a test's)
import pytest

from lightning_s2s.construction.config import CorpusConfig
from lightning_s2s.construction.outcome import Outcome
from lightning_s2s.construction.speech import Kokoro
from lightning_s2s.construction.speech.prosody import Prosody
from lightning_s2s.construction.usage import Usage
from parts.paths import EXPERIMENTS, ROOT


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--config", "construction.yaml", "--ttts", "x"], 2, "unknown option '--ttts'; did you mean --tts?"),
        (
            ["--config", "construction.yaml", "--tts", "Pipr"],
            2,
            "tts: unknown synthesizer 'Pipr'; did you mean Piper? known:",
        ),
        (
            ["--config", "construction.yaml", "--tts.foldr", "x"],
            2,
            "tts: unknown option of Kokoro 'foldr'; did you mean",
        ),
        (
            ["--config", "construction.yaml", "--tts.folder", "x"],
            1,
            "x: not a Kokoro folder, kokoro.onnx is missing",
        ),
        (["--config", "construction.yaml", "--prosody", "null"], 1, "prosody: Kokoro speaks every emotion alike"),
        (["--config", "construction.yaml", "--jitter", "x"], 2, "jitter: got 'x'; allowed: float"),
        (["--config", "construct.yaml"], 2, "--config construct.yaml: no such file; did you mean construction.yaml?"),
        (
            ["--config", "construction.yaml", "--writer", "Gramar"],
            2,
            "writer: unknown writer 'Gramar'; did you mean GrammarWriter? known: GrammarWriter, PromptedWriter",
        ),
        (
            ["--config", "construction.yaml", "--runner", "Slurm"],
            2,
            "runner: unknown runner 'Slurm'; known: Local, Ray",
        ),
        (
            ["--config", "construction.yaml", "--filters", "[{class_path: WordErrors}]"],
            2,
            "filters: unknown filter 'WordErrors'; did you mean WordError? known: Duration, EmotionAgreement,",
        ),
        (
            ["--config", "construction.yaml", "--vocoder", "pockett"],
            2,
            "vocoder: unknown vocoder 'pockett'; did you mean",
        ),
        ([], 2, "missing: output_dir, "),
    ],
)
def test_mistakes_of_construct(run, monkeypatch, tmp_path, arguments, code, expected):
    monkeypatch.chdir(tmp_path)
    content = (EXPERIMENTS / "tiny" / "construction.yaml").read_text()
    content = content.replace("experiments/tiny/pocket", str(EXPERIMENTS / "tiny" / "pocket"))
    (tmp_path / "construction.yaml").write_text(content)
    found, _, err = run("construct", *arguments)
    assert (found, err.count("\n")) == (code, 1)
    assert err.startswith(f"error: {expected}")


def test_construct_hands_its_settings_over(run, monkeypatch, tmp_path):
    from lightning_s2s.commands import construct

    received = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(construct, "make_corpus", lambda config: received.append(config) or Outcome([], Usage()))
    config = EXPERIMENTS / "tiny" / "construction.yaml"
    assert run("construct", "--config", config, "--seed", "5", "--tts.folder", "voices")[0] == 0
    assert isinstance(received[0], CorpusConfig)
    assert (received[0].seed, received[0].tts) == (5, Kokoro("voices"))
    assert isinstance(received[0].prosody["happy"], Prosody)
