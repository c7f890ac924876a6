"""Which options may change when a run resumes, judged by the options that its checkpoint has recorded."""

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
"""Key of the callback's state, which has the options, in a checkpoint."""
TRAINER_OPTIONS = (
    "max_steps", "max_epochs", "precision", "gradient_clip_val", "gradient_clip_algorithm", "limit_train_batches",
    "overfit_batches",
)  # fmt: skip
"""Recorded options of the trainer; `accumulate_grad_batches` is compared together with the number of replicas."""
NOT_COMPARED = (
    "model.scaling.*", "model.num_generated",
    "model.*.attn_implementation", "data.num_workers", "data.cache_audio", "data.on_error",
)  # fmt: skip
"""Patterns of options that change only speed, memory or what is displayed."""
NEW_BEST = "the search for best.ckpt starts anew from here"
NEW_SCHEDULE = "the learning rate follows the new schedule from here"
NEW_VALUE = "the new value holds from here"
CONSEQUENCES = {
    "model.init_from": "without effect, the weights are the checkpoint's",
    "seed_everything": "without effect on batches, whose seed is the checkpoint's",
    "data.validation": NEW_BEST,
    "checkpoint.monitor": NEW_BEST,
    "checkpoint.mode": NEW_BEST,
    "trainer.max_steps": NEW_SCHEDULE,
    "trainer.max_epochs": NEW_SCHEDULE,
    "trainer.precision": NEW_VALUE,
    "trainer.gradient_clip_val": NEW_VALUE,
    "trainer.gradient_clip_algorithm": NEW_VALUE,
    "trainer.limit_train_batches": NEW_VALUE,
}
"""Options that may change -> the consequence, which is logged."""
MANIFESTS = ("data.train", "data.validation")
MAX_SHOWN_LENGTH = 80


class Change(NamedTuple):
    """An option with another value than in the checkpoint; its text is for messages."""

    key: str
    then: Any
    now: Any

    def __str__(self) -> str:
        if self.key not in MANIFESTS:
            return f"{self.key}: was {_shown(self.then)}, is now {_shown(self.now)}"
        then, now = (", ".join(manifest["path"] for manifest in value or []) for value in (self.then, self.now))
        if then != now:
            return f"{self.key}: was {then or 'nothing'}, is now {now or 'nothing'}, with other rows"
        pairs = zip(_digests(self.then), _digests(self.now), strict=True)
        before, after = next(pair for pair in pairs if pair[0] != pair[1])
        return f"{self.key}: {now} has changed since (sha256 {str(before)[:12]} then, {str(after)[:12]} now)"


def options_to_record(config: dict[str, Any]) -> dict[str, Any]:
    """The options that a checkpoint records, as plain values.

    Args:
        config: All options of `fit` with their values.
    """
    data, trainer = dict(config["data"]), config["trainer"]
    for split in ("train", "validation"):
        paths = [data[split]] if isinstance(data[split], str) else data[split] or []
        data[split] = [{"path": path, "sha256": _digest(Path(path))} for path in paths]
    return {
        "model": config["model"],
        "data": data,
        "trainer": {name: trainer.get(name) for name in TRAINER_OPTIONS},
        "checkpoint": {name: (config.get("checkpoint") or {}).get(name) for name in ("monitor", "mode")},
        "seed_everything": config.get("seed_everything"),
    }


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None  # the data module reports it
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ResumeNotes(NamedTuple):
    """What the user and `RunCheckpoint` need to know about a run that resumes.

    Attributes:
        lines: Lines for the log: what has changed, and with which consequence.
        resets_best: Whether the best validation so far was on other data or by another metric.
    """

    lines: list[str]
    resets_best: bool


def check_resume(path: Path, now: dict[str, Any]) -> ResumeNotes:
    """Check that a run with the options `now` can resume from a checkpoint.

    Raises:
        ValueError: The checkpoint is broken, of another stage, without a run's state, or of a run with other options.
    """
    content = _read_checkpoint(path)
    with reading(path, "checkpoint"):
        then = _recorded_options(content)
        _check_stage(path, content, then, now)
        if "callbacks" not in content or "loops" not in content:
            raise ValueError(
                f"{path}: holds only weights, as best.ckpt does, not the state of a run; resume from a last.ckpt, or "
                f"start from its weights: model.init_from: {path}"
            )
        if not then:
            unknown = f"{path}: does not record the options of its run, so they are not compared"
            return ResumeNotes([unknown, *_check_length(content, {}, now)], False)
        found = [change for change in changes(then, now) if not _matches(change.key, NOT_COMPARED)]
        refused = [change for change in found if change.key not in CONSEQUENCES]
        if refused:
            raise ValueError(
                f"{path}: {'; '.join(map(str, refused[:5]))}{'; ...' if refused[5:] else ''}; a run that resumes keeps "
                "these: give them as they were, or start anew in another trainer.default_root_dir (model.init_from "
                "takes the weights)"
            )
        consequences = [(change, CONSEQUENCES[change.key]) for change in found]
        finished = _check_length(content, then, now)
        lines = [f"{change}: {effect}" for change, effect in consequences if not (finished and effect == NEW_SCHEDULE)]
        return ResumeNotes(lines + finished, any(effect == NEW_BEST for _, effect in consequences))


def check_validate(path: Path, now: dict[str, Any]) -> None:
    """Check that a checkpoint is of the stage and the components of a configuration.

    Raises:
        ValueError: It is not, or it is broken.
    """
    content = _read_checkpoint(path)
    with reading(path, "checkpoint"):
        then = _recorded_options(content)
        _check_stage(path, content, then, now)
        for change in changes({"model": then.get("model") or content.get(CONFIGURATION_KEY) or {}}, now):
            is_part = any(f"{change.key}.".startswith(f"model.{slot}.") for slot in SLOTS)
            if is_part and not _matches(change.key, NOT_COMPARED):
                raise ValueError(f"{path}: {change}; give the components that it was trained with")


def changes(then: Any, now: Any, key: str = "", options: bool = True) -> Iterator[Change]:
    """The differences, named as options on the command line.

    Args:
        then: All recorded options, or one value.
        now: Present options or value.
        key: Option that has these values; empty for all options.
        options: Whether `then` maps names of options. One that is missing in it was unknown to the version that wrote
            the checkpoint, and is not compared.
    """
    if not (isinstance(then, dict) and isinstance(now, dict)) or key in MANIFESTS:
        if (_digests(then) != _digests(now)) if key in MANIFESTS else then != now:
            yield Change(key, then, now)
    elif then.get("class_path") != now.get("class_path"):
        yield Change(key, _class_name(then), _class_name(now))
    else:
        for name in [*then, *(name for name in now if name not in then)]:
            if options and not (name in then and name in now):
                continue
            below = key if name == "init_args" else f"{key}.{name}".lstrip(".")
            is_options = name == "init_args" or not key
            yield from changes(then.get(name), now.get(name), below, is_options)


def _read_checkpoint(path: Path) -> dict[str, Any]:
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path}: is a link to {os.readlink(path)}, which is missing; the checkpoint is lost")
    return check_checkpoint(path)


def _recorded_options(content: dict[str, Any]) -> dict[str, Any]:
    state: Any = content
    for name in ("callbacks", CALLBACK, "options"):
        state = state.get(name) if isinstance(state, dict) else None
    return state if isinstance(state, dict) else {}


def _check_stage(path: Path, content: dict[str, Any], then: dict[str, Any], now: dict[str, Any]) -> None:
    stored = then.get("model") or content.get(CONFIGURATION_KEY) or {}
    if isinstance(stored, dict) and "class_path" in stored and _class_name(stored) != _class_name(now["model"]):
        raise ValueError(
            f"{path}: is of the stage {_class_name(stored)}; the configuration's model is {_class_name(now['model'])}. "
            f"To start from its weights: model.init_from: {path}"
        )


def _check_length(content: dict[str, Any], then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line for the log where the checkpoint is already at the end of the run.

    Raises:
        ValueError: It is beyond the end, since `max_steps` or `max_epochs` was reduced.
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
                f"trainer.{name}: {limit} is below {unit} {reached}, which the run has reached; was {_shown(before)}; "
                "give more, or start anew in another trainer.default_root_dir"
            )
        return [f"trainer.{name}: {unit} {reached} of {limit} is reached: nothing is left to train"]
    return []


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def _class_name(component: dict[str, Any]) -> str | None:
    name = component.get("class_path")
    return None if name is None else str(name).rpartition(".")[2]


def _digests(manifests: Any) -> list[str | None]:
    return [manifest["sha256"] for manifest in manifests or []]


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        return str(_class_name(value))
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    text = text.removesuffix("\n").removesuffix("\n...").strip()
    return text if len(text) <= MAX_SHOWN_LENGTH else f"{text[:MAX_SHOWN_LENGTH]} ..."
