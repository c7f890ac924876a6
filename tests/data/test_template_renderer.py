"""Chat templates are rendered within bounds: what takes for ever, or all memory, is refused in one line."""

from __future__ import annotations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from lightning_s2s.data.chat import ChatTokenizer
from lightning_s2s.data.template_renderer import MAX_CHARACTERS, TemplateBombError, is_plain, render, render_apart

DIALOGUE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
LOOPS = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
BOMBS = {
    "loops": LOOPS,
    "power": "{{ 10 ** (10 ** 10) }}",
    "power of a variable": "{{ messages|length ** (10 ** 10) }}",
    "repeated": "{{ 'x' * 10 ** 12 }}",
    "repeated when rendered": "{{ messages[0]['content'] * 10 ** 12 }}",
    "width": "{{ '%1000000000000d' % 1 }}",
    "centred": "{{ messages[0]['content'] | center(10 ** 11) }}",
    "doubled": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused(kind):
    with pytest.raises(TemplateBombError, match=r"^chat template: takes more than 2 s or 1,024 MiB$"):
        render_apart(BOMBS[kind], {}, [(DIALOGUE, False)])


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth exceeded"),
        ("{{ 'x' * 1048577 }}", "writes 1,048,577 characters; at most 1,048,576 are allowed"),
        ("{{ raise_exception('not today') }}", "not today"),
        ("{% for %}", "Expected an expression, got 'end of statement block'"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe."),
    ],
)
def test_what_a_template_says_against_a_dialogue(template, problem):
    for run in (render, render_apart):
        ((text, found),) = run(template, {}, [(DIALOGUE, False)])
        assert text is None and found.startswith(problem)


def test_templates_see_what_transformers_gives_them():
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m | tojson }}{% if loop.last %}{% break %}{% endif %}{% endfor %}"
        "{% generation %}{{ strftime_now('%Y')|length }}{% endgeneration %}{% if add_generation_prompt %}>{% endif %}"
        "{% set n = namespace(k=1) %}{% set n.k = 2 %}{{ n.k }}{{ dict(a=1)['a'] }}\n  {% if tools %}{% endif %}\n."
    )
    values = {"bos_token": "<s>", "tools": None, "documents": None}
    for prompt in (False, True):
        expected = render_jinja_template(
            [DIALOGUE], chat_template=template, add_generation_prompt=prompt, bos_token="<s>"
        )
        assert render_apart(template, values, [(DIALOGUE, prompt)]) == [(expected[0][0], None)]


def test_long_output_within_the_bound_is_kept():
    assert render_apart("{{ 'x' * 1048576 }}", {}, [(DIALOGUE, False)]) == [("x" * MAX_CHARACTERS, None)]


def test_a_tokenizer_with_a_bomb_is_refused_and_one_that_explodes_later_too(make_byte_tokenizer):
    with pytest.raises(ValueError, match="^chat template: takes more than"):
        ChatTokenizer(make_byte_tokenizer(chat_template=LOOPS))
    turn = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    later = "{% if messages|length > 30 %}" + LOOPS + "{% endif %}{% for m in messages %}" + turn + "{% endfor %}"
    chat = ChatTokenizer(make_byte_tokenizer(chat_template=later), system_prompt=None)
    chat.ensure_special_tokens()
    assert chat.encode_prompt(DIALOGUE[:1], spoken=False)
    with pytest.raises(ValueError, match="^chat template: takes more than"):
        chat.encode_prompt([*DIALOGUE * 15, DIALOGUE[0]], spoken=False)


CHATML = "{% for m in messages %}{{ '<s>' + m['role'] + m.content | trim }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "plain"),
    [
        (CHATML, True),
        (CHATML + "{% if add_generation_prompt %}{{ '<s>assistant' }}{% endif %}", True),
        ("{% for m in messages[1:] %}{% if loop.first %}{{ m.content }}{% endif %}{% endfor %}", True),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}", True),
        ("{% for m in messages %}{% for n in messages %}{{ n }}{% endfor %}{% endfor %}", False),
        ("{% for i in range(9) %}{% endfor %}", False),
        ("{% set x = 1 %}", False),
        ("{{ 'x' * 2 }}", False),
        ("{{ 'x' | center(9) }}", False),
        ("{{ 'x'.join('y') }}", False),
        ("{% macro f() %}{% endmacro %}", False),
        ("{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", False),
        ("{{" * 3000, False),
    ],
)
def test_plain_templates_need_no_process(template, plain):
    assert is_plain(template) is plain
