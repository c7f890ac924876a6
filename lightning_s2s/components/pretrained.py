"""Loads models, tokenizers and feature extractors of transformers, by name or by their configuration.

No code from a folder or a hub repository is run: `auto_map` is ignored, and no attention kernels are downloaded.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_s2s.components.building import check_sizes
from lightning_s2s.components.weights import check_finite_tensor, skipping_weights
from lightning_s2s.support.extras import how_to_install
from lightning_s2s.support.reading import read_json, reading
from lightning_s2s.support.wording import unknown_name

log = logging.getLogger(__name__)

ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2")
"""Allowed values of `attn_implementation`; transformers would download and run any other name as a hub kernel."""
ATTENTION_KEYS = ("attn_implementation", "experts_implementation")
FETCHES = ("use_pretrained_backbone", "use_timm_backbone", "quantization_config")
"""Keys of a configuration that make transformers load other models or quantisation code."""


def load_pretrained(auto_class: str, name: str, **options: Any) -> Any:
    """`transformers.<auto_class>.from_pretrained(name)`, with all errors as a ValueError that names `name`.

    Raises:
        ValueError: Nothing of this name can be loaded, loading needs its own code, or a weight isn't finite.
    """
    import transformers

    known = getattr(transformers, auto_class)
    if is_model_class(auto_class):
        options.setdefault("config", _config_of(name, known))
        check_attention(options["config"], name)
    loaded = _from_pretrained(known, name, **options)
    if is_model_class(auto_class):
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for tensor_name, tensor in model.state_dict().items():
            check_finite_tensor(tensor_name, tensor, name)
    return loaded


def load_model(auto_class: str, name: str, **options: Any) -> Any:
    """`load_pretrained` of a model that must be complete; transformers would initialise missing tensors at random.

    In `lightning_s2s.components.weights.without_weights`, only its configuration is loaded.

    Raises:
        ValueError: The model can't be loaded, or the checkpoint is that of another model.
    """
    if skipping_weights():
        import transformers

        known = getattr(transformers, auto_class)
        config = _config_of(name, known)
        check_attention(config, name)
        if auto_class.startswith("Auto"):
            return known.from_config(config, trust_remote_code=False, **options)
        return known._from_config(config, **options)
    model, loaded = load_pretrained(auto_class, name, output_loading_info=True, **options)
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(
            f"{name}: is no checkpoint of {type(model).__name__}: it lacks {len(missing)} of its tensors, such as "
            f"{missing[0]}"
        )
    return model


def model_config(config: Mapping[str, Any], where: str, what: str = "model") -> Any:
    """A configuration of transformers from plain values, including `model_type`.

    Args:
        config: Values from a YAML or a model folder.
        where: Where they were given, for messages.
        what: What they configure, for messages.

    Raises:
        ValueError: The `model_type` is unknown, or a key is misspelt, has an invalid value, or loads code.
    """
    from transformers import AutoConfig

    check_sizes(config, where)
    settings = dict(config)
    model_type = settings.pop("model_type", None)
    with _fitting(where, what, model_type):
        default = AutoConfig.for_model(model_type)
        for key, value in settings.items():
            if key in FETCHES and value:
                raise ValueError(f"{key}: is not taken from a configuration: it loads other models or code")
            if callable(getattr(type(default), key, None)):
                raise ValueError(f"unknown key {key!r}")
            # transformers accepts unknown keys, and uses its defaults (of billions of parameters)
            meant = [] if hasattr(default, key) else difflib.get_close_matches(key, vars(default), 1, cutoff=0.85)
            if meant:
                raise ValueError(f"unknown key {key!r}; did you mean {meant[0]}?")
        built = AutoConfig.for_model(model_type, **settings)
    check_attention(built, where)
    return built


def build_causal_lm(config: Mapping[str, Any], where: str = "config") -> Any:
    """A transformers causal LM with random weights.

    Raises:
        ValueError: `config` doesn't describe a causal LM, see `model_config`.
    """
    return build_from("AutoModelForCausalLM", model_config(config, where, "causal LM"), where, "causal LM")


def build_model(config: Mapping[str, Any], where: str) -> Any:
    """A model of transformers with random weights, without a head.

    Raises:
        ValueError: `config` doesn't describe a model, see `model_config`.
    """
    return build_from("AutoModel", model_config(config, where), where)


def build_from(auto_class: str, config: Any, where: str, what: str = "model") -> Any:
    """A model with random weights from a configuration of transformers.

    Raises:
        ValueError: The model can't be built.
    """
    import transformers

    with _fitting(where, what, config.model_type):
        return getattr(transformers, auto_class).from_config(config, trust_remote_code=False)


@contextlib.contextmanager
def _fitting(where: str, what: str, model_type: Any) -> Iterator[None]:
    """Raise whatever transformers finds wrong with a configuration as a ValueError that names where it was given."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:  # configurations and models raise many kinds of errors
        reason = _reason(error)
        raise ValueError(f"{where}: no {what} of transformers fits model_type {model_type!r} ({reason})") from None


def without_code(config: Any) -> dict[str, Any]:
    """A configuration of transformers as plain values for a model folder, without references to code."""
    return {key: value for key, value in config.to_diff_dict().items() if key != "auto_map"}


def check_model_type(model_type: object, allowed: Collection[str], where: str) -> None:
    """Raise ValueError unless a configuration's `model_type` is one of those that a component supports."""
    if model_type not in allowed:
        raise ValueError(f"{where}: {unknown_name('model_type', str(model_type), allowed)}")


def check_attention(config: Any, where: str) -> None:
    """Refuse a configuration that names an attention kernel of the hub, in its sub-configurations too.

    Raises:
        ValueError: One is named, or an implementation whose package is missing, which transformers would download.
    """
    from transformers.utils import is_flash_attn_2_available

    for part in (config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", {}))):
        for key in ATTENTION_KEYS:
            value = getattr(part, f"_{key}", None)
            if value is None:
                continue
            if key == "attn_implementation" and value not in ATTENTION:
                raise ValueError(
                    f"{where}: {key}: got {value!r}; allowed: {', '.join(ATTENTION)}; kernels of the hub are code, "
                    "which is not loaded"
                )
            if key == "experts_implementation" and not str(value).isidentifier():
                raise ValueError(f"{where}: {key}: got {value!r}; kernels of the hub are code, which is not loaded")
            if value == "flash_attention_2" and not is_flash_attn_2_available():
                raise ValueError(f"{where}: {key}: got {value!r}, which needs the package flash_attn")


@contextlib.contextmanager
def without_hub() -> Iterator[None]:
    """Inside, nothing is downloaded from the hub."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def is_model_class(auto_class: str) -> bool:
    """Whether a class name of transformers is that of a model, not a configuration, tokenizer or feature extractor."""
    return not auto_class.endswith(("Config", "Tokenizer", "Extractor", "Processor"))


def _config_of(name: str, model_class: Any) -> Any:
    from transformers import AutoConfig

    if (path := Path(name, "config.json")).is_file():
        check_sizes(read_json(path), str(path))
    config = _from_pretrained(getattr(model_class, "config_class", AutoConfig), name)
    if getattr(config, "auto_map", None):
        log.warning("%s: its config.json names code of its own (auto_map), which is not run", name)
    return config


MAX_TOKENS = 10_000_000
"""Largest vocabulary; the largest published ones have about 260,000 tokens."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def _from_pretrained(known: Any, name: str, **options: Any) -> Any:
    if known.__name__.endswith("Tokenizer"):
        for file in TOKENIZER_FILES:  # transformers' messages don't name the broken file
            if (path := Path(name, file)).is_file():
                read_json(path)
    with reading(name, known.__name__):  # tokenizers and configurations raise many kinds of errors
        try:
            loaded = known.from_pretrained(name, trust_remote_code=False, **options)
        except (OSError, ValueError, KeyError) as error:
            if how_to_install(error):
                raise
            if "trust_remote_code" in str(error):
                raise ValueError(f"{name}: can only be loaded by code that comes with it, which is not run") from None
            raise ValueError(
                f"{name}: neither a folder nor a hub id that {known.__name__} can load ({_reason(error)})"
            ) from None
        if hasattr(loaded, "get_vocab"):
            _check_ids(loaded.get_vocab(), name)
        return loaded


def _check_ids(vocabulary: Mapping[str, int], name: str) -> None:
    """Refuse impossibly large ids; saving such a tokenizer would iterate over all smaller ones."""
    token = max(vocabulary, key=vocabulary.__getitem__, default="")
    if vocabulary and vocabulary[token] >= MAX_TOKENS:
        raise ValueError(
            f"{name}: tokenizer.json: vocab: the token {token[:40]!r} has the id {vocabulary[token]}; ids below "
            f"{MAX_TOKENS:,} are allowed"
        )


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return " ".join(" ".join(lines[:3]).split()) or type(error).__name__
