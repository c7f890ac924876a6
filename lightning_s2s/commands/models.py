"""A trained model from whatever a run left: a model folder, a run's folder or a Lightning checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning_s2s.commands.messages import one_line

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
    """The model of a stage's checkpoint: built again from the configuration that `fit` stored in it."""
    import pickle

    import torch
    from jsonargparse import ArgumentParser
    from lightning.pytorch import LightningModule

    import lightning_s2s.stages  # noqa: F401 (so that the parser knows the stages)
    from lightning_s2s.commands.run_checkpoint import STAGE_KEY
    from lightning_s2s.registry import REGISTRY

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        settings, weights = content[STAGE_KEY], content["state_dict"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"{path}: no checkpoint of `lightning-s2s fit` ({one_line(error)})") from None
    if "init_from" in settings["init_args"]:  # its own weights follow, so those it started from need not exist any more
        settings["init_args"]["init_from"] = None
    REGISTRY.load()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "stage", fail_untyped=False)
    stage = parser.instantiate(parser.parse_object({"stage": settings})).stage
    if not hasattr(stage, "model"):
        raise ValueError(f"{path}: {type(stage).__name__} trains no model that answers")
    stage.load_state_dict(weights)
    return stage.model.eval()
