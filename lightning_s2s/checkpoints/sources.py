"""Which model or checkpoint a path means: a model folder, a run's folder or a Lightning checkpoint. Said only here."""

from __future__ import annotations

from pathlib import Path

from lightning_s2s.checkpoints.lightning_checkpoint import load_checkpoint
from lightning_s2s.checkpoints.model_folder import load_model
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.scale.sharded_checkpoint import is_sharded_checkpoint


def find_model(source: str | Path) -> Path:
    """The model folder or checkpoint file that `source` means.

    Args:
        source: A folder with `config.json` (this project's or OpenS2S's); a run's folder (`default_root_dir`), which
            has `model/` when the run is finished and `checkpoints/last.ckpt` before; or a `.ckpt` file or folder.

    Raises:
        ValueError: None of these is there.
    """
    source = Path(source)
    if source.is_file() and source.suffix == ".ckpt":
        return source
    if not source.is_dir():
        raise ValueError(f"{source}: no such model; expected a model folder, a run's folder or a .ckpt file")
    if is_sharded_checkpoint(source):
        return source
    places = ("config.json", "model/config.json", "last.ckpt", "checkpoints/last.ckpt")
    for place in places:
        if (source / place).is_file() or is_sharded_checkpoint(source / place):
            return (source / place).parent if place.endswith("config.json") else source / place
    raise ValueError(f"{source}: holds no model; expected one of {', '.join(places)}")


def open_model(source: str | Path, trust_sources: bool = False) -> SpeechToSpeechModel:
    """The model in inference mode.

    Args:
        source: See `find_model`.
        trust_sources: See `lightning_s2s.checkpoints.stored.build_parts`.

    Raises:
        ValueError: There is no model, or it can't be read.
    """
    path = find_model(source)
    if path.suffix != ".ckpt":
        return load_model(path, trust_sources)
    return load_checkpoint(path, trust_sources)


def find_checkpoint(run: Path, name: str) -> Path:
    """The checkpoint `name` of a run, or `run` itself if it is a checkpoint.

    Raises:
        ValueError: There is none.
    """
    places = [run / "checkpoints" / name, run / name]
    for place in [run, *places] if run.suffix == ".ckpt" else places:
        if place.is_file() or is_sharded_checkpoint(place):
            return place
    raise ValueError(f"{run}: no checkpoint; expected the folder of a run with checkpoints/{name}, or a .ckpt")
