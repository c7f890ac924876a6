"""`causal`: any causal LM of transformers, with its tokenizer and chat template."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_s2s.components.base import PlainValues
from lightning_s2s.components.contracts import LanguageModel
from lightning_s2s.components.llms.tokenizer import train_tokenizer
from lightning_s2s.components.lora import refresh_rows, rows_of
from lightning_s2s.components.pretrained import build_causal_lm, load_model, load_pretrained, without_code
from lightning_s2s.components.registry import LLMS
from lightning_s2s.data.chat import SPECIAL_TOKENS, ChatTokenizer
from lightning_s2s.generation.kv_cache import Slot, SlotCache, UnboundedCache, open_cache
from lightning_s2s.generation.sampling import Generation
from lightning_s2s.support.ranges import Count
from lightning_s2s.support.reading import reading

DTYPES = ("float32", "bfloat16", "float16")


@LLMS.register("causal")
class CausalLanguageModel(LanguageModel[Slot]):
    """Any causal LM of transformers, by hub id or folder, or small and from scratch by its configuration.

    Args:
        checkpoint: Hub id or folder with weights, configuration and tokenizer.
        config: Instead of a checkpoint, the configuration of a model with random weights, with its `model_type`;
            `vocab_size` is at least the tokenizer's.
        tokenizer: Hub id or folder of the tokenizer, if it isn't the checkpoint's.
        tokenizer_corpus: Instead of a tokenizer, a manifest on whose texts a new one is trained.
        tokenizer_size: Vocabulary size of the new tokenizer, including special tokens.
        dtype: Dtype of the weights: `float32`, `bfloat16` or `float16`.
        lora: Arguments of `peft.LoraConfig` (r, lora_alpha, target_modules, ...); None trains without LoRA. The
            embeddings of tokens that the checkpoint lacks are trained too, unless the arguments already train them.
        generation: How a reply is sampled and when it ends, with the keys of transformers' `generation_config.json`;
            None leaves that to the session.
    """

    rates = "text tokens, one a step"
    size = "any: 135M (SmolLM2), 8B (Qwen3)"
    licence = "the checkpoint's own"
    sources = ("checkpoint", "tokenizer", "tokenizer_corpus")

    def __init__(
        self,
        checkpoint: str | None = None,
        config: PlainValues | None = None,
        tokenizer: str | None = None,
        tokenizer_corpus: str | None = None,
        tokenizer_size: Count = 768,
        dtype: str = "float32",
        lora: PlainValues | None = None,
        generation: PlainValues | None = None,
    ):
        super().__init__()
        self.generation = None if generation is None else Generation.from_config(generation, "llm causal: generation")
        if (checkpoint is None) == (config is None):
            raise ValueError("llm causal: give either checkpoint or config")
        if dtype not in DTYPES:
            raise ValueError(f"llm causal: dtype: got {dtype!r}; allowed: {', '.join(DTYPES)}")
        if checkpoint is None and (tokenizer is None) == (tokenizer_corpus is None):
            raise ValueError("llm causal: with config give either tokenizer (hub id or folder) or tokenizer_corpus")
        source = str(tokenizer_corpus or tokenizer or checkpoint)
        with reading(source, "tokenizer"):
            self.tokenizer = ChatTokenizer(
                train_tokenizer(tokenizer_corpus, tokenizer_size)
                if tokenizer_corpus
                else load_pretrained("AutoTokenizer", source)
            )
            self.tokenizer.tokenizer.decode(self.tokenizer.encode_text("It works: 1, 2."))  # a broken one fails here
        if checkpoint is not None:
            self.model = load_model("AutoModelForCausalLM", checkpoint, dtype=dtype)
            if tokenizer is not None:
                size = self.model.get_input_embeddings().num_embeddings
                check_tokenizer(self.tokenizer.tokenizer, tokenizer, checkpoint, size)
        elif config is not None:
            settings: dict[str, Any] = dict(config)
            # Published models often have more embeddings than their tokenizer has tokens.
            settings["vocab_size"] = max(len(self.tokenizer), settings.get("vocab_size", 0))
            self.model = build_causal_lm(settings).to(getattr(torch, dtype))
        check_streams(self.model)
        added = self.tokenizer.missing_special_tokens()
        self.tokenizer.ensure_special_tokens()
        if len(self.tokenizer) > self.model.get_input_embeddings().num_embeddings:
            self.model.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        if lora is not None:
            if checkpoint is not None and added:  # a saved folder or run already lists them
                lora = with_new_tokens(self.model, lora, self.tokenizer.tokenizer.convert_tokens_to_ids(added))
                self.init_args["lora"] = lora
            self.model = add_lora(self.model, lora)
        self.width = self.model.config.hidden_size
        self.vocabulary = self.model.config.get_text_config().vocab_size

    def pretrained_args(self, folder: Path) -> dict[str, Any]:
        self.tokenizer.save_pretrained(folder)
        config = without_code(self.model.config)
        return {**self.init_args, "checkpoint": None, "config": config, "tokenizer": ".", "tokenizer_corpus": None}

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids)

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.base_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask.long(), use_cache=False
        ).last_hidden_state

    def logits(self, hidden_states: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden_states)

    def open_cache(
        self, num_slots: int, max_positions: int, compile: bool, position_limit: int | None = None
    ) -> SlotCache | UnboundedCache:
        try:
            return open_cache(self.model, num_slots, max_positions, (1,) if compile else (), position_limit)
        except ValueError as error:
            raise ValueError(f"llm causal: {error}") from None

    def start_stream(self, cache: SlotCache | UnboundedCache | None = None) -> Slot:
        return (cache or open_cache(self.model)).acquire()

    def stream(self, inputs_embeds: Tensor, state: Slot) -> Tensor:
        return state.cache.advance([inputs_embeds], [state])[0]

    def stream_together(self, inputs_embeds: Sequence[Tensor], states: Sequence[Slot]) -> list[Tensor]:
        return states[0].cache.advance(inputs_embeds, states)

    def end_stream(self, state: Slot) -> None:
        state.release()


def add_lora(model: Any, lora: dict[str, Any]) -> Any:
    """The model with LoRA's low-rank matrices (Hu et al., arXiv:2106.09685); only they are trained.

    Raises:
        ValueError: An argument is unknown to peft, or matches no layer.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    if lora.get("megatron_config"):
        raise ValueError("llm causal: lora: megatron_config names code that peft would import; leave it out")
    try:
        model = inject_adapter_in_model(LoraConfig(**lora), model)
    except Exception as error:  # peft raises many kinds of errors
        raise ValueError(f"llm causal: lora: {' '.join(str(error).split())}") from None
    for layer in model.modules():
        if isinstance(layer, TrainableTokensLayer):
            layer.register_load_state_dict_post_hook(refresh_rows)
    return model


def with_new_tokens(model: Any, lora: dict[str, Any], ids: list[int]) -> dict[str, Any]:
    """LoRA's arguments, extended to train the embeddings of new tokens, unless they already train embeddings.

    Args:
        model: The model without LoRA.
        lora: Arguments of `peft.LoraConfig`.
        ids: Ids of the tokens that the checkpoint lacks.
    """
    targets, copies = lora.get("target_modules") or [], lora.get("modules_to_save") or []
    named = [*([targets] if isinstance(targets, str) else targets), *copies]
    rows = rows_of(model, ids)
    if lora.get("trainable_token_indices") or set(named) & set(rows):
        return lora
    return {**lora, "trainable_token_indices": rows}


def check_tokenizer(tokenizer: Any, name: str, checkpoint: str, num_embeddings: int) -> None:
    """Refuse a tokenizer that doesn't match the checkpoint.

    Raises:
        ValueError: It has more tokens than the checkpoint has embeddings, or over 1 % of its ids differ from those of
            the checkpoint's own tokenizer.
    """
    given = tokenizer.get_vocab()
    num_tokens = len(given.keys() - set(SPECIAL_TOKENS))
    if num_tokens > num_embeddings:
        raise ValueError(
            f"llm causal: tokenizer {name} has {num_tokens} tokens, checkpoint {checkpoint} {num_embeddings} embeddings"
        )
    try:
        own = load_pretrained("AutoTokenizer", checkpoint).get_vocab()
    except ValueError:
        return
    differing = sum(given.get(token) != number for token, number in own.items())
    if differing > 0.01 * len(own):
        raise ValueError(
            f"llm causal: tokenizer {name} has other ids than checkpoint {checkpoint}, for {differing} of {len(own)} "
            "tokens"
        )


def check_streams(model: Any) -> None:
    """Refuse a model without a key-value cache, such as Mamba, which can't stream here.

    Raises:
        ValueError: Its forward lacks an argument.
    """
    known = inspect.signature(model.base_model.forward).parameters
    if lacking := {"inputs_embeds", "attention_mask", "past_key_values"} - known.keys():
        raise ValueError(
            f"llm causal: {type(model).__name__} can't answer in a stream: it takes no {', '.join(sorted(lacking))}"
        )
