"""A SpeechToSpeechModel as a published OpenS2S folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from lightning_s2s.checkpoints.opens2s import DEFAULTS, attachments_of, is_opens2s_folder, published_name
from lightning_s2s.components.lora import without_lora
from lightning_s2s.components.registry import ENCODERS, SLOTS
from lightning_s2s.components.weights import INDEX, WEIGHTS, tied_names, write_tensors
from lightning_s2s.support.files import make_folder, write_bytes, write_text

if TYPE_CHECKING:
    from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel

EXPORTABLE = {
    "encoder": ("qwen2_audio", "whisper"),
    "adapter": ("conv",),
    "llm": ("causal",),
    "speech_decoder": ("interleaved",),
}
"""The components that the published layout can hold."""
SHARD_BYTES = 5_000_000_000
VERSION_KEYS = {"transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype", "rope_parameters"}


def export_opens2s(
    model: SpeechToSpeechModel,
    folder: str | Path,
    lora: Literal["merge", "keep"] = "merge",
    like: str | Path | None = None,
) -> list[str]:
    """Write the published layout; the folder appears whole or not at all.

    Args:
        model: with the components that the layout can hold.
        folder: to write; must not exist, or be empty.
        lora: `merge` adds LoRA's matrices to the weights that they adapt, `keep` writes them beside these.
        like: published folder whose files (tokenizers, generation configs) go with the weights; None takes those that
            came with the model, and makes what is missing.

    Returns:
        Names of the model's tensors that the layout has no place for.

    Raises:
        ValueError: a component can't be exported, or the folder is taken.
    """
    if lora not in ("merge", "keep"):
        raise ValueError(f"lora must be merge or keep; got {lora!r}")
    _check_parts(model)
    if like is not None and not is_opens2s_folder(like):
        raise ValueError(
            f"{like}: no published OpenS2S folder: no config.json with audio_encoder_config and llm_config"
        )
    attachments = model.attachments if like is None else attachments_of(Path(like))
    keep = lora == "keep" and model.llm.init_args.get("lora") is not None
    tensors, left_out = published_tensors(model, keep)

    def write(target: Path) -> None:
        for name, content in attachments.items():
            write_bytes(target / name, content)
        _write_missing_files(model, target)
        _write_config(model, target, attachments.get("config.json"), keep)
        _write_shards(tensors, target, attachments.get(INDEX))

    make_folder(folder, write)
    return left_out


def _check_parts(model: SpeechToSpeechModel) -> None:
    for slot, names in EXPORTABLE.items():
        part = getattr(model, slot)
        name = None if part is None else SLOTS[slot].name_of(type(part))
        if name not in names:
            raise ValueError(f"opens2s: {slot} is {name or 'missing'}; the published layout holds {' or '.join(names)}")
    encoder: Any = model.encoder
    decoder: Any = model.speech_decoder
    if getattr(encoder, "pooling", 1) != 1:
        raise ValueError(f"opens2s: encoder whisper has pooling {encoder.pooling}; the published layout holds 1")
    if not encoder.last_layer_alone:
        layers = encoder.init_args["layers"]
        raise ValueError(f"opens2s: encoder hears layers {layers}; the published layout holds the last one alone")
    if decoder.fusion != "none":
        raise ValueError(f"opens2s: speech_decoder has fusion {decoder.fusion}; the layout holds none")


# --- tensors ---------------------------------------------------------------------------------------------------------


def published_tensors(model: SpeechToSpeechModel, keep_lora: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Published name -> tensor, and the names that have no place there. Nothing is copied but merged weights."""
    tied = tied_names(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    state = without_lora(model, state, keep_matrices=keep_lora)
    tensors, left_out = {}, []
    for name, tensor in state.items():
        published = published_name(name, keep_lora)
        if published is None or name.startswith("speech_decoder.text_"):
            left_out.append(name)
        else:
            tensors[published] = tensor
    return tensors, left_out


def _write_shards(tensors: dict[str, Tensor], folder: Path, index: bytes | None) -> None:
    """One file, or several as they were published, or of at most `SHARD_BYTES`."""
    weight_map = json.loads(index)["weight_map"] if index else {}
    if weight_map.keys() != tensors.keys():
        weight_map = _divide(tensors)
        (folder / INDEX).unlink(missing_ok=True)
    files = sorted(set(weight_map.values()))
    for file in files:
        write_tensors({name: tensor for name, tensor in tensors.items() if weight_map[name] == file}, folder / file)
    if files != [WEIGHTS] and not (folder / INDEX).is_file():
        total = sum(tensor.nbytes for tensor in tensors.values())
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_text(folder / INDEX, json.dumps(content, indent=2) + "\n")


def _divide(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Tensor name -> file."""
    numbers, number, size = {}, 1, 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > SHARD_BYTES:
            number, size = number + 1, 0
        numbers[name], size = number, size + tensor.nbytes
    if number == 1:
        return dict.fromkeys(tensors, WEIGHTS)
    return {name: f"model-{i:05d}-of-{number:05d}.safetensors" for name, i in numbers.items()}


# --- files that are no weights ---------------------------------------------------------------------------------------


def _write_config(model: SpeechToSpeechModel, folder: Path, original: bytes | None, keep_lora: bool) -> None:
    """config.json: as it came with the model where it still holds, else made from the components."""
    decoder: Any = model.speech_decoder
    adapter: Any = model.adapter
    before = json.loads(original) if original else {}
    lora = (before.get("lora_config") or model.llm.init_args["lora"]) if keep_lora else None
    if lora is not None:  # copies and rows are written in the places of the weights
        lora = {key: value for key, value in lora.items() if key not in ("modules_to_save", "trainable_token_indices")}
    changing = {
        "conv_kernel_sizes": ",".join(map(str, adapter.kernel_sizes)),
        "adapter_inner_dim": adapter.inner_width,
        "interleave_strategy": str(decoder.interleave),
        "lora_config": lora,
    }
    if before:
        changed = {key: value for key, value in changing.items() if before.get(key, DEFAULTS.get(key)) != value}
        if not changed:
            return  # the very bytes that came with the model are there
        config = before | changed
    else:
        encoder: Any = model.encoder
        transformer: Any = model.llm.model
        encoder_type = {"qwen2_audio": "qwen2_audio_encoder"}.get(ENCODERS.name_of(type(encoder)), "whisper")
        config = {
            "architectures": ["OmniSpeechModel"],
            "audio_encoder_config": plain_config(encoder.encoder.config, encoder_type),
            "llm_config": plain_config(transformer.config),
            "tts_lm_config": plain_config(decoder.lm.config),
            "torch_dtype": str(next(model.llm.parameters()).dtype).removeprefix("torch."),
            **changing,
        }
    _write_json(folder / "config.json", config)


def plain_config(config: Any, model_type: str | None = None) -> dict[str, Any]:
    """A configuration of transformers with the keys that the published code's version of it reads."""
    settings = {key: value for key, value in config.to_dict().items() if key not in VERSION_KEYS and value is not None}
    rope = getattr(config, "rope_parameters", None)
    if rope:
        settings["rope_theta"] = rope.get("rope_theta", 10_000.0)
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        settings["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    return {**settings, "model_type": model_type or config.model_type}


def _write_missing_files(model: SpeechToSpeechModel, folder: Path) -> None:
    """Tokenizers and generation configs that didn't come with the model."""
    decoder: Any = model.speech_decoder
    tokenizer = model.llm.tokenizer
    (folder / "tts").mkdir(parents=True, exist_ok=True)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        tokenizer.save_pretrained(folder)
    if not (folder / "audio" / "preprocessor_config.json").is_file():
        (folder / "audio").mkdir(exist_ok=True)
        encoder: Any = model.encoder
        encoder.features.save_pretrained(folder / "audio")
    if not (folder / "generation_config.json").is_file():
        drawn = model.llm.init_args.get("generation") or {"do_sample": True, "temperature": 0.8, "top_p": 0.9}
        ends = [token for token in (tokenizer.turn_end_id, tokenizer.tokenizer.eos_token_id) if token is not None]
        limits = {"eos_token_id": list(dict.fromkeys(ends)), "pad_token_id": tokenizer.pad_id, "max_new_tokens": 256}
        _write_json(folder / "generation_config.json", {**limits, **drawn})
    if not any((folder / "tts" / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        unit_tokenizer(decoder, model.num_units or 0).save_pretrained(folder / "tts")
    if not (folder / "tts" / "generation_config.json").is_file():
        drawn = decoder.init_args.get("generation") or {"do_sample": True, "temperature": 0.8, "top_k": 20}
        limits = {
            "eos_token_id": decoder.eos_ids,
            "pad_token_id": decoder.eos_ids[0],
            "max_new_tokens": decoder.max_units,
        }
        _write_json(folder / "tts" / "generation_config.json", {**limits, **drawn})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=True, default=str) + "\n")


def unit_tokenizer(decoder: Any, num_units: int) -> Any:
    """A tokenizer whose ids are those of the speech decoder: `<|audio_0|>`, ... and its special tokens."""
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    names = {decoder.unit_offset + unit: f"<|audio_{unit}|>" for unit in range(num_units)}
    names |= {token: "<eos>" if number == 0 else f"<eos_{number}>" for number, token in enumerate(decoder.eos_ids)}
    tokens = [names.get(token, f"<special_{token}>") for token in range(max(names) + 1)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")
