"""`lightning-s2s convert`: a published OpenS2S folder from or to a model folder of this project."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_s2s.commands.messages import OneLineParser, a_path
from lightning_s2s.commands.model_options import add_trust_option
from lightning_s2s.support.files import make_folder

if TYPE_CHECKING:
    import argparse

    from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel

FORMATS = ("opens2s",)
COMPONENTS = "components.yaml"


def build_parser() -> argparse.ArgumentParser:
    """The options of `lightning-s2s convert`."""
    parser = OneLineParser(prog="lightning-s2s convert", description=__doc__)
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--from", dest="source", choices=FORMATS, help="MODEL is a published folder")
    direction.add_argument("--to", dest="target", choices=FORMATS, help="OUT becomes a published folder")
    parser.add_argument("model", metavar="MODEL", help="with --to: model folder, folder of a run, or .ckpt file")
    parser.add_argument("out", metavar="OUT", type=a_path, help="folder to write; new or empty")
    parser.add_argument(
        "--lora", choices=("merge", "keep"), default="merge", help="with --to: add LoRA to the weights (the default)"
    )
    parser.add_argument(
        "--like", type=a_path, help="with --to: published folder whose tokenizers and generation configs are taken"
    )
    add_trust_option(parser)
    return parser


def run(name: str, arguments: list[str]) -> int:
    """Convert and say what was written.

    Raises:
        CommandError: a mistake in the options.
        ValueError: the model can't be read or converted, or OUT is taken.
    """
    options = build_parser().parse_args(arguments)
    if options.source:
        import_folder(options.model, options.out)
        print(f"{options.out}: model folder; {options.out / COMPONENTS} names its components for `fit --config`")
        return 0
    from lightning_s2s.checkpoints.opens2s_export import export_opens2s
    from lightning_s2s.checkpoints.sources import open_model

    left_out = export_opens2s(open_model(options.model, options.trust_sources), options.out, options.lora, options.like)
    print(f"{options.out}: OpenS2S folder")
    if left_out:
        parts = sorted({".".join(tensor.split(".")[:2]) for tensor in left_out})
        print(f"without {', '.join(parts)}, which the published layout has no place for")
    return 0


def import_folder(source: str, out: Path) -> None:
    """Write a published folder as a model folder, with a YAML of its components to train on with.

    Raises:
        ValueError: it is no published folder, it can't be read, or `out` is taken.
    """
    from lightning_s2s.checkpoints.model_folder import save_model
    from lightning_s2s.checkpoints.opens2s import is_opens2s_folder, load_opens2s

    if not is_opens2s_folder(source):
        raise ValueError(
            f"{Path(source) / 'config.json'}: no published OpenS2S folder; expected the keys audio_encoder_config, "
            "llm_config and tts_lm_config"
        )
    model = load_opens2s(source)

    def write(folder: Path) -> None:
        save_model(model, folder)
        (folder / COMPONENTS).write_text(components_yaml(model, folder, out), encoding="utf-8")

    make_folder(out, write)


def components_yaml(model: SpeechToSpeechModel, folder: Path, final: Path) -> str:
    """The model's part of a stage's YAML: components without weights, which `init_from` then loads."""
    import yaml

    from lightning_s2s.checkpoints.stored import SLOTS

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
