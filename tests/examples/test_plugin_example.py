"""`examples/plugin`: installed like any package, then listed, known to the parsers, trained, saved and loaded."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import yaml

from parts.batches import assert_batched_equals_single
from parts.paths import ROOT
from parts.tolerances import assert_equal_but_for_rounding

EXAMPLE = ROOT / "examples" / "plugin"
RESPOND = """
import sys
from lightning_s2s.checkpoints.model_folder import load_model
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
model = load_model(sys.argv[1])
print(type(model.adapter).__name__, model.adapter.downsampling)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Callable[..., str]:
    """Run Python in the repository with the plug-in installed beside it; its standard output."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, folder / "source")  # a build writes into its source
    target = folder / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(folder / "source")], check=True, capture_output=True, text=True)

    def run(*arguments: str) -> str:
        paths = [str(target), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        result = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def test_it_is_listed(python):
    listed = {info["name"]: info for info in json.loads(python("-m", "lightning_s2s.cli", "components", "--json"))}
    assert listed["average"]["kind"] == "adapter" and listed["average"]["module"] == "s2s_average"
    assert listed["average"]["rates"] == "25 Hz -> 6.25 Hz"
    assert listed["average"]["summary"].startswith("Mean of every few frames")
    table = python("-m", "lightning_s2s.cli", "components", "--markdown", "-")
    assert "`conv`" in table and "`average`" not in table  # that is of what is built in


@pytest.mark.slow
def test_it_is_configured_trained_saved_and_loaded(python, tmp_path):
    fit = [
        "-m", "lightning_s2s.cli", "fit", "--config", "experiments/tiny/model.yaml",
        "--config", "experiments/tiny/1_understanding.yaml",
        "--model.adapter", "average", "--model.adapter.downsampling", "5",
        "--trainer.default_root_dir", str(tmp_path), "--trainer.max_steps", "1", "--trainer.accelerator", "cpu",
        "--trainer.limit_val_batches", "0", "--trainer.enable_progress_bar", "false", "--data.max_batch_size", "2",
    ]  # fmt: skip
    printed = yaml.safe_load(python(*fit, "--print_config"))
    assert printed["model"]["init_args"]["adapter"] == {
        "class_path": "s2s_average.average", "init_args": {"downsampling": 5},
    }  # fmt: skip
    python(*fit)
    saved = json.loads((tmp_path / "model" / "config.json").read_text())
    assert saved["adapter"] == {"class_path": "average", "init_args": {"downsampling": 5}}
    assert python("-c", RESPOND, str(tmp_path / "model")).strip() == "AverageAdapter 5"


def test_it_keeps_the_contract():
    """Written like any component's test, since the example is there to be copied."""
    spec = importlib.util.spec_from_file_location("s2s_average", EXAMPLE / "s2s_average.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["s2s_average"] = module
    try:
        spec.loader.exec_module(module)
        adapter = module.AverageAdapter(4)
        adapter.connect(6, 8)
        assert assert_batched_equals_single(adapter, torch.randn(3, 11, 6), torch.tensor([11, 8, 1])) == [3, 2, 1]
        ramp = torch.arange(6.0).reshape(1, 6, 1).expand(1, 6, 6)
        with torch.no_grad():
            positions, counts = adapter(ramp, torch.tensor([6]))
            expected = adapter.norm(adapter.linear(torch.tensor([[1.5] * 6, [4.5] * 6])))  # mean of 0..3, and of 4, 5
        assert_equal_but_for_rounding(positions[0], expected)
        assert counts.tolist() == [2]
        with pytest.raises(ValueError, match="adapter average: downsampling must be at least 1; got 0"):
            module.AverageAdapter(0)
    finally:
        from lightning_s2s.components.registry import ADAPTERS

        ADAPTERS._classes.pop("average", None)
        sys.modules.pop("s2s_average", None)
