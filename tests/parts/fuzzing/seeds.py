"""Good files that the fuzzer spoils: a corpus, sound, a run of `fit` with its checkpoint and model, and journals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import soundfile
import yaml

from parts import environment
from parts.byte_tokenizer import byte_tokenizer
from parts.construction import RULES
from parts.paths import OPENS2S_CHECKPOINT
from parts.small_sizes import TINY_LM
from parts.sounds import SAMPLE_RATE, sweep
from parts.stage_settings import hearing_parts, speaking_parts
from parts.tiny_corpus import write_tiny_corpus

SOUND_SEC = 1.0
SUFFIXES = ("wav", "flac", "ogg", "opus", "mp3")
SPLITS = ("train", "validation", "test")


def stage(folder: Path) -> dict[str, Any]:
    """The configuration of a stage 3 that takes a second."""
    return {
        "trainer": {
            "max_steps": 1, "default_root_dir": "run", "accelerator": "cpu", "devices": 1, "logger": False,
            "enable_progress_bar": False, "enable_model_summary": False, "val_check_interval": 1,
            "check_val_every_n_epoch": None, "limit_val_batches": 1, "num_sanity_val_steps": 0,
        },
        "model": {
            "class_path": "EmpatheticInstructionTuning",
            "init_args": {
                **hearing_parts(TINY_LM, folder / "tokenizer"), **speaking_parts(TINY_LM),
                "num_generated": 0,
                "optimizer": {"warmup_steps": 1},
            },
        },
        "data": {
            "train": str(folder / "corpus" / "train.jsonl"), "validation": str(folder / "corpus" / "validation.jsonl"),
            "batch_duration_sec": 30.0, "max_batch_size": 2,
        },
    }  # fmt: skip


def construction(folder: Path) -> dict[str, Any]:
    """The configuration of a corpus of tones."""
    return {
        "output_dir": "corpus",
        "work_dir": "construction",
        "writer": {
            "class_path": "GrammarWriter",
            "init_args": {
                "grammar": str(folder / "grammar.yaml"),
                "ambiguous_lines": dict.fromkeys(SPLITS, 1),
                "emotions_per_line": dict.fromkeys(SPLITS, 4),
                "explicit_lines": dict.fromkeys(SPLITS, 4),
                "replies_per_emotion": 45,
                "held_out_share": 0.3,
            },
        },
        "tts": {"class_path": "parts.construction.Tone", "init_args": {"has_emotions": True}},
        "vocoder": {"class_path": "pocket", "init_args": {"encoder_width": 8, "decoder_width": 8}},
        "assistant_voice": "anna",
        "user_voices": {"train": ["bob", "cleo"], "validation": ["dan"], "test": ["eve"]},
    }


def study(folder: Path) -> dict[str, Any]:
    """An ablation of `stage`."""
    return {
        "title": "Two schedules",
        "output_dir": "study",
        "seeds": [1, 2],
        "steps": {"speak": {"fit": str(folder / "stage.yaml")}},
        "variants": {
            "short": {"speak": {"model.speech_decoder.interleave": "1:2"}},
            "long": {"speak": {"model.speech_decoder.interleave": "4:8"}},
        },
        "measures": {"loss": {"step": "speak", "scalar": "val/unit_loss", "better": "down", "kind": "quality"}},
    }


def recipe(folder: Path) -> dict[str, Any]:
    """A recipe that trains `stage` and evaluates its model."""
    return {
        "output_dir": "recipe",
        "seed": 1,
        "model": str(folder / "stage.yaml"),
        "steps": {
            "tune": {"fit": str(folder / "stage.yaml"), "trainer.max_steps": 2},
            "ask": {"evaluate answers": str(folder / "answers.yaml"), "model": "{tune}"},
        },
    }


def answers(folder: Path) -> dict[str, Any]:
    """An evaluation of the trained model."""
    return {
        "model": str(folder / "run" / "model"), "questions": str(folder / "corpus" / "validation.jsonl"),
        "grammar": str(folder / "grammar.yaml"), "output_dir": "answers", "num_warmup": 0, "limit": 1,
        "slots": 2, "latency_questions": 1,
        "conditions": [{"name": "loud", "gain_db": 6, "noise": "white", "snr_db": 5}],
    }  # fmt: skip


SETTINGS = {"stage": stage, "construction": construction, "study": study, "recipe": recipe, "answers": answers}


def build(folder: Path) -> None:
    """Write all seeds; `folder` is new."""
    environment.settle(folder.parent / "caches")  # in this process alone
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_corpus(folder / "corpus", num_train=4, num_validation=2)
    rows = [(folder / "corpus" / f"{name}.jsonl").read_text().splitlines() for name in ("train", "validation")]
    for number, split in enumerate(SPLITS):  # two rows of one speaker each
        lines = (rows[0] + rows[1])[2 * number : 2 * number + 2]
        (folder / "corpus" / f"judge_{split}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "corpus" / "table.csv").write_text("audio,text,emotion\nq00.wav,It is about it.,happy\n")
    byte_tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "grammar.yaml").write_text(yaml.safe_dump({**RULES, "topics": RULES["topics"][:5]}), encoding="utf-8")
    for name, settings in SETTINGS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings(folder), sort_keys=False), encoding="utf-8")
    (folder / "sounds").mkdir()
    for suffix in SUFFIXES:
        options = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
        soundfile.write(folder / "sounds" / f"speech.{suffix}", sweep(SOUND_SEC), SAMPLE_RATE, **options)
    _train(folder)
    _shard(folder / "run" / "checkpoints" / "last.ckpt", folder / "sharded.ckpt")
    _begin(folder)
    shutil.copytree(OPENS2S_CHECKPOINT, folder / "opens2s", copy_function=shutil.copyfile)


def _command(*arguments: object) -> None:
    from lightning_s2s.cli import main

    if status := main([str(argument) for argument in arguments]):
        raise RuntimeError(f"{arguments}: ended with {status}")


def _train(folder: Path) -> None:
    _command("fit", "--config", folder / "stage.yaml", "--trainer.default_root_dir", folder / "run")


def _shard(checkpoint: Path, folder: Path) -> None:
    """The checkpoint as `scale/sharded_checkpoint.py` writes it for several processes, here by a single one."""
    import torch
    from torch.distributed import checkpoint as distributed

    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    tensors = {"state_dict": content.pop("state_dict")}
    content.pop("optimizer_states", None)
    folder.mkdir()
    torch.save(content, folder / "meta.pt")
    distributed.save(tensors, checkpoint_id=folder, no_dist=True)


def _begin(folder: Path) -> None:
    """Unfinished work of `units` and `construct`."""
    from lightning_s2s.support.journal import Journal

    manifest, journals = folder / "speech.jsonl", folder / "journals"
    rows = []
    for number in range(3):
        soundfile.write(folder / f"reply{number}.wav", sweep(0.6 + 0.2 * number), SAMPLE_RATE)
        content = [{"text": "Hello.", "audio": f"reply{number}.wav"}]
        rows.append({"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": content}]})
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    journals.mkdir()
    remove = Journal.remove

    def keep(journal: Journal) -> None:
        shutil.copyfile(journal.path, journals / "units.jsonl.partial")
        remove(journal)

    Journal.remove = keep
    try:
        _command("units", *units_options(folder), manifest, folder / "units.jsonl")
    finally:
        Journal.remove = remove
    _command(
        "construct", "--config", folder / "construction.yaml", "--output_dir", folder / "constructed", "--work_dir",
        journals / "construction",
    )  # fmt: skip


def units_options(folder: Path) -> list[str]:
    """The options of `units` with which its journal was begun."""
    return ["--vocoder", "pocket", "--vocoder.encoder_width", "8", "--vocoder.decoder_width", "8", "--device", "cpu"]
