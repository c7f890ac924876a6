"""`LocalChat` with the embedded language model: it knows no JSON, and answers in it all the same."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from lightning_s2s.construction.chat import ChatRequest, Choice, LocalChat, Number, Question, Text, ask_questions
from parts.paths import EXPERIMENTS

pytest.importorskip("llguidance", reason="the package llguidance (extra: construction) is not installed")
pytest.importorskip("json_repair", reason="the package json-repair (extra: construction) is not installed")

FIELDS = {"score": Number(1, 5), "emotion": Choice(("neutral", "happy", "sad"))}


@pytest.fixture(scope="module")
def chat() -> LocalChat:
    return LocalChat(str(EXPERIMENTS / "tiny" / "language_model"), temperature=1.5, top_p=1.0, max_tokens=30)


def requests(seed: int, *prompts: str) -> list[ChatRequest]:
    return [ChatRequest(prompt, "Be kind.", Question(prompt, FIELDS, 1).schema(), seed) for prompt in prompts]


def test_every_answer_follows_its_schema(chat):
    replies = chat.ask(requests(1, "Hello.", "How are you today?", "No."))
    for reply in replies:
        values = json.loads(reply.text)
        assert list(values) == ["score", "emotion"] and 1 <= values["score"] <= 5 and not reply.cut_off
        assert values["emotion"] in FIELDS["emotion"].words and 5 < reply.output_tokens <= 30
    assert replies[0].input_tokens < replies[1].input_tokens


def test_answers_depend_on_the_seed_alone(chat):
    import torch

    texts = []
    for seed in (1, 2, 3, 1):
        torch.manual_seed(len(texts))
        texts.append([reply.text for reply in chat.ask(requests(seed, *"abcd"))])
    assert texts[0] == texts[3] and len(set(map(tuple, texts))) == 3
    greedy = replace(chat, temperature=0.0)
    assert greedy.ask(requests(1, "a")) == greedy.ask(requests(2, "a"))


def test_what_is_too_long_is_cut_off(chat):
    question = Question("Talk.", {"reply": Text()}, 1)
    (answer,) = ask_questions(chat, [question], attempts=1)
    assert (answer.values, answer.reason) == (None, "malformed: longer than the tokens allowed")
    assert answer.text.startswith('{"reply":"')


def test_a_model_without_chat_template_is_refused(tmp_path):
    import shutil

    folder = tmp_path / "lm"
    shutil.copytree(EXPERIMENTS / "tiny" / "language_model", folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="lm: its tokenizer has no chat template"):
        LocalChat(str(folder)).ask(requests(1, "a"))


@pytest.mark.slow
def test_a_real_small_llm_writes_lines_and_replies():
    checkpoint = os.environ.get("SMOLLM2_135M")
    if not checkpoint:
        pytest.skip("needs the environment variable SMOLLM2_135M: a folder of SmolLM2-135M-Instruct")
    fields = {"reply": Text(40), "emotion": Choice(("neutral", "happy", "sad", "angry"))}
    prompt = 'A friend says in a sad voice: "My brother called about the house." Reply kindly in one sentence.'
    answers = ask_questions(LocalChat(checkpoint), [Question(prompt, fields, seed) for seed in range(4)], attempts=3)
    assert sum(answer.values is not None for answer in answers) >= 3
