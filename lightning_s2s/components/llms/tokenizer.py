"""A small tokenizer for an LLM that is trained from scratch."""

from __future__ import annotations

from typing import Any

from lightning_s2s.data.chat import SPECIAL_TOKENS, SYSTEM_PROMPT, content_items
from lightning_s2s.data.chat_template import CHATML_TEMPLATE


def train_tokenizer(manifest: str, size: int) -> Any:
    """Train byte-level BPE on all texts of a manifest, with the special tokens and the ChatML template.

    The same manifest gives the same tokenizer.

    Args:
        manifest: Manifest of dialogues, see `lightning_s2s.data.manifest`.
        size: Vocabulary size, including bytes and special tokens.

    Raises:
        ValueError: The manifest is missing or broken, or `size` is too small for bytes and special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from lightning_s2s.data.manifest import read_manifest

    smallest = 256 + len(SPECIAL_TOKENS) + 1
    if size < smallest:
        raise ValueError(f"tokenizer_size must be at least {smallest} (bytes and special tokens); got {size}")
    end = "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[end, *SPECIAL_TOKENS],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = (
        text
        for row in read_manifest(manifest)
        for message in [{"role": "system", "content": SYSTEM_PROMPT}, *row["messages"]]
        for item in content_items(message["content"])
        for text in (f"{message['role']}\n", item.get("text"), item.get("audio_text"))
        if text
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token=end,
        additional_special_tokens=list(SPECIAL_TOKENS),
    )
    fast.chat_template = CHATML_TEMPLATE
    return fast
