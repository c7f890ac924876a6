"""The published OpenS2S checkpoint (CASIA-LM/OpenS2S) as ordinary components.

A published folder holds config.json, model*.safetensors, the LLM's tokenizer and generation_config.json, `tts/` (the
tokenizer of the units and its generation_config.json) and `audio/preprocessor_config.json`. It has no vocoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_s2s.components.base import check_plain
from lightning_s2s.components.pretrained import load_pretrained, without_hub
from lightning_s2s.components.registry import SLOTS
from lightning_s2s.components.weights import (
    PICKLED,
    Shards,
    assign_tensors,
    check_tensors,
    parameters_on_meta,
    tied_names,
)
from lightning_s2s.generation.sampling import Generation
from lightning_s2s.support.reading import read_json, reading

if TYPE_CHECKING:
    from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel

PREFIXES = (
    ("audio_encoder_model.", "encoder.encoder."),
    ("audio_adapter.subsampler.conv_layers.", "adapter.convs."),
    ("audio_adapter.fc1.", "adapter.fc1."),
    ("audio_adapter.fc2.", "adapter.fc2."),
    ("audio_adapter.ln.", "adapter.norm."),
    ("llm_model.", "llm.model."),
    ("tts_lm_model.spk2tts.", "speech_decoder.speaker_projection."),
    ("tts_lm_model.spk_ln.", "speech_decoder.speaker_norm."),
    ("tts_lm_model.", "speech_decoder.lm."),
    ("llm2tts.", "speech_decoder.llm_projection."),
    ("llm_ln.", "speech_decoder.llm_norm."),
)
"""Prefixes of published names and of ours; the first match counts."""
LORA_PREFIX = ("llm_model.model.", "llm.model.")
"""With LoRA, peft's wrapper adds a level to the published names."""

AUDIO_ENCODERS = {"qwen2_audio_encoder": "qwen2_audio", "qwen2_audio": "qwen2_audio", "whisper": "whisper"}
"""model_type of audio_encoder_config -> component."""
DEFAULTS = {"conv_kernel_sizes": "5,5", "adapter_inner_dim": 512, "interleave_strategy": "1:2"}
MAX_NEW_TOKENS = 512
"""What the published code takes where a generation config names no limit."""
LARGEST_ATTACHMENT = 64 * 2**20


def is_opens2s(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of an OpenS2S model."""
    return {"audio_encoder_config", "llm_config", "tts_lm_config"} <= config.keys()


def is_opens2s_folder(folder: str | Path) -> bool:
    """Whether a folder has such a config.json."""
    path = Path(folder) / "config.json"
    return path.is_file() and is_opens2s(read_json(path))


def own_name(name: str, lora: bool) -> str | None:
    """The name that a published tensor has in a SpeechToSpeechModel; None when it has none."""
    for theirs, ours in (LORA_PREFIX, *PREFIXES) if lora else PREFIXES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return None


def published_name(name: str, lora: bool) -> str | None:
    """The inverse of `own_name`; None for what the published layout has no place for (vocoder, text conditions)."""
    for theirs, ours in (LORA_PREFIX, *PREFIXES) if lora else PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return None


def load_opens2s(folder: str | Path, config: Mapping[str, Any]) -> SpeechToSpeechModel:
    """A published folder as a model that answers in text and units.

    The weights stay in the mapped files, in their dtype, until they are used or moved.

    Args:
        folder: The folder.
        config: The content of its config.json.

    Raises:
        ValueError: A file is missing or broken, a model_type is unknown, or a tensor's name or shape doesn't fit.
    """
    from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel

    folder = Path(folder)
    shards = Shards(folder)
    path = folder / "config.json"
    with parameters_on_meta(), without_hub(), reading(path, "configuration of OpenS2S"):
        parts: dict[str, Any] = {}
        for slot, component in component_args(folder, config).items():
            check_plain(component["init_args"], f"{path}: {slot}")
            parts[slot] = SLOTS[slot].get(component["class_path"])(**component["init_args"])
        model = SpeechToSpeechModel(**parts)
    lora = bool(config.get("lora_config"))
    tied = tied_names(model)
    wanted = {
        published_name(name, lora) or name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name not in tied
    }
    files = {name: str(path) for name, path in shards.files.items() if own_name(name, lora) not in tied}
    check_tensors("OpenS2S", wanted, {name: shards.shapes[name] for name in files}, files, str(folder))
    tensors = {_own(name, lora): tensor for name, tensor in shards.load(files).items()}
    assign_tensors(model, tensors, {_own(name, lora): file for name, file in files.items()}, str(folder))
    model.attachments = attachments_of(folder)
    return model.eval()


def read_tensors(folder: str | Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A published folder's tensors under the names of a SpeechToSpeechModel, to start a stage from.

    Args:
        folder: The folder.
        config: The content of its config.json.

    Raises:
        ValueError: A file is missing or broken, or a tensor belongs to no part.
    """
    shards = Shards(folder)
    lora = bool(config.get("lora_config"))
    for name, path in shards.files.items():
        if own_name(name, lora) is None:
            raise ValueError(f"{path}: tensor {name} belongs to no part of an OpenS2S model")
    return {_own(name, lora): tensor for name, tensor in shards.load(shards.files).items()}


def _own(name: str, lora: bool) -> str:
    found = own_name(name, lora)
    assert found is not None, name
    return found


# --- configuration ---------------------------------------------------------------------------------------------------


def component_args(folder: str | Path, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`class_path` and `init_args` of each component that a published folder describes.

    Args:
        folder: The folder.
        config: The content of its config.json.

    Raises:
        ValueError: A file or key is missing, or its value can't be used; the message names both.
    """
    folder = Path(folder)
    path = folder / "config.json"
    config = {**DEFAULTS, **{key: value for key, value in config.items() if value is not None}}
    for key in ("audio_encoder_config", "llm_config", "tts_lm_config"):
        if not isinstance(config.get(key), dict):
            raise ValueError(f"{path}: key {key!r} must hold a mapping; got {config.get(key)!r}")
    llm_config = _causal_config(config, "llm_config", path)
    return {
        "encoder": _encoder_args(config["audio_encoder_config"], folder),
        "adapter": {
            "class_path": "conv",
            "init_args": {
                "kernel_sizes": _kernel_sizes(config["conv_kernel_sizes"], path),
                "inner_width": config["adapter_inner_dim"],
                "silence_padding": False,
            },
        },
        "llm": {
            "class_path": "causal",
            "init_args": {
                "checkpoint": None,
                "config": llm_config,
                "tokenizer": str(folder),
                "lora": _lora_args(config.get("lora_config"), path),
                "generation": generation_args(folder),
            },
        },
        "speech_decoder": _speech_decoder_args(config, folder),
    }


def _encoder_args(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    model_type = config.get("model_type", "qwen2_audio_encoder")
    if model_type not in AUDIO_ENCODERS:
        raise ValueError(
            f"{folder / 'config.json'}: audio_encoder_config.model_type is {model_type!r}; "
            f"known: {', '.join(sorted(AUDIO_ENCODERS))}"
        )
    path = folder / "audio" / "preprocessor_config.json"
    features = read_json(path)
    expected = {
        "sampling_rate": 16_000, "hop_length": 160, "n_fft": 400, "chunk_length": 30, "padding_value": 0.0,
        "dither": 0.0,
        "feature_size": config.get("num_mel_bins", 128 if AUDIO_ENCODERS[model_type] == "qwen2_audio" else 80),
    }  # fmt: skip
    for key, value in expected.items():
        if features.get(key, value) != value:
            raise ValueError(f"{path}: {key} must be {value} for this model; got {features[key]!r}")
    init_args: dict[str, Any] = {"checkpoint": None, "config": {**config, "model_type": model_type}}
    if AUDIO_ENCODERS[model_type] == "whisper":
        init_args["pooling"] = 1
    return {"class_path": AUDIO_ENCODERS[model_type], "init_args": init_args}


def _causal_config(config: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """An LLM's configuration; published code takes Qwen3 where no model_type is given."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    settings = {"model_type": "qwen3", **config[key]}
    if settings["model_type"] not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"{path}: {key}.model_type is {settings['model_type']!r}, no causal LM that transformers knows (published: "
            "qwen3)"
        )
    return settings


def _kernel_sizes(text: Any, path: Path) -> list[int]:
    sizes = str(text).split(",")
    if not all(size.strip().isdigit() for size in sizes):
        raise ValueError(f"{path}: conv_kernel_sizes must be numbers with commas, such as '5,5'; got {text!r}")
    return [int(size) for size in sizes]


def _lora_args(lora: Any, path: Path) -> dict[str, Any] | None:
    """The arguments of peft's LoraConfig out of what it stores."""
    if not lora:
        return None
    import dataclasses

    from peft import LoraConfig

    if not isinstance(lora, dict) or lora.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{path}: lora_config must be null or hold the arguments of peft.LoraConfig; got {lora!r}")
    known = {field.name for field in dataclasses.fields(LoraConfig)} - {"peft_type", "auto_mapping"}
    return {key: value for key, value in lora.items() if key in known and value is not None}


def generation_args(folder: Path) -> dict[str, Any]:
    """What generation_config.json says, with the published limit where it sets none."""
    path = folder / "generation_config.json"
    config = read_json(path)
    Generation.from_config(config, str(path))
    return {**config, "max_new_tokens": config.get("max_new_tokens") or MAX_NEW_TOKENS}


def _speech_decoder_args(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    lm_config = _causal_config(config, "tts_lm_config", folder / "config.json")
    generation = generation_args(folder / "tts")
    offset, num_units, eos_id = read_unit_tokenizer(folder / "tts")
    eos = Generation.from_config(generation, "").eos_token_ids or (() if eos_id is None else (eos_id,))
    if not eos:
        raise ValueError(f"{folder / 'tts' / 'generation_config.json'}: key 'eos_token_id' is missing")
    size = lm_config.get("vocab_size", 0)
    if max(offset + num_units, *(token + 1 for token in eos)) > size:
        raise ValueError(
            f"{folder / 'config.json'}: tts_lm_config.vocab_size is {size}, but the tokenizer in {folder / 'tts'} has "
            f"units up to id {offset + num_units - 1} and the ends {list(eos)}"
        )
    return {
        "class_path": "interleaved",
        "init_args": {
            "interleave": str(config["interleave_strategy"]),
            "config": lm_config,
            "max_units": generation["max_new_tokens"],
            "num_units": num_units,
            "unit_offset": offset,
            "eos_ids": list(eos),
            "text_conditions": False,
            "eos_ends": "group",
            "generation": generation,
        },
    }


def read_unit_tokenizer(folder: Path) -> tuple[int, int, int | None]:
    """Id of `<|audio_0|>`, number of units and id of the end in the tokenizer of the units.

    Raises:
        ValueError: no tokenizer, or its units don't have ids in a row.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected the tokenizer of the speech units")
    tokenizer = load_pretrained("AutoTokenizer", str(folder))
    vocabulary = tokenizer.get_vocab()
    offset = vocabulary.get("<|audio_0|>")
    if offset is None:
        raise ValueError(f"{folder}: the tokenizer has no token <|audio_0|>, from which the units count")
    num_units = sum(1 for token in vocabulary if token.startswith("<|audio_") and token[8:-2].isdigit())
    for unit in range(num_units):
        if vocabulary.get(f"<|audio_{unit}|>") != offset + unit:
            raise ValueError(
                f"{folder}: the tokenizer must have <|audio_{unit}|> at id {offset + unit}, after the others"
            )
    return offset, num_units, tokenizer.eos_token_id


def attachments_of(folder: Path) -> dict[str, bytes]:
    """The files of a published folder that are no weights, by path inside it."""
    paths: Iterable[Path] = [*folder.glob("*"), *(folder / "tts").glob("*"), *(folder / "audio").glob("*")]
    skipped = (*PICKLED, ".safetensors", ".gguf", ".onnx", ".msgpack", ".h5", ".zip", ".tar", ".gz")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(paths)
        if path.is_file()
        and not path.name.startswith(".")
        and path.suffix not in skipped
        and path.stat().st_size <= LARGEST_ATTACHMENT
    }
