"""Every YAML of experiments/tiny is run: fitted for two steps, stopped, resumed, and, where it hears, asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_s2s.cli import main
from parts.paths import EXPERIMENTS
from parts.small_sizes import SHORT_RUN

TINY = EXPERIMENTS / "tiny"
CORPUS = TINY / "corpus"
WITHOUT_FIT = {"answers", "construction", "emotion_classifier", "grammar", "model", "recipe", "robustness"}
WITHOUT_MODEL = {"0_language_model", "0_pocket_vocoder"}
STAGES = sorted(path.stem for path in TINY.glob("*.yaml") if path.stem not in WITHOUT_FIT)


def fit(name: str, folder: Path, steps: int, *more: str) -> int:
    """`lightning-s2s fit` with a tiny YAML, cut down to a few steps."""
    files = [] if name in WITHOUT_MODEL else ["--config", "experiments/tiny/model.yaml"]
    files += ["--config", f"experiments/tiny/{name}.yaml"]
    arguments = ["fit", *files, "--trainer.default_root_dir", str(folder)]
    return main([*arguments, "--trainer.max_steps", str(steps), "--trainer.val_check_interval", "2", *SHORT_RUN, *more])


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of the stages, each started from the one before."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("name", STAGES)
def test_yaml_fits_resumes_and_hands_over(
    name: str, chain: Path, experiments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(experiments.parent)
    folder, options = chain / name, []
    if name == "0_pocket_vocoder":  # its own data is rendered by `construct`; questions have words and sound, too
        clips = "experiments/tiny/corpus/understanding_validation.jsonl.gz"
        options = ["--data.train", clips, "--data.validation", clips]
    earlier = {"2_generation": "1_understanding", "3_tuning": "2_generation"}.get(name)
    if earlier:
        options = ["--model.init_from", str(chain / earlier)]
    if name in ("1_understanding", "3_tuning"):
        options += ["--model.num_generated", "1"]
    if name == "3_tuning":  # what the callbacks show is tested on its own
        options += ["--trainer.callbacks", "null"]
    assert fit(name, folder, 2, *options) == 0
    assert step_of(folder) == 2
    assert fit(name, folder, 3, "--resume", *options) == 0
    assert step_of(folder) == 3
    made = {"0_pocket_vocoder": "pocket", "0_language_model": "language_model", "0_speech_decoder": "speech_decoder"}
    assert (folder / made.get(name, "model") / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_codecs_second_run_leaves_the_units_alone(
    chain: Path, tmp_path: Path, experiments: Path, monkeypatch: pytest.MonkeyPatch
):
    first = chain / "0_pocket_vocoder" / "pocket"
    monkeypatch.chdir(experiments.parent)
    clips = "experiments/tiny/corpus/understanding_validation.jsonl.gz"
    data = ["--data.train", clips, "--data.validation", clips]
    if not first.exists():
        assert fit("0_pocket_vocoder", first.parent, 2, *data) == 0
    options = ["--model.train_tokenizer", "false", "--model.adversarial_weight", "1.5"]
    options += ["--model.vocoder.checkpoint", str(first), *data]
    assert fit("0_pocket_vocoder", tmp_path, 4, *options) == 0
    before, after = load_file(first / "model.safetensors"), load_file(tmp_path / "pocket" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)


def step_of(folder: Path) -> int:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    return checkpoint["global_step"]


@pytest.mark.parametrize(("stage", "speaks"), [("1_understanding", False), ("3_tuning", True)])
def test_answers_after_each_stage(stage: str, speaks: bool, chain: Path, tmp_path: Path, question: Path) -> None:
    folder = chain / stage
    if not folder.exists():
        pytest.skip(f"{stage} was not fitted in this run of the tests")
    out = tmp_path / "reply.json"
    options = ["--out", str(tmp_path / "reply.wav")] if speaks else ["--no-audio"]
    assert main(["respond", str(folder), str(question), "--json", str(out), "--greedy", *options]) == 0
    reply = json.loads(out.read_text())
    assert set(reply) >= {"text", "text_ids", "unit_ids", "events"}
    assert (tmp_path / "reply.wav").exists() == speaks


def test_robustness_after_stage_3(chain: Path, tmp_path: Path, experiments: Path, monkeypatch) -> None:
    if not (chain / "3_tuning").exists():
        pytest.skip("3_tuning was not fitted in this run of the tests")
    monkeypatch.chdir(experiments.parent)
    configs = ["--config", "experiments/tiny/answers.yaml", "--config", "experiments/tiny/robustness.yaml"]
    options = ["--model", str(chain / "3_tuning"), "--runs", "[]", "--output_dir", str(tmp_path), "--limit", "1"]
    assert main(["evaluate", "answers", *configs, *options]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures["conditions"])[:2] == ["as recorded", "gain -12 dB"] and len(figures["conditions"]) == 13


@pytest.fixture
def question(tmp_path: Path) -> Path:
    """One held-out question as a file of its own."""
    import soundfile

    from lightning_s2s.data.audio import load_audio
    from lightning_s2s.data.chat import content_items
    from lightning_s2s.data.manifest import read_manifest

    row = read_manifest(CORPUS / "understanding_test.jsonl.gz")[0]
    item = content_items(row["messages"][0]["content"])[0]
    path = tmp_path / "question.wav"
    soundfile.write(path, load_audio(item["audio"], row["folder"], 16_000), 16_000)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("part", ["encoder", "llm"])
def test_swapped_component_fits_and_answers(
    part: str, tmp_path: Path, question: Path, experiments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same YAML with a real Whisper-base encoder, and with a real SmolLM2-135M-Instruct."""
    import os

    variable, name = {
        "encoder": ("WHISPER_BASE", "openai/whisper-base"),
        "llm": ("SMOLLM2_135M", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    }[part]
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"set {variable} to a folder of {name} to run this test")
    monkeypatch.chdir(experiments.parent)
    swap = {
        "encoder": ["--model.encoder", "whisper", "--model.encoder.checkpoint", folder],
        "llm": ["--model.llm.checkpoint", folder],
    }[part]
    run = tmp_path / "run"
    assert fit("1_understanding", run, 2, *swap, "--model.num_generated", "1") == 0
    out = tmp_path / "reply.json"
    assert main(["respond", str(run), str(question), "--json", str(out), "--greedy", "--no-audio"]) == 0
    assert isinstance(json.loads(out.read_text())["text"], str)
    shutil.rmtree(run)
