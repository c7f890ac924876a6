"""Fixtures that several tests share: a tokenizer whose ids can be written by hand, and a corpus of sweeps."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import environment

CACHES = tempfile.TemporaryDirectory(prefix="lightning-s2s-tests-")
environment.settle(Path(CACHES.name))  # before a library reads it

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from small_parts import WHOLE_WHISPER  # noqa: E402

torch.set_num_threads(1)

SAMPLE_RATE = 16_000
UNIT_RATE_HZ = 25.0
NUM_UNITS = 1000
SPECIAL_TOKENS = [
    "<|im_start|>", "<|im_end|>", "<|im_audio_start|>", "<|im_audio_end|>", "<|im_tts_start|>", "<|im_tts_end|>",
]  # fmt: skip
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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


def byte_tokenizer(special_tokens: list[str] = SPECIAL_TOKENS, chat_template: str | None = CHATML):
    """A transformers tokenizer whose ids are the bytes 0..255, then the special tokens from 256, then `<|pad|>`.

    So "Hi" is [72, 105], `<|im_start|>` 256, `<|im_end|>` 257, `<|im_audio_start|>` 258, `<|im_audio_end|>` 259,
    `<|im_tts_start|>` 260, `<|im_tts_end|>` 261 and `<|pad|>` 262.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE({characters[byte]: byte for byte in range(256)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in [*special_tokens, "<|pad|>"]])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>")
    fast.chat_template = chat_template
    return fast


@pytest.fixture
def make_byte_tokenizer() -> Callable:
    """`byte_tokenizer`, for tests that need other special tokens or templates."""
    return byte_tokenizer


@pytest.fixture
def chat_tokenizer():
    """A ChatTokenizer over bytes, see `byte_tokenizer`."""
    from lightning_s2s.data import ChatTokenizer

    return ChatTokenizer(byte_tokenizer())


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """A folder with the files of `byte_tokenizer`."""
    folder = tmp_path / "tokenizer"
    byte_tokenizer().save_pretrained(folder)
    return folder


def sweep(duration_sec: float, low_hz: float = 200.0, high_hz: float = 800.0, rate: int = SAMPLE_RATE) -> np.ndarray:
    """(T,) float32, a sine that glides from `low_hz` to `high_hz` with a peak of 0.5."""
    time = np.arange(int(duration_sec * rate)) / rate
    phase = 2 * np.pi * (low_hz * time + (high_hz - low_hz) * time**2 / (2 * duration_sec))
    return (0.5 * np.sin(phase)).astype(np.float32)


@dataclass(frozen=True)
class TinyCorpus:
    """Paths and figures of a small corpus of dialogues.

    Half the questions are wav files, half lie in `questions.zip`. Rows of one `pair` share their words and differ in
    `emotion`; replies are spoken, with 25 units a second in 0..999.
    """

    folder: Path
    train: str
    validation: str
    num_train: int
    num_validation: int
    sample_rate: int = SAMPLE_RATE
    unit_rate_hz: float = UNIT_RATE_HZ
    num_units: int = NUM_UNITS


def write_tiny_corpus(folder: Path, num_train: int = 12, num_validation: int = 4) -> TinyCorpus:
    """Write sweeps as questions, replies as units, and two manifests."""
    folder.mkdir(parents=True, exist_ok=True)
    words, emotions, archive = ("the exam", "my boss", "the trip"), ("happy", "sad"), folder / "questions.zip"
    rows = []
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for number in range(num_train + num_validation):
            pair, emotion = number // 2, emotions[number % 2]
            waveform = sweep(0.6 + 0.1 * (number % 7), 150 + 20 * pair, 900 if emotion == "happy" else 100)
            wav = folder / f"q{number:02d}.wav"
            soundfile.write(wav, waveform, SAMPLE_RATE)
            reference = wav.name
            if number % 4 >= 2:
                with file.open(zipfile.ZipInfo(wav.name), "w") as member:
                    member.write(wav.read_bytes())
                info = file.getinfo(wav.name)
                start = info.header_offset + 30 + len(info.filename)
                reference = f"{archive.name}:{start}:{info.file_size}"
                wav.unlink()
            text = f"It is about {words[pair % 3]}."
            units = "".join(f"<|audio_{(37 * number + 11 * i) % NUM_UNITS}|>" for i in range(10 + number % 5))
            question = {"text": "", "audio": reference, "transcript": text, "emotion": emotion}
            reply = {"text": "How nice!" if emotion == "happy" else "I am sorry.", "speech_units": units}
            messages = [{"role": "user", "content": [question]}, {"role": "assistant", "content": [reply]}]
            rows.append({
                "id": f"d{number:02d}", "speaker": f"s{pair % 3}", "pair": f"p{pair}", "ambiguous": True,
                "messages": messages,
            })  # fmt: skip
    manifests = {"train": rows[:num_train], "validation": rows[num_train:]}
    for name, part in manifests.items():
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    paths = [str(folder / f"{name}.jsonl") for name in manifests]
    return TinyCorpus(folder, *paths, num_train, num_validation)


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
    """A copy of the golden OpenS2S checkpoint that may be changed; see `opens2s_folder`."""
    folder = tmp_path / "published"
    shutil.copytree(Path(__file__).parent / "golden" / "opens2s_end_to_end" / "checkpoint", folder)
    return folder


@pytest.fixture(scope="session")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's `experiments`, with the first 24 rows of each manifest: to read all takes longer than to train.

    It lies in a folder of its own, which is the working directory that its YAML files need.
    """
    source, copy = Path(__file__).parents[1] / "experiments", tmp_path_factory.mktemp("repository") / "experiments"
    corpus = copy / "tiny" / "corpus"
    corpus.mkdir(parents=True)
    for folder in (source, source / "tiny", source / "tiny" / "corpus"):
        for path in folder.iterdir():
            target = copy / path.relative_to(source)
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


TINY_LM = {
    "model_type": "qwen3", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32, "max_position_embeddings": 2048,
}  # fmt: skip


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
                "encoder": {"class_path": "mel", "init_args": {"width": 16, "num_layers": 1, "num_heads": 2}},
                "adapter": {"class_path": "conv", "init_args": {"kernel_sizes": [5], "inner_width": 8}},
                "llm": {"class_path": "causal", "init_args": {"config": TINY_LM, "tokenizer": str(tokenizer_folder)}},
                "speech_decoder": {
                    "class_path": "interleaved",
                    "init_args": {"interleave": "1:2", "config": TINY_LM, "max_units": 8},
                },
                "vocoder": {"class_path": "pocket", "init_args": {"encoder_width": 8, "decoder_width": 8}},
                "num_generated": 0,
                "warmup_steps": 1,
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


def last_line(text: str) -> str:
    """The last line with something on it."""
    return text.rstrip().splitlines()[-1]
