"""Every YAML of experiments/opens2s parses; its model builds at its real size, without weights and without a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_s2s.cli import main
from lightning_s2s.components.registry import REGISTRY, VOCODERS
from lightning_s2s.components.weights import parameters_on_meta
from parts.paths import EXPERIMENTS, ROOT

FOLDER = EXPERIMENTS / "opens2s"
YAMLS = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("[0-9]*_*.yaml"))
STAGES = ["1_understanding.yaml", "2_generation.yaml", "2a_speech_decoder.yaml", "3_tuning.yaml"]

QWEN3 = {"model_type": "qwen3", "head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151_936}
INSTEAD_OF_A_HUB: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-8B": QWEN3 | {
        "hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 12_288,
    },
    "Qwen/Qwen3-1.7B": QWEN3 | {
        "hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 6144,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2-Audio-7B": {},  # the defaults of Qwen2AudioEncoderConfig
}  # fmt: skip
"""What the hub's configurations of these models say."""

WITH_GLM4_VOICE = pytest.mark.skipif("glm4_voice" not in VOCODERS.names(), reason="needs the vocoder glm4_voice")


def test_all_stages_of_both_sizes_are_here():
    expected = sorted([*STAGES, *(f"1b/{name}" for name in STAGES)])
    assert YAMLS == expected  # noqa: SIM300


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if "1_" in n else [WITH_GLM4_VOICE]) for n in YAMLS])
def test_yaml_parses(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    files = ["--config", str((FOLDER / name).with_name("model.yaml")), "--config", str(FOLDER / name)]
    assert main(["fit", *files, "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    written = yaml.safe_load((FOLDER / name).read_text())
    assert printed["trainer"]["gradient_clip_val"] == 1.0
    assert (
        printed["model"]["init_args"]["optimizer"]["lr"]
        == written["model"]["init_args"]["optimizer"]["lr"]
        == (2e-5 if "3_" in name else 1e-4)
    )
    assert printed["trainer"]["default_root_dir"] == written["trainer"]["default_root_dir"]
    assert (printed["trainer"]["strategy"] == "fsdp2") == ("/" not in name)
    trainer, data = written["trainer"], written["data"]
    devices = 1 if "/" in name else 8
    assert data["max_batch_size"] * trainer["accumulate_grad_batches"] * devices == 512


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Two files as the parser merges them; what the second leaves empty is left out."""
    both = {key: merged(base[key], value) if isinstance(base.get(key), dict) else value for key, value in over.items()
            if value is not None}  # fmt: skip
    return {key: value for key, value in base.items() if key not in over} | both


def without_hub(settings: dict[str, Any], tokenizer: Path) -> dict[str, Any]:
    """The stage's settings with configurations in the place of what has to be downloaded or trained before."""
    parts = settings["init_args"]
    for slot in ("llm", "encoder"):
        if slot in parts:
            init_args = parts[slot]["init_args"]
            init_args["config"], init_args["checkpoint"] = INSTEAD_OF_A_HUB[init_args["checkpoint"]], None
    parts["llm"]["init_args"]["tokenizer"] = str(tokenizer)
    if "vocoder" in parts:
        parts["vocoder"]["init_args"] = {}
        parts["speech_decoder"]["init_args"]["checkpoint"] = None
    parts["init_from"] = None
    return settings


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if "1_" in n else [WITH_GLM4_VOICE]) for n in YAMLS])
def test_model_builds_on_meta(name, tokenizer_folder):
    from jsonargparse import ArgumentParser
    from lightning.pytorch import LightningModule

    import lightning_s2s.stages  # noqa: F401 (so that the parser knows the stages)

    REGISTRY.load()
    files = (FOLDER / name).with_name("model.yaml"), FOLDER / name
    settings = without_hub(merged(*(yaml.safe_load(path.read_text())["model"] for path in files)), tokenizer_folder)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "stage", fail_untyped=False)
    config = parser.parse_object({"stage": settings})
    with parameters_on_meta():
        model = parser.instantiate(config).stage.model
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    large = "/" not in name
    millions = {part: sum(p.numel() for p in module.parameters()) / 1e6 for part, module in model.named_children()}
    assert millions["llm"] == pytest.approx(8191 if large else 1721, abs=1)
    if "encoder" in millions:
        assert millions["encoder"] == pytest.approx(637, abs=2)
        assert model.encoder.frame_rate_hz / model.adapter.downsampling == 6.25
    if "speech_decoder" in millions:
        decoder = model.speech_decoder
        assert decoder.lm.config.vocab_size == 16_385 and model.vocoder.unit_rate_hz == 12.5
        assert sum(p.numel() for p in decoder.lm.parameters()) / 1e6 == pytest.approx(1443 if large else 457, abs=2)
    trained = {part for part, module in model.named_children() if any(p.requires_grad for p in module.parameters())}
    assert trained == {
        "1_": {"adapter"}, "2_": {"speech_decoder"}, "2a": {"speech_decoder"},
        "3_": {"adapter", "llm", "speech_decoder"},
    }[Path(name).name[:2]]  # fmt: skip
