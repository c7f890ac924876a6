"""A trained model from whatever a run left: a model folder, a run's folder or a Lightning checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_s2s.model import SpeechToSpeechModel


def find_model(source: str | Path) -> Path:
    """The model folder or checkpoint file that `source` means.

    Args:
        source: a folder with `config.json`; a run's folder (`default_root_dir`), which has `model/` when the run is
            over and `checkpoints/last.ckpt` while it lasts; or a `.ckpt` file.

    Raises:
        ValueError: nothing of this is there.
    """
    source = Path(source)
    if source.is_file() and source.suffix == ".ckpt":
        return source
    if not source.is_dir():
        raise ValueError(f"{source}: no such model; expected a model folder, a run's folder or a .ckpt file")
    places = ("config.json", "model/config.json", "last.ckpt", "checkpoints/last.ckpt")
    for place in places:
        if (source / place).is_file():
            return (source / place).parent if place.endswith("config.json") else source / place
    raise ValueError(f"{source}: holds no model; expected one of {', '.join(places)}")


def open_model(source: str | Path) -> SpeechToSpeechModel:
    """The model in inference mode, see `find_model` for what `source` may be.

    Raises:
        ValueError: there is no model, or it can't be read.
    """
    path = find_model(source)
    if path.suffix != ".ckpt":
        from lightning_s2s.model import SpeechToSpeechModel

        return SpeechToSpeechModel.from_pretrained(path)
    return _open_checkpoint(path)


def _open_checkpoint(path: Path) -> SpeechToSpeechModel:
    """The model of a stage's checkpoint: built again from the configuration that Lightning stored in it."""
    import pickle

    import torch

    from lightning_s2s import stages
    from lightning_s2s.registry import REGISTRY

    REGISTRY.load()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        settings = dict(content["hyper_parameters"])
        stage_class = getattr(stages, settings["_class_path"].rpartition(".")[2])
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: no checkpoint of a stage ({str(error).splitlines()[0]})") from None
    # Its own weights follow, so those that it started from need not exist any more.
    changes = {"init_from": None} if "init_from" in settings else {}
    stage = stage_class.load_from_checkpoint(path, map_location="cpu", weights_only=True, **changes)
    if not hasattr(stage, "model"):
        raise ValueError(f"{path}: {stage_class.__name__} trains no model that answers")
    return stage.model.eval()
