"""Text decoded token by token equals the text of all tokens."""

from __future__ import annotations

import pytest

from lightning_s2s.streaming.detokenizer import Detokenizer

TEXT = "Grüße, 🎹 und Ж!"


def test_characters_wait_until_they_are_complete(chat_tokenizer):
    ids = chat_tokenizer.encode_text(TEXT)
    assert len(ids) == len(TEXT.encode())
    deltas = [Detokenizer(chat_tokenizer.decode)(token) for token in ids[:3]]
    assert deltas == ["G", "r", ""]
    detokenize = Detokenizer(chat_tokenizer.decode)
    deltas = [detokenize(token) for token in ids]
    assert [delta for delta in deltas if delta] == list(TEXT)


def test_broken_bytes_and_special_tokens(chat_tokenizer):
    ids = [72, 261, 0xE2, 0x82, 72, 260, 105, 257, 0xC3]  # two bytes of it start a character that never completes
    detokenize = Detokenizer(chat_tokenizer.decode)
    text = "".join(detokenize(token) for token in ids)
    assert text == chat_tokenizer.decode(ids).removesuffix("\ufffd") == "H\ufffdHi"


def test_a_space_in_front_of_a_word_is_kept():
    """Like SentencePiece: drops the space in front of the first word."""
    words = ["▁Hello", "▁there", "!", "▁", "a"]
    detokenize = Detokenizer(lambda ids: "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" "))
    assert [detokenize(token) for token in range(5)] == ["Hello", " there", "!", " ", "a"]


@pytest.mark.parametrize("length", [10, 1000])
def test_what_is_decoded_for_a_token_does_not_grow(length):
    decoded = []

    def decode(ids: list[int]) -> str:
        decoded.append(len(ids))
        return "x" * len(ids)

    detokenize = Detokenizer(decode)
    assert "".join(detokenize(0) for _ in range(length)) == "x" * length
    assert max(decoded) == 2
