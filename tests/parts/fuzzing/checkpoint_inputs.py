"""Checkpoints of one process and of several, spoilt."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict
from random import Random
from typing import Any

from parts.fuzzing.mutations import (
    CANARY,
    TOUCH,
    WRITE,
    Case,
    Expect,
    Seeds,
    change_bytes,
    change_tree,
    code,
    hide_code,
    nonsense,
)

LAST = "run/checkpoints/last.ckpt"


class Code:
    """Runs when it is unpickled."""

    def __init__(self, call: Any, *arguments: Any):
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


def _code(random: Random) -> Code:
    ways = ((os.system, TOUCH), (exec, WRITE), (eval, WRITE), (subprocess.call, ["touch", CANARY]), (open, CANARY, "w"))
    return Code(*random.choice(ways))


def pickled(random: Random) -> bytes:
    """A pickle that runs code, plain or as torch writes it, old and new."""
    import torch

    content: Any = _code(random)
    content = random.choice([content, {"state_dict": content}, {"state_dict": OrderedDict(x=content)}, [content]])
    if random.random() < 0.3:
        return pickle.dumps(content, protocol=random.choice([0, 2, 4, 5]))
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=random.random() < 0.7)
    return file.getvalue()


def _checkpoint(
    seeds: Seeds, random: Random, files: dict[str, bytes], what: str, names: tuple[str, ...] = (),
    expect: Expect = "either", copies: dict[str, str] | None = None,
) -> Case:  # fmt: skip
    """A command that reads `run/checkpoints/last.ckpt`."""
    path, stage = "run/checkpoints/last.ckpt", seeds.path("stage.yaml")
    call = random.choice([
        ("cli", "respond", "run", seeds.path("sounds/speech.wav"), "--greedy", "--no-audio"),
        ("cli", "respond", path, seeds.path("sounds/speech.wav"), "--greedy", "--no-audio"),
        ("cli", "consolidate", "run", "out"), ("cli", "convert", "--to", "opens2s", path, "out"),
        ("cli", "fit", "--config", stage, "--resume", "--trainer.max_steps", "2"),
        ("cli", "fit", "--config", stage, "--ckpt_path", path, "--trainer.max_steps", "2"),
        ("cli", "validate", "--config", stage, "--ckpt_path", path),
        ("cli", "fit", "--config", stage, "--model.init_from", random.choice([path, "run"])),
    ])  # fmt: skip
    if "--to" in call:
        names = (*names, "encoder is mel")
    return Case(call, f"checkpoint: {what}", files, copies or {}, names=(*names, "last.ckpt"), expect=expect)


def _written(content: Any) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _loaded(seeds: Seeds) -> dict[str, Any]:
    import torch

    return torch.load(io.BytesIO(seeds.bytes("run/checkpoints/last.ckpt")), map_location="cpu", weights_only=True)


def code_in_checkpoint(seeds: Seeds, random: Random) -> Case:
    content = pickled(random)
    if random.random() < 0.5:
        whole = _loaded(seeds)
        key = random.choice([*whole, "something"])
        whole[key] = random.choice([_code(random), [_code(random)], {"x": _code(random)}])
        content = _written(whole)
    return _checkpoint(seeds, random, {LAST: content}, "pickled code", expect="refused")


def code_in_configuration(seeds: Seeds, random: Random) -> Case:
    from lightning_s2s.scale.sharded_checkpoint import CONFIGURATION_KEY

    whole = _loaded(seeds)
    change = random.choice([hide_code, hide_code, change_tree])(whole[CONFIGURATION_KEY], random)
    whole[CONFIGURATION_KEY] = change.tree
    if random.random() < 0.2:
        whole[CONFIGURATION_KEY] = code(random)
    return _checkpoint(seeds, random, {LAST: _written(whole)}, f"its configuration: {change.what}", change.names)


def changed_checkpoint(seeds: Seeds, random: Random) -> Case:
    import torch

    whole = _loaded(seeds)
    key = random.choice(sorted(whole))
    if key == "state_dict" or random.random() < 0.3:
        name = random.choice(sorted(whole["state_dict"]))
        tensor = whole["state_dict"][name]
        value = random.choice([None, tensor.double(), tensor.bool(), tensor[..., :1], tensor * float("nan"), "x",
                               torch.empty(0), tensor.to(torch.complex64), tensor[None], {}])  # fmt: skip
        whole["state_dict"][name] = value
        what = f"{name} is {type(value).__name__} {getattr(value, 'dtype', '')} {list(getattr(value, 'shape', []))}"
        return _checkpoint(seeds, random, {LAST: _written(whole)}, what, (name,))
    if random.random() < 0.4:
        del whole[key]
        return _checkpoint(seeds, random, {LAST: _written(whole)}, f"without {key}", (key,))
    value = nonsense(random)
    whole[key] = value
    return _checkpoint(seeds, random, {LAST: _written(whole)}, f"{key} is {repr(value)[:60]}", (key,))


def spoilt_checkpoint(seeds: Seeds, random: Random) -> Case:
    content, what = change_bytes(seeds.bytes(LAST), random)
    if random.random() < 0.2:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": {}}))
            archive.writestr("archive/data/0", b"\0" * 10**8)
        content, what = file.getvalue(), "a zip that grows"
    if random.random() < 0.1:
        content, what = seeds.bytes("sounds/speech.wav"), "a wav"
    return _checkpoint(seeds, random, {LAST: content}, what)


def sharded_checkpoint(seeds: Seeds, random: Random) -> Case:
    names = seeds.files("sharded.ckpt")
    name = random.choice([*names, ".metadata", "meta.pt"])
    if random.random() < 0.5:
        content, what = pickled(random), "pickled code"
    else:
        content, what = change_bytes(seeds.bytes(f"sharded.ckpt/{name}"), random)
    files = {f"{LAST}/{name}": content}
    return _checkpoint(seeds, random, files, f"of several processes, {name}: {what}", copies={LAST: "sharded.ckpt"})


CHECKPOINTS = (
    code_in_checkpoint, code_in_configuration, code_in_configuration, changed_checkpoint, spoilt_checkpoint,
    sharded_checkpoint,
)  # fmt: skip
