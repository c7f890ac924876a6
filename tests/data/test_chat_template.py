"""Chat templates as they are out there: ids by hand over a tokenizer of bytes, and one real tokenizer."""

from __future__ import annotations

import os

import pytest

from lightning_s2s.components.pretrained import load_pretrained
from lightning_s2s.data.chat import ChatTokenizer

HEADERS = (  # as Llama 3
    "<|begin|>{% for m in messages %}<|head|>{{ m['role'] }}<|/head|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
NO_SYSTEM = (  # as Gemma
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "<turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
SYSTEM_BEFORE_LAST_USER = (  # as Mistral 7B v0.3
    "{% if messages[0]['role'] == 'system' %}{% set system, rest = messages[0]['content'], messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}<s>"
    "{% for m in rest %}{% if m['role'] == 'user' %}[INST]"
    "{% if system is defined and rest[loop.index:] | selectattr('role', 'equalto', 'user') | list | length == 0 %}"
    "{{ system + '\n\n' }}{% endif %}{{ m['content'] }}[/INST]{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}"
)
OWN_SYSTEM = (  # as SmolLM2 and Qwen 2.5
    "{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nI am B<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER, ANSWER = {"role": "user", "content": "b"}, {"role": "assistant", "content": "C"}
SYSTEM = {"role": "system", "content": "S"}
HEARD = {"role": "user", "content": [{"audio": "q.wav"}]}
SPOKEN = {"role": "assistant", "content": [{"text": "C", "speech_units": [1]}]}


def test_headers_and_their_own_end_of_turn(make_byte_tokenizer, tmp_path):
    chat = ChatTokenizer(make_byte_tokenizer(["<|begin|>", "<|head|>", "<|/head|>", "<|eot|>"], HEADERS))
    assert chat.missing_special_tokens() == [
        "<|im_audio_start|>", "<|im_audio_end|>", "<|im_tts_start|>", "<|im_tts_end|>",
    ]  # fmt: skip
    assert chat.ensure_special_tokens() == 4 and len(chat) == 265  # ids 261 to 264, behind <|pad|>
    assert chat.turn_end_id == 259
    encoded = chat.encode([SYSTEM, HEARD, SPOKEN])
    prompt = [
        256, 257, *b"system", 258, *b"\n\nS", 259, 257, *b"user", 258, *b"\n\n", 261, -200, 262, 259,
        257, *b"assistant", 258, *b"\n\n", 263,
    ]  # fmt: skip
    assert encoded.input_ids == [*prompt, ord("C"), 264, 259]
    assert encoded.labels == [-100] * len(prompt) + [ord("C"), 264, 259]
    assert encoded.segments == [-1] * (len(prompt) - 1) + [0, 0, 0, -1]
    assert chat.encode_prompt([SYSTEM, HEARD], spoken=True) == prompt
    assert chat.decode([257, 67, 264, 259, 265]) == "C"

    chat.save_pretrained(tmp_path)
    loaded = ChatTokenizer(load_pretrained("AutoTokenizer", str(tmp_path)))
    assert loaded.encode([SYSTEM, HEARD, SPOKEN]) == encoded and loaded.turn_end_id == 259


def test_a_template_that_rejects_the_system_role(make_byte_tokenizer):
    chat = ChatTokenizer(make_byte_tokenizer(["<turn>", "<end>"], NO_SYSTEM))
    chat.ensure_special_tokens()
    turn = [256, *b"user\nb", 257, 10, 256, *b"model\n"]
    assert chat.encode_prompt([USER], spoken=False) == turn  # without the default system prompt
    assert chat.encode([USER, ANSWER]).input_ids == [*turn, ord("C"), 257, 10]
    assert chat.encode([USER, ANSWER]).labels == [-100] * len(turn) + [ord("C"), 257, -100]
    assert chat.encode_prompt([SYSTEM, USER], spoken=False) == [256, *b"user\nS\n\nb", 257, 10, 256, *b"model\n"]
    heard = [256, *b"user\nS\n\n", 259, -200, 260, 257, 10, 256, *b"model\n"]
    assert chat.encode_prompt([SYSTEM, HEARD], spoken=False) == heard
    with pytest.raises(ValueError) as error:
        chat.encode_prompt([USER, USER], spoken=False)
    assert str(error.value) == "chat template: refuses the roles user, user (Roles must alternate)"
    with pytest.raises(ValueError, match="no user's message can hold it"):
        chat.encode([SYSTEM, ANSWER])


def test_a_template_that_moves_the_system_message(make_byte_tokenizer):
    chat = ChatTokenizer(make_byte_tokenizer(["<s>", "</s>", "[INST]", "[/INST]"], SYSTEM_BEFORE_LAST_USER))
    chat.ensure_special_tokens()
    encoded = chat.encode([SYSTEM, USER, ANSWER, USER, ANSWER])
    first, second = [256, 258, *b"S\n\nb", 259, *b" "], [258, *b"b", 259]
    assert encoded.input_ids == [*first, ord("C"), 257, *second, ord("C"), 257]
    assert [label for label in encoded.labels if label != -100] == [ord("C"), 257, ord("C"), 257]


def test_a_templates_own_system_prompt_stands_only_where_none_is_given(make_byte_tokenizer):
    turn = [256, *b"user\nb", 257, 10, 256, *b"assistant\n"]
    chat = ChatTokenizer(make_byte_tokenizer(chat_template=OWN_SYSTEM), system_prompt=None)
    assert chat.encode_prompt([USER], spoken=False) == [256, *b"system\nI am B", 257, 10, *turn]
    assert chat.encode_prompt([SYSTEM, USER], spoken=False) == [256, *b"system\nS", 257, 10, *turn]
    default = ChatTokenizer(make_byte_tokenizer(chat_template=OWN_SYSTEM)).encode_prompt([USER], spoken=False)
    assert default == [256, *b"system\nYou are a helpful assistant.", 257, 10, *turn]


@pytest.mark.parametrize("opened", ["<think>", "<think>\n"])
def test_a_template_that_always_thinks_gets_its_thought_closed(make_byte_tokenizer, opened):
    template = OWN_SYSTEM.replace("assistant\n", f"assistant\n{opened}")
    chat = ChatTokenizer(make_byte_tokenizer(chat_template=template))
    expected = [*b"assistant\n<think>\n\n</think>\n\n"]
    assert chat.encode_prompt([SYSTEM, USER], spoken=False)[-len(expected) :] == expected
    encoded = chat.encode([SYSTEM, USER, ANSWER])
    assert encoded.input_ids[-len(expected) - 3 :] == [*expected, ord("C"), 257, 10]


def test_thinking_is_switched_off_by_either_name(make_byte_tokenizer):
    for switch in ("enable_thinking", "thinking"):
        template = OWN_SYSTEM.replace("assistant\n", f"assistant\n{{% if {switch} is not false %}}<think>{{% endif %}}")
        chat = ChatTokenizer(make_byte_tokenizer(chat_template=template))
        assert chat.encode_prompt([SYSTEM, USER], spoken=False)[-11:] == [256, *b"assistant\n"]


@pytest.mark.parametrize(
    ("template", "warning"),
    [
        (None, "the tokenizer has no chat template: using ChatML instead"),
        (
            "{% for m in messages %}### {{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
            "the chat template closes the assistant's turn with '', which is no special token: using ChatML instead",
        ),
        (
            "{% for m in messages[:1] %}{{ m['content'] }}<|im_end|>{% endfor %}",
            "chat template: leaves out, repeats or moves messages of the roles user, assistant, user, assistant: "
            "using ChatML instead",
        ),
        (
            "{{ raise_exception('not today') }}",
            "chat template: refuses the roles user, assistant, user, assistant (not today): using ChatML instead",
        ),
    ],
)
def test_what_can_not_be_used_is_replaced_by_chatml_with_a_warning(
    make_byte_tokenizer, chat_tokenizer, caplog, template, warning
):
    chat = ChatTokenizer(make_byte_tokenizer(chat_template=template))
    assert [record.getMessage() for record in caplog.records] == [warning]
    assert chat.encode([HEARD, SPOKEN]) == chat_tokenizer.encode([HEARD, SPOKEN])


@pytest.mark.parametrize("text", ["a<|eot|>b", "<|im_tts_end|>", "\ue0001\ue001"])
def test_no_text_passes_for_markup_of_the_template_or_of_this_project(make_byte_tokenizer, text):
    chat = ChatTokenizer(make_byte_tokenizer(["<|begin|>", "<|head|>", "<|/head|>", "<|eot|>"], HEADERS))
    chat.ensure_special_tokens()
    for item in ({"text": text}, {"audio_text": text}):
        messages = [{"role": "user", "content": [item]}, ANSWER]
        for refuse in (chat.check, chat.encode):
            with pytest.raises(ValueError, match="^text: contains the special token .*the chat template may"):
                refuse(messages)
    chat.check([{"role": "user", "content": "a<eot>b"}, ANSWER])


@pytest.mark.slow
def test_smollm2():
    folder = os.environ.get("SMOLLM2_135M")
    if not folder:
        pytest.skip("set SMOLLM2_135M to a folder of HuggingFaceTB/SmolLM2-135M-Instruct to run this test")
    chat = ChatTokenizer(load_pretrained("AutoTokenizer", str(folder)))
    assert chat.ensure_special_tokens() == 4 and len(chat) == 49_156
    assert chat.turn_end_id == chat.tokenizer.eos_token_id == 2
    encoded = chat.encode([HEARD, SPOKEN])
    place = encoded.input_ids.index(-200)
    assert chat.tokenizer.decode(encoded.input_ids[:place]) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|im_audio_start|>"
    )
    assert chat.tokenizer.decode(encoded.input_ids[place + 1 :]) == (
        "<|im_audio_end|><|im_end|>\n<|im_start|>assistant\n<|im_tts_start|>C<|im_tts_end|><|im_end|>\n"
    )
    learnt = [label for label in encoded.labels if label != -100]
    assert chat.tokenizer.decode(learnt) == "C<|im_tts_end|><|im_end|>"
    own = ChatTokenizer(load_pretrained("AutoTokenizer", str(folder)), system_prompt=None).encode_prompt(
        [USER], spoken=False
    )
    assert "named SmolLM" in chat.tokenizer.decode(own)
