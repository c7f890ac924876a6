"""Configurations and command lines, spoilt."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

import yaml

from parts.fuzzing.mutations import (
    CODE,
    TOUCH,
    WORK,
    Case,
    Change,
    Expect,
    Seeds,
    change_bytes,
    change_tree,
    code,
    deep_json,
    foreign_key,
    hide_code,
    keys,
    misspell,
    misspell_key,
    nonsense,
    remove_key,
    replace_value,
)
from parts.fuzzing.seeds import SPLITS

# --- YAML ---------------------------------------------------------------------------------------------------------

Command = Callable[[str], tuple[str, ...]]
"""The command line that takes its configuration from a file."""
MANIFEST = {"corpus": "table", "out": "out.jsonl", "min_sec": 0.1, "rename": {"x": "y"}}
UNITS = {
    "vocoder": {"class_path": "pocket", "init_args": {"encoder_width": 8, "decoder_width": 8}}, "device": "cpu",
    "roles": ["user", "assistant"], "max_batch_size": 2,
}  # fmt: skip
VOCODER = {"class_path": "pocket", "init_args": {"encoder_width": 8, "decoder_width": 8}}


CONFIGURED = ("fit", "fit", "validate", "plan", "plan", "construct", "train", "ablate", "answers", "grammar",
              "emotion-classifier", "manifest", "units", "vocoder")  # fmt: skip
"""What is told by YAML; the last is the file of `respond --vocoder`."""


def _configuration(seeds: Seeds, random: Random) -> tuple[Any, Command]:
    return configuration(seeds, random.choice(CONFIGURED))


def configuration(seeds: Seeds, kind: str) -> tuple[Any, Command]:
    """A good configuration, and the command that takes it from a file."""
    if kind in ("fit", "validate", "plan"):
        return seeds.yaml("stage.yaml"), lambda file: ("cli", kind, "--config", file)
    if kind == "construct":
        return seeds.yaml("construction.yaml"), lambda file: ("cli", "construct", "--config", file)
    if kind == "train":
        return seeds.yaml("recipe.yaml"), lambda file: ("cli", "train", file, "--dry-run")
    if kind == "ablate":
        return seeds.yaml("study.yaml"), lambda file: ("cli", "ablate", file, "--dry-run")
    if kind == "answers":
        return seeds.yaml("answers.yaml"), lambda file: ("cli", "evaluate", "answers", "--config", file)
    if kind == "grammar":
        base = seeds.path("answers.yaml")
        return seeds.yaml("grammar.yaml"), lambda file: (
            "cli", "evaluate", "answers", "--config", base, "--grammar", file,
        )  # fmt: skip
    if kind == "emotion-classifier":
        tree = {**{split: seeds.path(f"corpus/judge_{split}.jsonl") for split in SPLITS}, "output_dir": "judge",
                "max_epochs": 1, "noisy_copies": 1, "noise_snr_db": [15, 40], "gain_db": 12}  # fmt: skip
        return tree, lambda file: ("cli", "emotion-classifier", "--config", file)
    if kind == "manifest":
        tree = {**MANIFEST, "folder": seeds.path("corpus")}
        return tree, lambda file: ("cli", "manifest", "--config", file)
    if kind == "units":
        return copy.deepcopy(UNITS), lambda file: (
            "cli", "units", "--config", file, seeds.path("speech.jsonl"), "out.jsonl",
        )  # fmt: skip
    return copy.deepcopy(VOCODER), lambda file: (
        "cli", "respond", seeds.path("run/model"), seeds.path("sounds/speech.wav"), "--greedy", "--vocoder", file,
    )  # fmt: skip


def _yaml(tree: Any, change: Change, command: Command, text: bytes | None = None) -> Case:
    if text is None:
        text = yaml.safe_dump(change.tree, sort_keys=False, allow_unicode=False).encode()
    call = command("given.yaml")
    names = (*change.names, *keys(tree))
    return Case(
        call, f"YAML of {' '.join(call[1:3])}: {change.what}", {"given.yaml": text}, names=names, expect=change.expect,
        online=True,
    )  # fmt: skip


def changed_yaml(seeds: Seeds, random: Random) -> Case:
    tree, command = _configuration(seeds, random)
    return _yaml(tree, change_tree(tree, random), command)


def hidden_code(seeds: Seeds, random: Random) -> Case:
    tree, command = _configuration(seeds, random)
    return _yaml(tree, hide_code(tree, random), command)


def wrong_value(seeds: Seeds, random: Random) -> Case:
    tree, command = _configuration(seeds, random)
    return _yaml(tree, replace_value(tree, random), command)


def wrong_key(seeds: Seeds, random: Random) -> Case:
    """A key that no class, function or mapping of ours has must never pass."""
    tree, command = _configuration(seeds, random)
    change = random.choice([misspell_key, foreign_key, remove_key])(tree, random)
    return _yaml(tree, change, command)


def odd_yaml(seeds: Seeds, random: Random) -> Case:
    """What is wrong before anything is parsed."""
    tree, command = _configuration(seeds, random)
    good = yaml.safe_dump(tree, sort_keys=False)
    key = random.choice(list(tree))
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
    )
    merges = "b0: &b0 {x: 1}\n" + "".join(
        f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 9)}]}}\n" for i in range(1, 9)
    )
    texts: dict[str, bytes] = {
        "a bomb of anchors": (bomb + f"{key}: *a9\n").encode(),
        "a bomb beside the rest": (bomb + good).encode(),
        "a bomb of merges": (merges + f"{key}: *b8\n").encode(),
        "a cycle": f"{key}: &x [*x]\n".encode(),
        "a cycle in a mapping": f"{key}: &x {{x: *x}}\n".encode(),
        "the root in itself": f"&x\n{key}: *x\n".encode(),
        "deep": f"{key}: ".encode() + deep_json(random),
        "deep by lines": "".join(" " * i + "x:\n" for i in range(900)).encode(),
        "a tag that runs": f'{key}: !!python/object/apply:os.system ["{TOUCH}"]\n'.encode(),
        "a tag that makes": f"{key}: !!python/object/new:subprocess.Popen [[touch, canary]]\n".encode(),
        "a tag that imports": f"{key}: !!python/module:stranger x\n".encode(),
        "an unknown tag": f"{key}: !something x\n".encode(),
        "tabs": good.replace("  ", "\t").encode(),
        "two documents": (good + "---\n" + good).encode(),
        "UTF-16": good.encode("utf-16"),
        "a BOM": b"\xef\xbb\xbf" + good.encode(),
        "Latin-1": good.encode() + "# ä\n".encode("latin-1"),
        "NUL": good.encode() + b"\x00",
        "a scalar": b"x",
        "a list": b"- x\n",
        "nothing": b"",
        "a comment alone": b"# x\n",
        "a large integer": f"{key}: {'9' * 10_000}\n".encode(),
        "a sexagesimal": f"{key}: {':59' * 3000}\n".encode(),
        "a date": f"{key}: 2001-02-30\n".encode(),
        "binary": f"{key}: !!binary R0lGODlh\n".encode(),
        "a key twice": (good + f"{key}: x\n").encode(),
        "a list for a key": b"? [a, b]\n: x\n",
        "null for a key": f"~: x\n1: y\n{key}: x\n".encode(),
        "interpolation": f"{key}: ${{{key}}}\n".encode(),
        "the environment": f"{key}: ${{oc.env:HOME}}\n".encode(),
        "a resolver that makes": f"{key}: ${{oc.create:{{x: 1}}}}\n".encode(),
        "a wav": seeds.bytes("sounds/speech.wav"),
        "a line of 5 MB": f"{key}: {'x' * 5 * 2**20}\n".encode(),
        "100,000 keys": "".join(f"k{i}: {i}\n" for i in range(100_000)).encode(),
    }
    way = random.choice(sorted(texts))
    return _yaml(tree, Change(None, way, (str(key),), "accepted" if way == "a BOM" else "either"), command, texts[way])


def spoilt_yaml(seeds: Seeds, random: Random) -> Case:
    tree, command = _configuration(seeds, random)
    text, what = change_bytes(yaml.safe_dump(tree, sort_keys=False).encode(), random)
    return _yaml(tree, Change(None, what), command, text)


YAML = (changed_yaml, hidden_code, hidden_code, wrong_value, wrong_key, wrong_key, odd_yaml, odd_yaml, spoilt_yaml)

# --- command lines ------------------------------------------------------------------------------------------------


def command_lines(seeds: Seeds) -> list[list[str]]:
    """Good command lines."""
    path = seeds.path
    stage, model, sound = path("stage.yaml"), path("run/model"), path("sounds/speech.wav")
    checkpoint = path("run/checkpoints/last.ckpt")
    small = ["--vocoder", "pocket", "--vocoder.encoder_width", "8", "--vocoder.decoder_width", "8"]
    judged = [word for split in SPLITS for word in (f"--{split}", path(f"corpus/judge_{split}.jsonl"))]
    return [
        ["fit", "--config", stage, "--trainer.max_steps", "1", "--model.optimizer.lr", "0.001", "--data.seed", "1"],
        ["fit", "--config", stage, "--ckpt_path", checkpoint, "--trainer.max_steps", "2"],
        ["fit", "--config", stage, "--model.init_from", model, "--checkpoint.every_sec", "100", "--resume"],
        ["fit", "--config", stage, "--model.encoder.width", "16", "--model.speech_decoder.interleave", "1:2"],
        ["validate", "--config", stage, "--ckpt_path", checkpoint, "--data.max_batch_size", "2"],
        ["validate", "--config", stage, "--data.on_error", "skip", "--trainer.precision", "32-true"],
        ["plan", "--config", stage, "--gpus", "2", "--strategy", "fsdp2", "--memory", "80", "--json", "plan.json"],
        ["plan", "--config", stage, "--model.llm.config.hidden_size", "16", "--trainer.precision", "bf16-mixed"],
        ["respond", model, sound, "--greedy", "--out", "reply.wav", "--json", "reply.json", "--seed", "1"],
        ["respond", checkpoint, sound, "--no-audio", "--greedy", *small],
        ["evaluate", "answers", "--config", path("answers.yaml"), "--limit", "1", "--title", "x"],
        ["evaluate", "speech", "--answers", "answers", "--limit", "1", "--asr", model],
        ["evaluate", "speech", "--vocoder", model, "--manifest", path("corpus/train.jsonl")],
        ["ablate", path("study.yaml"), "--dry-run"],
        ["train", path("recipe.yaml"), "--dry-run", "--to", "tune", "--output_dir", "other",
         "--model.optimizer.lr", "0.001"],
        ["construct", "--config", path("construction.yaml"), "--seed", "2", "--jitter", "0.1", "--user_speed", "1.0"],
        ["emotion-classifier", *judged, "--output_dir", "o", "--max_epochs", "1", "--batch_size", "4",
         "--learning_rate", "0.01"],
        ["convert", "--from", "opens2s", path("opens2s"), "out"],
        ["convert", "--to", "opens2s", path("opens2s"), "out", "--lora", "merge", "--like", path("opens2s")],
        ["consolidate", path("run"), "out", "--best"],
        ["consolidate", path("sharded.ckpt"), "out"],
        ["manifest", "--corpus", "table", "--folder", path("corpus"), "--out", "out.jsonl", "--min_sec", "0.5"],
        ["manifest", "--corpus", "table", "--folder", path("corpus"), "--out", "out.jsonl", "--tasks", "[transcribe]"],
        ["units", *small, "--device", "cpu", "--roles", "[user]", path("speech.jsonl"), "out.jsonl"],
        ["units", *small, "--on-error", "skip", "--batch_duration_sec", "9", path("speech.jsonl"), "out.jsonl"],
        ["components", "--json"],
        ["components", "--markdown", "-"],
    ]  # fmt: skip


ODD_WORDS = (
    "", " ", "-", "--", "---", "-x", "--x", "=", "--=x", "--config", "--help", "-h", "--version", "--print_config",
    "--print_config=skip_default", "--print_config=x", "--debug", "--config=", "--model.llm.help", "--trainer.help",
    "@file", "~", "é", "\u202e", "\udce4", "a b", "a\nb", "'", '"', "\\", "%s", "%(prog)s", "{}", "{x}", "${x}", "*",
    "[", "[]", "{}", "null", "true", "-1", "0", "1e999", "nan", "inf", "-inf", "0x10", "1_000", str(2**64), "9" * 5000,
    "x" * 100_000, "/", ".", "..", "/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "/root/x", "no/such/x",
    "/etc/passwd", "http://127.0.0.1:9/x", "s3://x/y", "hf://x", "file:///etc/passwd", "x.ckpt", "cuda", "cuda:99",
    "meta", "mps", "xla", "ddp_spawn", "bf16-true", "64-true", "[1", "{a: 1", "{a: {b: {c: 1}}}", "&x [*x]", "a: b: c",
    "!!python/object/apply:os.system [touch canary]", "os.system", "stranger.Anything", "subprocess.Popen",
)  # fmt: skip
PLACES = ("model", "out", "run", "study", "recipe", "question", "manifest_in", "manifest_out", "command")
"""Arguments without an option, as the commands call them."""
PROCESSES = {"--trainer.devices", "--trainer.num_nodes", "--data.num_workers", "--processes"}


def _command_line(words: list[str], what: str, names: tuple[str, ...], expect: Expect = "either") -> Case:
    parts = [(word.lstrip("-"), word.split("=")[0], *word.split()[:1]) for word in (*names, *words)]
    parts += [(word.rpartition(".")[2],) for word in words if word.startswith("--")]  # of `--model.encoder.width`
    names = (*names, *(part for pair in parts for part in pair if len(part) > 1), *PLACES)
    what = f"{' '.join(words[:2])}: {what}"[:200]
    return Case(("cli", *words), what, names=names, expect=expect, online=True)


def _values(words: list[str]) -> list[int]:
    """Places of what follows the command; a study stays a dry run, else it would train."""
    return [place for place in range(1, len(words)) if words[place] != "--dry-run"]


def other_word(seeds: Seeds, random: Random) -> Case:
    words = list(random.choice(command_lines(seeds)))
    place, word = random.choice(_values(words)), random.choice(ODD_WORDS)
    was, words[place] = words[place], word
    return _command_line(words, f"{word[:40]!r} for {was}", (word, was, words[place - 1]))


def one_word_less(seeds: Seeds, random: Random) -> Case:
    words = list(random.choice(command_lines(seeds)))
    place = random.choice(_values(words))
    was = words.pop(place)
    return _command_line(words, f"without {was}", (was, words[place - 1], *words[place : place + 1]))


def one_word_more(seeds: Seeds, random: Random) -> Case:
    words = list(random.choice(command_lines(seeds)))
    place, word = random.randrange(len(words) + 1), random.choice(ODD_WORDS)
    words.insert(place, word)
    return _command_line(words, f"{word[:40]!r} at {place}", (word, *words[max(place - 1, 0) : place + 2]))


def misspelt_option(seeds: Seeds, random: Random) -> Case:
    words = list(random.choice([line for line in command_lines(seeds) if any(word.startswith("--") for word in line)]))
    place = random.choice([i for i, word in enumerate(words) if word.startswith("--")])
    wrong = "--" + misspell(words[place][2:], random)
    was, words[place] = words[place], wrong
    return _command_line(words, f"{wrong} for {was}", (wrong, wrong.rpartition(".")[2]), "refused")


def foreign_option(seeds: Seeds, random: Random) -> Case:
    """An option of another command, or code behind one that takes a mapping."""
    lines = command_lines(seeds)
    words, other = list(random.choice(lines)), random.choice(lines)
    options = [i for i, word in enumerate(other) if word.startswith("--")]
    place = random.choice(options) if options else 0
    words += other[place : place + 2]
    return _command_line(words, f"with {' '.join(other[place : place + 2])}", tuple(other[place : place + 2]))


def code_in_option(seeds: Seeds, random: Random) -> Case:
    words = list(random.choice(command_lines(seeds)[:8]))
    key = random.choice(["model.llm.config", "model.llm.config.x", "model.speech_decoder.config", "trainer.callbacks",
                         "trainer.logger", "trainer.strategy", "trainer.plugins", "trainer.profiler", "model", "data",
                         "model.llm", "model.encoder", "model.lora", "model.lr_scale", "checkpoint",
                         "config"])  # fmt: skip
    class_path = random.choice(CODE)[0]
    value = random.choice([class_path, *map(json.dumps, (code(random), [code(random)], {"x": code(random)}))])
    words += [f"--{key}", value]
    return _command_line(words, f"--{key} {value[:80]}", (key, *key.split("."), class_path))


def odd_value(seeds: Seeds, random: Random) -> Case:
    """A nonsensical value of a known option."""
    lines = [line for line in command_lines(seeds) if any(word.startswith("--") for word in line[:-1])]
    words = list(random.choice(lines))
    place = random.choice([i for i, word in enumerate(words[:-1]) if word.startswith("--")])
    option = words[place]
    value = nonsense(random, "devices" if option in PROCESSES or option.rpartition(".")[2].lstrip("-") in WORK else "")
    word = value if isinstance(value, str) else json.dumps(value)
    words[place + 1] = word
    return _command_line(words, f"{option} {word[:60]!r}", (option, word))


COMMAND_LINES = (
    other_word, other_word, one_word_less, one_word_more, misspelt_option, foreign_option, code_in_option, odd_value,
    odd_value,
)  # fmt: skip


def good(seeds: Seeds) -> list[Case]:
    """Nothing is wrong with these, or what was tried of them would tell nothing."""
    cases = []
    for kind in dict.fromkeys(CONFIGURED):
        tree, command = configuration(seeds, kind)
        cases.append(_yaml(tree, Change(tree, "good", expect="accepted"), command))
    lines = [words for words in command_lines(seeds) if words[:2] != ["evaluate", "speech"]]  # it needs an ASR model
    return cases + [_command_line(words, "good", (), "accepted") for words in lines]
