"""A tokenizer whose ids can be written by hand."""

from __future__ import annotations

SPECIAL_TOKENS = [
    "<|im_start|>", "<|im_end|>", "<|im_audio_start|>", "<|im_audio_end|>", "<|im_tts_start|>", "<|im_tts_end|>",
]  # fmt: skip
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(special_tokens: list[str] = SPECIAL_TOKENS, chat_template: str | None = CHATML):
    """A transformers tokenizer whose ids are the bytes 0..255, then the special tokens from 256, then `<|pad|>`.

    So "Hi" is [72, 105], `<|im_start|>` 256, `<|im_end|>` 257, `<|im_audio_start|>` 258, `<|im_audio_end|>` 259,
    `<|im_tts_start|>` 260, `<|im_tts_end|>` 261 and `<|pad|>` 262.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE({characters[byte]: byte for byte in range(256)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in [*special_tokens, "<|pad|>"]])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>")
    fast.chat_template = chat_template
    return fast
