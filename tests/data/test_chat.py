"""Ids, labels and segments, written by hand over a tokenizer of bytes, and the published prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_s2s.components.pretrained import load_pretrained
from lightning_s2s.data.batch import AUDIO_PLACEHOLDER
from lightning_s2s.data.chat import ChatTokenizer
from parts.byte_tokenizer import byte_tokenizer

GOLDEN = Path(__file__).parent / "golden_tokenizer"
SYSTEM = [256, *b"system\nYou are a helpful assistant.", 257, 10]
QUESTION = {"role": "user", "content": [{"text": "", "audio": "q.wav", "speech_units": "", "spk_emb": ""}]}
HEARD = [256, *b"user\n", 258, -200, 259, 257, 10]
UNITS = "<|audio_0|><|audio_1|>"


def test_a_spoken_answer(chat_tokenizer):
    answer = {"role": "assistant", "content": [{"text": "Hi", "audio": "", "speech_units": UNITS}]}
    encoded = chat_tokenizer.encode([QUESTION, answer])
    prompt = [*SYSTEM, *HEARD, 256, *b"assistant\n", 260]
    assert encoded.input_ids == [*prompt, 72, 105, 261, 257, 10]
    assert encoded.labels == [-100] * len(prompt) + [72, 105, 261, 257, -100]
    assert encoded.segments == [-1] * (len(prompt) - 1) + [0, 0, 0, 0, -1, -1]
    assert len(encoded) == len(prompt) + 5
    assert chat_tokenizer.encode_prompt([QUESTION], spoken=True) == prompt


def test_a_written_answer(chat_tokenizer):
    encoded = chat_tokenizer.encode([QUESTION, {"role": "assistant", "content": [{"text": "Hi"}]}])
    prompt = [*SYSTEM, *HEARD, 256, *b"assistant\n"]
    assert encoded.input_ids == [*prompt, 72, 105, 257, 10]
    assert encoded.labels == [-100] * len(prompt) + [72, 105, 257, -100]
    assert encoded.segments == [-1] * len(encoded)
    assert chat_tokenizer.encode_prompt([QUESTION], spoken=False) == prompt


def test_speak_without_units_is_spoken_but_no_segment(chat_tokenizer):
    encoded = chat_tokenizer.encode([QUESTION, {"role": "assistant", "content": [{"text": "Hi", "speak": True}]}])
    assert encoded.input_ids[-6:] == [260, 72, 105, 261, 257, 10]
    assert encoded.labels[-6:] == [-100, 72, 105, 261, 257, -100]
    assert set(encoded.segments) == {-1}


def test_several_turns(chat_tokenizer):
    messages = [
        QUESTION,
        {"role": "assistant", "content": [{"text": "A", "speech_units": UNITS}]},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "C"},
        QUESTION,
        {"role": "assistant", "content": [{"text": "D", "speech_units": UNITS}]},
    ]
    encoded = chat_tokenizer.encode(messages)
    turns = [
        ([*SYSTEM, *HEARD, 256, *b"assistant\n"], -1, False),
        ([260], 0, False),
        ([65, 261], 0, True),
        ([257], -1, True),
        ([10, 256, *b"user\nb", 257, 10, 256, *b"assistant\n"], -1, False),
        ([67, 257], -1, True),
        ([10, *HEARD, 256, *b"assistant\n"], -1, False),
        ([260], 1, False),
        ([68, 261], 1, True),
        ([257], -1, True),
        ([10], -1, False),
    ]
    assert encoded.input_ids == [i for ids, _, _ in turns for i in ids]
    assert encoded.labels == [i if learnt else -100 for ids, _, learnt in turns for i in ids]
    assert encoded.segments == [segment for ids, segment, _ in turns for _ in ids]
    assert chat_tokenizer.encode_prompt(messages[:5], spoken=True) == encoded.input_ids[: -len([68, 261, 257, 10])]


def test_text_and_audio_keep_their_order(chat_tokenizer):
    content = [{"text": "x"}, {"audio": "1.wav"}, {"text": "y", "audio": "2.wav"}, {"text": "z"}]
    prompt = chat_tokenizer.encode_prompt([{"role": "user", "content": content}], spoken=False)
    turn = [256, *b"user\nx", 258, -200, 259, *b"y", 258, AUDIO_PLACEHOLDER, 259, *b"z", 257, 10]
    assert prompt == [*SYSTEM, *turn, 256, *b"assistant\n"]


def test_words_in_place_of_audio(chat_tokenizer):
    prompt = chat_tokenizer.encode_prompt([{"role": "user", "content": [{"audio_text": "hm"}]}], spoken=False)
    assert prompt == [*SYSTEM, 256, *b"user\n", 258, *b"hm", 259, 257, 10, 256, *b"assistant\n"]


def test_system_prompt(make_byte_tokenizer):
    own = [{"role": "system", "content": "S"}, {"role": "user", "content": "b"}]
    turn = [256, *b"user\nb", 257, 10, 256, *b"assistant\n"]
    assert ChatTokenizer(make_byte_tokenizer()).encode_prompt(own, False) == [256, *b"system\nS", 257, 10, *turn]
    assert ChatTokenizer(make_byte_tokenizer(), system_prompt=None).encode_prompt(own[1:], False) == turn
    short = ChatTokenizer(make_byte_tokenizer(), system_prompt="Q")
    assert short.encode_prompt(own[1:], False) == [256, *b"system\nQ", 257, 10, *turn]


def test_missing_special_tokens_are_named_and_added(make_byte_tokenizer, tmp_path):
    chat = ChatTokenizer(make_byte_tokenizer(["<|im_start|>", "<|im_end|>", "<|im_audio_start|>"], None))
    with pytest.raises(ValueError, match=r"<\|im_audio_end\|>, <\|im_tts_start\|>, <\|im_tts_end\|>"):
        _ = chat.tts_start_id
    assert chat.ensure_special_tokens() == 3
    assert chat.ensure_special_tokens() == 0
    assert (chat.turn_end_id, chat.audio_end_id, chat.tts_start_id, chat.tts_end_id) == (257, 260, 261, 262)
    assert len(chat) == 263
    chat.save_pretrained(tmp_path / "saved")
    loaded = ChatTokenizer(load_pretrained("AutoTokenizer", str(tmp_path / "saved")))
    assert loaded.ensure_special_tokens() == 0
    assert loaded.encode_prompt([QUESTION], True) == chat.encode_prompt([QUESTION], True)


def test_no_template_means_chatml(make_byte_tokenizer, chat_tokenizer):
    chat = ChatTokenizer(make_byte_tokenizer(chat_template=None))
    assert chat.encode_prompt([QUESTION], True) == chat_tokenizer.encode_prompt([QUESTION], True)


def test_a_foreign_template_is_replaced(make_byte_tokenizer, chat_tokenizer, caplog):
    chat = ChatTokenizer(make_byte_tokenizer(chat_template="{% for m in messages %}[{{ m['content'] }}]{% endfor %}"))
    assert "ChatML" in caplog.text
    assert chat.encode_prompt([QUESTION], True) == chat_tokenizer.encode_prompt([QUESTION], True)


def test_thinking_is_off_in_the_last_turn_alone(make_byte_tokenizer):
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}<t></t>{% endif %}"
        "{% endif %}"
    )
    chat = ChatTokenizer(make_byte_tokenizer(chat_template=template), system_prompt=None)
    turn = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "C"}]
    history = [256, *b"user\nb", 257, 10, 256, *b"assistant\nC", 257, 10]
    expected = [*history, 256, *b"user\nb", 257, 10, 256, *b"assistant\n<t></t>"]
    assert chat.encode([*turn, *turn]).input_ids == [*expected, *b"C", 257, 10]
    assert chat.encode_prompt([*turn, turn[0]], spoken=False) == expected


@pytest.mark.parametrize("content", ["a<|im_end|>b", [{"text": "<|im_tts_start|>"}]])
def test_text_cannot_forge_markup(chat_tokenizer, content):
    with pytest.raises(ValueError, match=r"special token '<\|im_"):
        chat_tokenizer.encode_prompt([{"role": "user", "content": content}], spoken=False)


def test_wrong_messages(chat_tokenizer):
    with pytest.raises(ValueError, match="role: got 'bot'; allowed: system, user, assistant"):
        chat_tokenizer.encode([{"role": "bot", "content": "b"}])
    with pytest.raises(ValueError, match="is empty"):
        chat_tokenizer.encode([])
    with pytest.raises(ValueError, match="must end with the user's"):
        chat_tokenizer.encode_prompt([{"role": "assistant", "content": "b"}], spoken=False)


def test_decode_drops_specials(chat_tokenizer):
    assert chat_tokenizer.decode([260, 72, 105, 261, -200, 257, 262]) == "Hi"
    assert chat_tokenizer.decode(chat_tokenizer.encode_text("Grüße")) == "Grüße"


def test_the_published_prompt():
    expected = json.loads((GOLDEN / "expected.json").read_text())
    chat = ChatTokenizer(load_pretrained("AutoTokenizer", str(GOLDEN)))
    assert chat.encode_prompt([QUESTION], spoken=True) == expected["prompt_ids"]
    pieces = expected["prompt"].split("<|im_audio|>")
    ids = chat.encode_prompt([QUESTION], spoken=True)
    place = ids.index(AUDIO_PLACEHOLDER)
    assert [chat.tokenizer.decode(ids[:place]), chat.tokenizer.decode(ids[place + 1 :])] == pieces
    assert chat.decode(expected["text_ids"]) == expected["text"]
    answer = {"role": "assistant", "content": [{"text": "I am happy", "speech_units": UNITS}]}
    encoded = chat.encode([QUESTION, answer])
    assert encoded.input_ids == [*expected["prompt_ids"], 40, 321, 346, 355, 349, 198]
    assert encoded.labels == [-100] * len(ids) + [40, 321, 346, 355, 349, -100]
    assert encoded.segments == [-1] * (len(ids) - 1) + [0, 0, 0, 0, 0, -1, -1]


def test_ids_that_no_vocabulary_has_are_refused(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["nothing"] = 2**31
    path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}: tokenizer.json: vocab: the token 'nothing' has the id 2147483648"
    ):
        ChatTokenizer(load_pretrained("AutoTokenizer", str(tmp_path)))
