"""Every YAML of experiments/small is run as it is written, on small random stand-ins for Whisper-base and SmolLM2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lightning_s2s.cli import main
from lightning_s2s.data.tasks import EMOTIONS
from lightning_s2s.evaluation.grammar import DialogueGrammar
from parts.paths import EXPERIMENTS, ROOT
from parts.small_sizes import SHORT_RUN

FOLDER = Path("experiments/small")
STAGES = ["1_understanding.yaml", "2a_speech_decoder.yaml", "2_generation.yaml", "3_tuning.yaml"]
OTHERS = ["answers.yaml", "construction.yaml", "grammar.yaml", "model.yaml", "recipe.yaml"]
ONE_STEP = [
    "--trainer.max_steps", "1", "--trainer.val_check_interval", "1",
    "--trainer.precision", "32-true",  # many CPUs have no bfloat16 and emulate it
    *SHORT_RUN,
]  # fmt: skip
SHORT_SPEECH = ["--model.speech_decoder.max_units", "48"]  # an untrained decoder would speak for a minute
NO_CALLBACKS = ["--trainer.callbacks", "null"]  # what they show is tested on its own


@pytest.fixture
def corpus(workplace) -> Path:
    """The embedded corpus in the place where `construct` writes the larger one."""
    folder = Path(yaml.safe_load((FOLDER / "construction.yaml").read_text())["output_dir"])
    folder.parent.mkdir(parents=True)
    folder.symlink_to(EXPERIMENTS / "tiny" / "corpus")
    return folder


def test_all_yamls_are_known():
    there = {path.relative_to(ROOT / FOLDER).as_posix() for path in (ROOT / FOLDER).rglob("*.yaml")}
    assert there == {*STAGES, *OTHERS, *(f"larger/{name}" for name in [*STAGES, "answers.yaml", "recipe.yaml"])}


@pytest.mark.parametrize("larger", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_stages_hand_over_to_each_other_and_the_model_is_asked(larger, corpus):
    for name in STAGES:
        overlay = ["--config", str(FOLDER / "larger" / name)] if larger else []
        options = [] if name == "1_understanding.yaml" else [*SHORT_SPEECH]
        options += NO_CALLBACKS if name == "3_tuning.yaml" else []
        options += ["--model.num_generated", "1"] if name in ("1_understanding.yaml", "3_tuning.yaml") else []
        assert (
            main(
                [
                    "fit",
                    "--config",
                    str(FOLDER / "model.yaml"),
                    "--config",
                    str(FOLDER / name),
                    *overlay,
                    *ONE_STEP,
                    *options,
                ]
            )
            == 0
        ), name
    asked = FOLDER / "larger" / "answers.yaml" if larger else FOLDER / "answers.yaml"
    assert main(["evaluate", "answers", "--config", str(asked), "--limit", "1"]) == 0
    out = Path(yaml.safe_load(asked.read_text())["output_dir"])
    assert json.loads((out / "figures.json").read_text())
    runs = {path.parent.name for path in Path("runs/small").rglob("logs")}
    assert runs == {Path(name).stem for name in STAGES}


def test_its_grammar_contains_the_embedded_one():
    small = DialogueGrammar(ROOT / FOLDER / "grammar.yaml")
    tiny = DialogueGrammar(EXPERIMENTS / "tiny" / "grammar.yaml")
    for emotion in EMOTIONS:
        assert all(small.judge(reply) == tiny.judge(reply) for reply in tiny.replies(emotion))
        assert all(small.judge(reply) == (emotion, small.topic_of(reply)) for reply in small.replies(emotion))
    for kind in ("ambiguous", *EMOTIONS):
        assert set(tiny.lines(kind)) < set(small.lines(kind))
        assert all(small.find_topic(line) for line in small.lines(kind))
