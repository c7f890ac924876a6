"""Fixtures that several tests share: a tokenizer whose ids can be written by hand, and a corpus of sweeps."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from parts import environment

CACHES = tempfile.TemporaryDirectory(prefix="lightning-s2s-tests-")
environment.settle(Path(CACHES.name))  # before a library reads it

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402

from parts.byte_tokenizer import byte_tokenizer  # noqa: E402
from parts.paths import EXPERIMENTS, OPENS2S_CHECKPOINT  # noqa: E402
from parts.small_sizes import TINY_LM, WHOLE_WHISPER  # noqa: E402
from parts.stage_settings import hearing_parts, speaking_parts  # noqa: E402
from parts.tiny_corpus import TinyCorpus, write_tiny_corpus  # noqa: E402

torch.set_num_threads(1)


def pytest_unconfigure(config):
    """Remove the caches of the tests, and of the commands that they started."""
    CACHES.cleanup()


@pytest.fixture(autouse=True)
def known_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test draws doesn't depend on those before it, nor does the seed of a run that it starts."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def make_byte_tokenizer() -> Callable:
    """`byte_tokenizer`, for tests that need other special tokens or templates."""
    return byte_tokenizer


@pytest.fixture
def chat_tokenizer():
    """A ChatTokenizer over bytes, see `byte_tokenizer`."""
    from lightning_s2s.data.chat import ChatTokenizer

    return ChatTokenizer(byte_tokenizer())


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """A folder with the files of `byte_tokenizer`."""
    folder = tmp_path / "tokenizer"
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_corpus(tmp_path: Path) -> TinyCorpus:
    """12 dialogues to train on, 4 to validate on; see `TinyCorpus`."""
    return write_tiny_corpus(tmp_path / "corpus")


@pytest.fixture
def make_tiny_corpus(tmp_path: Path) -> Callable[..., TinyCorpus]:
    """`write_tiny_corpus(num_train=..., num_validation=...)` below tmp_path."""
    return lambda **counts: write_tiny_corpus(tmp_path / f"corpus{len(list(tmp_path.glob('corpus*')))}", **counts)


@pytest.fixture
def write_manifest(tmp_path: Path) -> Callable[..., Path]:
    """Write rows (dicts, or lines as they are) as `rows.jsonl` below tmp_path and give its path."""

    def write(rows: list, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A copy of the golden OpenS2S checkpoint that may be changed; see `parts/opens2s_folder.py`."""
    folder = tmp_path / "published"
    shutil.copytree(OPENS2S_CHECKPOINT, folder)
    return folder


@pytest.fixture(scope="session")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's `experiments`, with the first 24 rows of each manifest: to read all takes longer than to train.

    It lies in a folder of its own, which is the working directory that its YAML files need.
    """
    copy = tmp_path_factory.mktemp("repository") / "experiments"
    corpus = copy / "tiny" / "corpus"
    corpus.mkdir(parents=True)
    for folder in (EXPERIMENTS, EXPERIMENTS / "tiny", EXPERIMENTS / "tiny" / "corpus"):
        for path in folder.iterdir():
            target = copy / path.relative_to(EXPERIMENTS)
            if path.name.endswith(".jsonl.gz"):
                with gzip.open(path) as rows, gzip.open(target, "wb") as kept:
                    kept.writelines(itertools.islice(rows, 24))
            elif not target.exists():
                target.symlink_to(path)
    return copy


@pytest.fixture
def workplace(tmp_path, monkeypatch, experiments) -> Path:
    """A working directory with the experiments, and with small random models in folders named as hub ids."""
    import transformers

    (tmp_path / "experiments").symlink_to(experiments)
    torch.manual_seed(0)
    whisper = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**WHOLE_WHISPER))
    whisper.save_pretrained(tmp_path / "openai" / "whisper-base")
    llm = tmp_path / "HuggingFaceTB" / "SmolLM2-135M-Instruct"
    llm.parent.mkdir()
    llm.symlink_to(experiments / "tiny" / "language_model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def configuration(tmp_path, tiny_corpus, tokenizer_folder) -> Path:
    """YAML of a stage 3 that takes a few seconds for its four steps."""
    settings = {
        "trainer": {
            "max_steps": 4, "default_root_dir": str(tmp_path / "run"), "accelerator": "cpu", "devices": 1,
            "enable_progress_bar": False, "enable_model_summary": False, "val_check_interval": 2,
            "check_val_every_n_epoch": None, "limit_val_batches": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1,
        },
        "model": {
            "class_path": "EmpatheticInstructionTuning",
            "init_args": {
                **hearing_parts(TINY_LM, tokenizer_folder), **speaking_parts(TINY_LM),
                "num_generated": 0,
                "optimizer": {"warmup_steps": 1},
            },
        },
        "data": {
            "train": tiny_corpus.train, "validation": tiny_corpus.validation, "batch_duration_sec": 30.0,
            "max_batch_size": 3,
        },
    }  # fmt: skip
    path = tmp_path / "stage.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


@pytest.fixture
def run(capsys):
    """Run a command in this process -> (exit status, standard output, standard error)."""
    from lightning_s2s.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run
