"""A model folder whose files were changed at random: it loads, or one line names the file; nothing else is raised."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_s2s.checkpoints.model_folder import load_model, save_model
from parts.byte_tokenizer import byte_tokenizer
from parts.small_models import build

DELETED = object()
VALUES = (
    DELETED, None, True, -1, 0, 10**9, 10**30, 1e308, float("inf"), float("nan"), "x", "", "é" * 1000, [], {}, [[]],
    [1, 2], {"a": 1}, "/etc/passwd",
)  # fmt: skip
NAMES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


@pytest.fixture(scope="module")
def good_folder(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("good")
    byte_tokenizer().save_pretrained(home / "tokenizer")
    save_model(build(home / "tokenizer"), home / "model")
    return home / "model"


def places(tree: Any, above: tuple = ()) -> Iterator[tuple]:
    """Where values stand, of long lists and vocabularies the first ones."""
    if above:
        yield above
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items)[:30]:
        yield from places(value, (*above, key))


def put(tree: Any, place: tuple, value: Any) -> Any:
    tree = copy.deepcopy(tree)
    home = tree
    for key in place[:-1]:
        home = home[key]
    if value is DELETED:
        del home[place[-1]]
    else:
        home[place[-1]] = value
    return tree


def spoil(path: Path, chance: random.Random) -> None:
    if path.suffix == ".json":
        tree = json.loads(path.read_text())
        path.write_text(json.dumps(put(tree, chance.choice(list(places(tree))), chance.choice(VALUES))))
        return
    content = bytearray(path.read_bytes())
    way = chance.choice(["cut", "changed", "random", "length"])
    if way == "cut":
        content = content[: chance.randrange(len(content))]
    elif way == "changed":
        for _ in range(5):
            content[chance.randrange(3000)] = chance.randrange(256)
    elif way == "random":
        content = bytearray(chance.randbytes(1000))
    else:
        content[:8] = chance.choice([0, 2**62, len(content), 10**8]).to_bytes(8, "little")
    path.write_bytes(content)


def load_spoilt(good_folder: Path, folder: Path, number: int) -> str:
    """What loading says against the folder, or nothing."""
    chance = random.Random(number)
    shutil.copytree(good_folder, folder)
    spoil(folder / NAMES[number % len(NAMES)], chance)
    try:
        load_model(folder)
    except ValueError as error:
        return str(error)
    finally:
        shutil.rmtree(folder)
    return ""


@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in range(40, 400, 40))])
def test_every_refusal_is_one_line_that_names_the_folder(good_folder, tmp_path, first):
    messages = [load_spoilt(good_folder, tmp_path / "model", number) for number in range(first, first + 40)]
    refusals = [message for message in messages if message]
    assert len(refusals) > 20
    assert [message for message in refusals if str(tmp_path / "model") not in message or "\n" in message] == []


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("llm", "init_args", "config", "num_hidden_layers"), 10**9, "num_hidden_layers: got 1e+09; at most 1,000"),
        (("llm", "init_args", "config", "hidden_size"), 10**6, "describes something too large to be built: "),
        (("llm", "init_args", "config", "vocab_size"), 10**9, "describes something too large to be built: "),
        (("speech_decoder", "init_args", "config", "intermediate_size"), 10**8, "too large to be built: "),
        (("encoder", "init_args", "width"), 10**6, "describes something too large to be built: "),
        (("encoder", "init_args", "num_layers"), 10**9, "num_layers must be between 1 and 1,000; got 1000000000"),
        (("vocoder", "init_args", "levels"), [10**4, 10**4], "describes something too large to be built: "),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused_before_memory_is_taken(
    good_folder, tmp_path, place, value, message
):
    folder = tmp_path / "model"
    shutil.copytree(good_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(put(config, place, value)))
    with pytest.raises(ValueError) as refused:
        load_model(folder)
    assert str(folder / "config.json") in str(refused.value) and message in str(refused.value)
