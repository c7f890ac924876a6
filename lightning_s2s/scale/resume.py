"""What a run that goes on from a checkpoint may change, and what it may not, by the options kept in the checkpoint."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_s2s.components.registry import SLOTS
from lightning_s2s.scale.sharded_checkpoint import CONFIGURATION_KEY, check_checkpoint
from lightning_s2s.support.reading import reading

CALLBACK = "RunCheckpoint"
"""Under which name a checkpoint's callbacks hold the options."""
TRAINER = (
    "max_steps", "max_epochs", "precision", "gradient_clip_val", "gradient_clip_algorithm", "limit_train_batches",
    "overfit_batches",
)  # fmt: skip
"""Options of the trainer that a training depends on; `accumulate_grad_batches` goes with the number of processes."""
FREE = (
    "model.scaling.*", "model.num_generated",
    "model.*.attn_implementation", "data.num_workers", "data.cache_audio", "data.on_error",
)  # fmt: skip
"""Patterns of what may change without a word: it changes speed, memory or what is shown."""
TOLD = {
    "model.init_from": "without effect, the weights are the checkpoint's",
    "seed_everything": "without effect on batches, whose seed is the checkpoint's",
    "data.validation": "best.ckpt is chosen anew from here",
    "checkpoint.monitor": "best.ckpt is chosen anew from here",
    "checkpoint.mode": "best.ckpt is chosen anew from here",
    "trainer.max_steps": "the learning rate follows the new schedule from here",
    "trainer.max_epochs": "the learning rate follows the new schedule from here",
    "trainer.precision": "it holds from here",
    "trainer.gradient_clip_val": "it holds from here",
    "trainer.gradient_clip_algorithm": "it holds from here",
    "trainer.limit_train_batches": "it holds from here",
}
"""What may change, and what comes of it."""
LIMITS = ("trainer.max_steps", "trainer.max_epochs")
CHOOSES_BEST = ("data.validation", "checkpoint.monitor", "checkpoint.mode")
MANIFESTS = ("data.train", "data.validation")
LONGEST_VALUE = 80


class Change(NamedTuple):
    """An option that is not as it was."""

    key: str
    then: Any
    now: Any

    def __str__(self) -> str:
        if self.key in MANIFESTS and _paths(self.then) == _paths(self.now):
            return f"{self.key}: {', '.join(_paths(self.now))} has changed since ({_digests(self.then, self.now)})"
        if self.key in MANIFESTS:
            then, now = (", ".join(_paths(value)) or "nothing" for value in (self.then, self.now))
            return f"{self.key}: was {then}, is now {now}, with other rows"
        return f"{self.key}: was {_shown(self.then)}, is now {_shown(self.now)}"


def options_of(config: dict[str, Any]) -> dict[str, Any]:
    """The options that a checkpoint keeps, as plain values.

    Args:
        config: of `fit`, all options with their values.
    """
    data, trainer = dict(config["data"]), config["trainer"]
    for split in ("train", "validation"):
        paths = [data[split]] if isinstance(data[split], str) else data[split] or []
        data[split] = [{"path": path, "sha256": _digest(Path(path))} for path in paths]
    return {
        "model": config["model"],
        "data": data,
        "trainer": {name: trainer.get(name) for name in TRAINER},
        "checkpoint": {name: (config.get("checkpoint") or {}).get(name) for name in ("monitor", "mode")},
        "seed_everything": config.get("seed_everything"),
    }


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None  # the data module says so
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Resumed(NamedTuple):
    """What a run that goes on is told.

    Attributes:
        lines: what has changed, and what comes of it.
        chooses_anew: the best validation so far was of other data or another metric.
    """

    lines: list[str]
    chooses_anew: bool


def check_resume(path: Path, now: dict[str, Any]) -> Resumed:
    """See that a run with the options `now` can go on from a checkpoint.

    Raises:
        ValueError: it can't: the checkpoint is broken, of another stage, of weights alone, or of another training.
    """
    content = _read(path)
    with reading(path, "checkpoint"):
        then = _options_then(content)
        _check_stage(path, content, then, now)
        if "callbacks" not in content or "loops" not in content:
            raise ValueError(
                f"{path}: holds weights alone, as best.ckpt does, not the state of a run; go on from a last.ckpt, or "
                f"start from its weights: model.init_from: {path}"
            )
        if not then:
            unknown = f"{path}: says nothing of the options of its run, so they are not compared"
            return Resumed([unknown, *_limits(content, {}, now)], False)
        found = [change for change in changes(then, now) if not _matches(change.key, FREE)]
        refused = [change for change in found if change.key not in TOLD]
        if refused:
            raise ValueError(
                f"{path}: {'; '.join(map(str, refused[:5]))}{'; ...' if refused[5:] else ''}; a run that goes on keeps "
                "these: give them as they were, or start anew in another trainer.default_root_dir (model.init_from "
                "takes the weights)"
            )
        limits = _limits(content, then, now)
        told = [change for change in found if not (limits and change.key in LIMITS)]
        lines = [*(f"{change}: {TOLD[change.key]}" for change in told), *limits]
        return Resumed(lines, any(change.key in CHOOSES_BEST for change in found))


def check_validate(path: Path, now: dict[str, Any]) -> None:
    """See that a checkpoint's weights are of the stage and the components of a configuration.

    Raises:
        ValueError: they are not, or the checkpoint is broken.
    """
    content = _read(path)
    with reading(path, "checkpoint"):
        then = _options_then(content)
        _check_stage(path, content, then, now)
        parts = [f"model.{name}" for name in SLOTS]
        for change in changes({"model": then.get("model") or content.get(CONFIGURATION_KEY) or {}}, now):
            if not _matches(change.key, FREE) and any((change.key + ".").startswith(f"{part}.") for part in parts):
                raise ValueError(f"{path}: {change}; give the components that it was trained with")


def changes(then: Any, now: Any, key: str = "", options: bool = True) -> Iterator[Change]:
    """What differs, by the names that options have on the command line.

    Args:
        then: all options, or a value.
        now: likewise.
        key: of these.
        options: whether `then` maps names of options; one that isn't in there was unknown to the version that wrote it.
    """
    if not (isinstance(then, dict) and isinstance(now, dict)) or key in MANIFESTS:
        if (_digests(then) != _digests(now)) if key in MANIFESTS else then != now:
            yield Change(key, then, now)
    elif then.get("class_path") != now.get("class_path"):
        yield Change(key, _class(then), _class(now))
    else:
        for name in [*then, *(name for name in now if name not in then)]:
            if options and not (name in then and name in now):
                continue
            below = key if name == "init_args" else f"{key}.{name}".lstrip(".")
            is_options = name == "init_args" or not key
            yield from changes(then.get(name), now.get(name), below, is_options)


def _read(path: Path) -> dict[str, Any]:
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path}: is a link to {os.readlink(path)}, which is not there; the checkpoint is lost")
    return check_checkpoint(path)


def _options_then(content: dict[str, Any]) -> dict[str, Any]:
    state: Any = content
    for name in ("callbacks", CALLBACK, "options"):
        state = state.get(name) if isinstance(state, dict) else None
    return state if isinstance(state, dict) else {}


def _check_stage(path: Path, content: dict[str, Any], then: dict[str, Any], now: dict[str, Any]) -> None:
    stored = then.get("model") or content.get(CONFIGURATION_KEY) or {}
    if isinstance(stored, dict) and "class_path" in stored and _class(stored) != _class(now["model"]):
        raise ValueError(
            f"{path}: is of the stage {_class(stored)}; the configuration's model is {_class(now['model'])}. To start "
            f"from its weights: model.init_from: {path}"
        )


def _limits(content: dict[str, Any], then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Say where the checkpoint has reached the end of the run.

    Raises:
        ValueError: it lies below, by an option that has changed.
    """
    step = int(content["global_step"])
    epochs = int(content["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"])
    for name, unit, reached in (("max_steps", "step", step), ("max_epochs", "epoch", epochs)):
        limit = now["trainer"][name]
        before = then.get("trainer", {}).get(name, limit)
        if limit in (None, -1) or reached < limit:
            continue
        if reached > limit != before:
            raise ValueError(
                f"trainer.{name}: {limit} lies below {unit} {reached}, which the run has reached; was "
                f"{_shown(before)}; give more, or start anew in another trainer.default_root_dir"
            )
        return [f"trainer.{name}: {unit} {reached} of {limit} is reached: nothing is left to train"]
    return []


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def _class(component: dict[str, Any]) -> str | None:
    name = component.get("class_path")
    return None if name is None else str(name).rpartition(".")[2]


def _paths(manifests: Any) -> list[str]:
    return [manifest["path"] for manifest in manifests or []]


def _digests(*lists: Any) -> Any:
    """The digests of a list of manifests; of two, in words, the first that differ."""
    found = [[manifest["sha256"] for manifest in manifests or []] for manifests in lists]
    if len(found) == 1:
        return found[0]
    then, now = next(pair for pair in zip(*found, strict=True) if pair[0] != pair[1])
    return f"sha256 {str(then)[:12]} then, {str(now)[:12]} now"


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        return str(_class(value))
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    text = text.removesuffix("\n").removesuffix("\n...").strip()
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]} ..."
