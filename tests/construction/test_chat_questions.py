"""Questions to an LLM: schema, repair, and what is asked again."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from lightning_s2s.construction.chat import ChatModel, ChatReply, Choice, Number, Question, Text, ask_questions
from lightning_s2s.construction.openai_server import TransientError
from lightning_s2s.construction.usage import track_usage

pytest.importorskip("json_repair", reason="the package json-repair (extra: construction) is not installed")

FIELDS = {"reply": Text(6), "emotion": Choice(("neutral", "happy"))}
GOOD = '{"reply": "That is good.", "emotion": "happy"}'


class Scripted(ChatModel):
    """Answers each prompt with the next of its texts."""

    identity = "scripted"

    def __init__(self, **answers: Sequence[str | Exception]):
        self.answers = {prompt: list(texts) for prompt, texts in answers.items()}
        self.seeds: list[int] = []

    def ask(self, requests):
        self.seeds += [request.seed for request in requests]
        texts = [self.answers[request.prompt].pop(0) for request in requests]
        return [
            text if isinstance(text, TransientError) else ChatReply(text, text.endswith("..."), 10, 5) for text in texts
        ]


def question(prompt: str, seed: int = 7) -> Question:
    return Question(prompt, FIELDS, seed)


def test_the_schema_is_strict_and_in_order():
    assert question("a").schema() == {
        "type": "object",
        "properties": {"reply": {"type": "string"}, "emotion": {"type": "string", "enum": ["neutral", "happy"]}},
        "required": ["reply", "emotion"],
        "additionalProperties": False,
    }
    assert Number(1, 3).schema() == {"type": "integer", "enum": [1, 2, 3]}


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"<think>Perhaps {{sad}}?</think>Here it is: {GOOD} I hope it helps!",
        '{"reply": "That is good.", "emotion": "Happy."',
        "{'reply': 'That is good.', 'emotion': 'happy',}",
        '{reply: "That is good.", emotion: happy}',
        '{"reply": "**That** is   good. (smiles) *nods* \U0001f600", "emotion": "HAPPY", "more": 1}',
        '{"reply": "\u201cThat is good.\u201d", "emotion": "happy"}',
    ],
)
def test_what_can_be_repaired_is(text):
    assert question("a").read(text) == {"reply": "That is good.", "emotion": "happy"}


def test_a_quoted_sentence_is_the_answer_where_one_is_asked_for():
    assert Question("a", {"line": Text(6)}, 1).read(' "That is good."\n') == {"line": "That is good."}
    with pytest.raises(ValueError, match="no JSON object"):
        question("a").read('"That is good."')


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty answer"),
        ("  \n", "empty answer"),
        ("I would say: that is good.", "no JSON object"),
        ("{}", "no JSON object"),
        ('{"emotion": "happy"}', "reply is missing"),
        ('{"reply": "", "emotion": "happy"}', "reply is empty"),
        ('{"reply": " ... ", "emotion": "happy"}', "reply is empty"),
        ('{"reply": ["a"], "emotion": "happy"}', "reply is no text"),
        ('{"reply": "one two three four five six seven", "emotion": "happy"}', "reply has over 6 words"),
        ('{"reply": "Fine.", "emotion": "jolly"}', "emotion is none of neutral, happy"),
    ],
)
def test_what_can_not_is_named(text, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        question("a").read(text)


@pytest.mark.parametrize(("value", "expected"), [(3, 3), ("4", 4), ("5/5", 5), (2.0, 2), ("6", None), ("good", None)])
def test_numbers(value, expected):
    if expected is None:
        with pytest.raises(ValueError, match="is no number from 1 to 5"):
            Number(1, 5).read(value)
    else:
        assert Number(1, 5).read(value) == expected


def test_malformed_answers_are_asked_for_again_and_counted():
    chat = Scripted(
        a=[GOOD],
        b=["nonsense", "", GOOD],
        c=["nonsense", "nonsense", '{"reply": "Go'],
        d=['{"reply": "I am not done...', GOOD],
        e=["nonsense", TransientError("the server answered 500")],
    )
    with track_usage() as usage:
        a, b, c, d, e = ask_questions(chat, [question(name, 10 * n) for n, name in enumerate("abcde")], 3)
    assert a.values == b.values == d.values == {"reply": "That is good.", "emotion": "happy"}
    assert (c.values, c.reason, c.transient, c.text) == (None, "malformed: emotion is missing", False, '{"reply": "Go')
    assert (e.values, e.reason, e.transient) == (None, "the server answered 500", True)
    assert chat.seeds == [0, 10, 20, 30, 40, 11, 21, 31, 41, 12, 22]  # each time with another seed
    assert usage.problems == {
        "malformed: no JSON object": 4, "malformed: empty answer": 1, "malformed: emotion is missing": 1,
        "malformed: longer than the tokens allowed": 1,
    }  # fmt: skip
    assert (usage.input_tokens, usage.output_tokens) == (100, 50)
    assert json.loads(json.dumps(usage.as_json())) == usage.as_json()
