"""`lightning-s2s convert`: a published OpenS2S folder from or to a model folder of this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning_s2s.commands.messages import CommandError
from lightning_s2s.components.registry import SLOTS
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.support.files import make_folder
from lightning_s2s.support.reading import read_json

COMPONENTS = "components.yaml"


def convert(
    model: Path,
    out: Path,
    *,
    from_: Literal["opens2s"] | None = None,
    to: Literal["opens2s"] | None = None,
    lora: Literal["merge", "keep"] = "merge",
    like: Path | None = None,
    trust_sources: bool = False,
) -> None:
    """Convert a published OpenS2S folder from or to a model folder of this project.

    Args:
        model: With --from a published folder; with --to a model folder, the folder of a run, or a .ckpt file.
        out: Folder to write; must be new or empty.
        from_: Format of `model`.
        to: Format of `out`.
        lora: With --to, add LoRA's matrices to the weights, or keep them apart.
        like: With --to, published folder whose tokenizers and generation configs are taken.
        trust_sources: Also load what the model names outside of itself (hub ids, URLs, files), and run code where it
            says so.

    Raises:
        CommandError: Neither --from nor --to is given, or both.
        ValueError: The model can't be read or converted, or `out` is taken.
    """
    if (from_ is None) == (to is None):
        raise CommandError(f"--from and --to: got {'both' if to else 'neither'}; give one of them")
    if from_:
        import_folder(model, out)
        print(f"{out}: model folder; {out / COMPONENTS} names its components for `fit --config`")
        return
    from lightning_s2s.checkpoints.opens2s_export import export_opens2s
    from lightning_s2s.checkpoints.sources import open_model

    left_out = export_opens2s(open_model(model, trust_sources), out, lora, like)
    print(f"{out}: OpenS2S folder")
    if left_out:
        parts = sorted({".".join(tensor.split(".")[:2]) for tensor in left_out})
        print(f"without {', '.join(parts)}, which the published layout has no place for")


def import_folder(source: Path, out: Path) -> None:
    """Write a published folder as a model folder, with a YAML of its components to train on with.

    Raises:
        ValueError: It is no published folder, it can't be read, or `out` is taken.
    """
    from lightning_s2s.checkpoints.model_folder import save_model
    from lightning_s2s.checkpoints.opens2s import is_opens2s, load_opens2s

    path = source / "config.json"
    config = read_json(path) if path.is_file() else {}
    if not is_opens2s(config):
        raise ValueError(
            f"{path}: no published OpenS2S folder; expected the keys audio_encoder_config, llm_config and tts_lm_config"
        )
    model = load_opens2s(source, config)

    def write(folder: Path) -> None:
        save_model(model, folder)
        (folder / COMPONENTS).write_text(components_yaml(model, folder, out), encoding="utf-8")

    make_folder(out, write)


def components_yaml(model: SpeechToSpeechModel, folder: Path, final: Path) -> str:
    """The model's part of a stage's YAML: components without weights, which `init_from` then loads."""
    import yaml

    parts: dict[str, Any] = {"init_from": str(final)}
    for slot, registry in SLOTS.items():
        component = getattr(model, slot)
        if component is not None:
            init_args = dict(component.pretrained_args(folder))
            if init_args.get("tokenizer") == ".":
                init_args["tokenizer"] = str(final)
            parts[slot] = {"class_path": registry.name_of(type(component)), "init_args": init_args}
    text = yaml.safe_dump({"model": {"init_args": parts}}, sort_keys=False)
    return f"# Over a stage's YAML: lightning-s2s fit --config STAGE.yaml --config {final / COMPONENTS}\n{text}"
