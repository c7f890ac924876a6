"""An optional package that is missing or unusable: one line with the command, in Python and on the command line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lightning_s2s.components.contracts import Adapter
from lightning_s2s.support import extras
from lightning_s2s.support.extras import MissingPackageError, extra_with, how_to_install, missing_packages
from parts.command_line import last_line
from parts.paths import ROOT

REQUIREMENTS = [
    "torch>=2.7", "jsonargparse[signatures]>=4.53", 'encodec>=0.1.1; extra == "codecs"',
    'torchaudio>=2.7; extra == "codecs"', 's3prl>=0.4.18; extra == "ssl"', 'torchaudio>=2.7; extra == "ssl"',
    'no-such-package-here>=1; extra == "far"',
]  # fmt: skip
TORCHAUDIO = (
    "torchaudio can't be loaded: it was built for another torch than the one installed here; beside a CPU-only torch, "
    "python tools/cpu_torchaudio.py (in the repository) takes out the part that needs CUDA"
)


@pytest.fixture(autouse=True)
def requirements(monkeypatch):
    """The package list of an installed version."""
    monkeypatch.setattr(extras, "requires", lambda name: REQUIREMENTS)


class Needy(Adapter):
    """Fails to be built."""

    extra = "ssl"
    downsampling = 1

    def __init__(self, error: Exception, cause: Exception | None = None):
        super().__init__()
        raise error from cause

    def connect(self, input_width, output_width, frame_rate_hz=None):
        pass

    def forward(self, hidden_states, lengths):
        return hidden_states, lengths


class NeedyChild(Needy):
    """Fails in its base's constructor, with an extra of its own."""

    extra = "codecs"

    def __init__(self, **options):
        super().__init__(**options)


def test_packages_of_extras():
    assert extras.extras() == {
        "codecs": ["encodec", "torchaudio"], "ssl": ["s3prl", "torchaudio"], "far": ["no-such-package-here"],
    }  # fmt: skip
    assert missing_packages("far") == ["no-such-package-here"]
    assert missing_packages("") == missing_packages("unknown") == []
    assert extra_with("s3prl.nn") == "ssl"
    assert extra_with("torchaudio") == "codecs" and extra_with("torchaudio", preferred="ssl") == "ssl"
    assert extra_with("no_such_package_here") == "far"
    assert extra_with("torch") is None and extra_with("audio") is None and extra_with("") is None


def missing(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("cls", "options", "expected"),
    [
        (
            Needy,
            {"error": missing("s3prl")},
            "Needy: the package s3prl is missing; install it with pip install 'lightning-s2s[ssl]'",
        ),
        (
            Needy,
            {"error": missing("torchaudio.transforms")},
            "Needy: the package torchaudio.transforms is missing; install it with pip install 'lightning-s2s[ssl]'",
        ),
        (
            NeedyChild,
            {"error": missing("torchaudio")},
            "NeedyChild: the package torchaudio is missing; install it with pip install 'lightning-s2s[codecs]'",
        ),
        (
            Needy,
            {"error": RuntimeError("Failed to import something"), "cause": missing("encodec")},
            "Needy: the package encodec is missing; install it with pip install 'lightning-s2s[codecs]'",
        ),
        (
            Needy,
            {"error": ImportError("\nSomeExtractor requires the torchaudio library but it was not found in your env")},
            "Needy: the package torchaudio is missing; install it with pip install 'lightning-s2s[ssl]'",
        ),
        (
            Needy,
            {"error": OSError("Could not load this library: /v/torchaudio/lib/_torchaudio.abi3.so")},
            f"Needy: {TORCHAUDIO}",
        ),
    ],
)
def test_a_component_that_lacks_a_package_says_how_to_install_it(cls, options, expected):
    with pytest.raises(MissingPackageError) as error:
        cls(**options)
    assert str(error.value) == expected
    assert error.value.__cause__ is options["error"]


@pytest.mark.parametrize(
    "error", [missing("torch"), missing("something_else"), OSError("disk full"), ValueError("wrong"), ImportError("x")]
)
def test_other_errors_of_a_component_stay_as_they_are(error):
    assert how_to_install(error) is None
    with pytest.raises(type(error)) as found:
        Needy(error)
    assert found.value is error


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "peft":
            raise ModuleNotFoundError("No module named 'peft'", name="peft")
sys.meta_path.insert(0, Block())
from lightning_s2s.support import extras
extras.requires = lambda name: ['peft>=0.17; extra == "codecs"']
from lightning_s2s.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_command_line_says_it_through_the_parsers_that_build_components(tmp_path):
    """Here peft, which LoRA imports, stands for an optional package."""
    (tmp_path / "lora.yaml").write_text(
        "model: {init_args: {llm: {init_args: {lora: {r: 2, target_modules: [q_proj]}}}}}\n"
    )
    result = subprocess.run(
        [
            sys.executable, "-c", BLOCKED, "fit",
            "--config", "experiments/tiny/model.yaml", "--config", "experiments/tiny/1_understanding.yaml",
            "--config", str(tmp_path / "lora.yaml"), "--trainer.default_root_dir", str(tmp_path),
        ],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    expected = (
        "error: CausalLanguageModel: the package peft is missing; install it with pip install 'lightning-s2s[codecs]'"
    )
    assert (result.returncode, last_line(result.stderr)) == (1, expected)
    assert "Traceback" not in result.stderr
