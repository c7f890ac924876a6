"""Answers given several at a time are those given alone; a killed evaluation resumes; conditions are reported."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lightning_s2s.checkpoints.model_folder import save_model
from lightning_s2s.evaluation import answers as module
from lightning_s2s.evaluation.answers import JOURNAL, EvaluateAnswersConfig, evaluate_answers
from lightning_s2s.evaluation.conditions import Condition
from lightning_s2s.evaluation.grammar import DialogueGrammar
from lightning_s2s.evaluation.questions import read_questions
from lightning_s2s.evaluation.recording import Recorded
from lightning_s2s.evaluation.scores import score, worst_of
from lightning_s2s.streaming.engine import StreamingEngine
from lightning_s2s.streaming.session import respond
from lightning_s2s.support.journal import Journal
from parts.html_page import HTMLPage
from parts.paths import EXPERIMENTS
from parts.small_models import build

GRAMMAR = str(EXPERIMENTS / "tiny" / "grammar.yaml")
TIMED = ("marks", "real_time_factor")
SIXTEEN_BIT = 4 / 2**15
"""Steps of the stored replies, and rounding."""


@pytest.fixture
def config(tmp_path, tokenizer_folder, make_tiny_corpus):
    """Four questions, of which two are timed, as recorded and in noise."""
    save_model(build(tokenizer_folder), tmp_path / "model")
    corpus = make_tiny_corpus(num_train=4, num_validation=4)
    return EvaluateAnswersConfig(
        str(tmp_path / "model"), corpus.train, GRAMMAR, str(tmp_path / "out"), slots=4, latency_questions=2,
        conditions=[Condition(noise="white", snr_db=5), Condition(name="others", manifest=corpus.validation)],
    )  # fmt: skip


def outputs(folder) -> tuple[list[dict], dict, list[np.ndarray]]:
    """What does not depend on time: the lines of `answers.jsonl`, the figures of each condition, the replies."""
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    untimed = [{key: value for key, value in line.items() if key not in TIMED} for line in lines]
    figures = json.loads((folder / "figures.json").read_text())
    return untimed, figures["conditions"], [soundfile.read(folder / line["audio"])[0] for line in lines]


def assert_same_outputs(one, other):
    assert one[:2] == other[:2]
    for waveform, wanted in zip(one[2], other[2], strict=True):
        np.testing.assert_allclose(waveform, wanted, atol=SIXTEEN_BIT)


def test_slots_do_not_change_the_answers(config, tmp_path):
    together = evaluate_answers(config)
    found = outputs(tmp_path / "out")
    config.slots, config.output_dir = 1, str(tmp_path / "alone")
    evaluate_answers(config)
    assert_same_outputs(found, outputs(tmp_path / "alone"))
    questions, _ = read_questions(config.questions)
    model = module.load_model(config.model)
    for question, answer in zip(questions, together.answers, strict=True):
        reply = respond(model, question.load(16_000), 16_000, greedy=True)
        assert answer.reply.text == reply.text
        np.testing.assert_allclose(answer.reply.waveform, reply.waveform, atol=SIXTEEN_BIT)
    # Questions 0 and 2 of four are timed, alone.
    assert [bool(answer.reply.marks) for answer in together.answers] == [True, False, True, False]
    notes = {metric.name: metric.note for metric in together.metrics}
    assert notes["first audio, median"] == "2 questions, one at a time"
    config.latency_questions, config.output_dir = 0, str(tmp_path / "untimed")
    assert not any("first audio" in metric.name for metric in evaluate_answers(config).metrics)


def test_one_engine_with_all_slots_answers(config, monkeypatch):
    sizes, running = [], []
    init, step = StreamingEngine.__init__, StreamingEngine._step

    def count(engine, model, num_slots=1, **options):
        sizes.append(num_slots)
        init(engine, model, num_slots, **options)

    def watch(engine):
        step(engine)
        running.append((engine.num_slots, engine.num_running))

    monkeypatch.setattr(StreamingEngine, "__init__", count)
    monkeypatch.setattr(StreamingEngine, "_step", watch)
    evaluate_answers(config)
    assert sizes == [1, 4]  # timing, then everything else
    assert {found for slots, found in running if slots == 1} == {1}
    assert max(found for slots, found in running if slots == 4) == 4


@pytest.mark.parametrize("dies_at", [2, 9])
def test_a_killed_evaluation_resumes(config, dies_at, tmp_path, monkeypatch):
    """It is killed in the middle of a line: the header's is the first, two timings and twelve answers follow."""
    child = os.fork()
    if not child:
        append, lines = Journal._append, iter(range(1, 100))

        def append_half(journal, content):
            if next(lines) == dies_at:
                append(journal, [b"".join(content)[:20]])
                os.kill(os.getpid(), signal.SIGKILL)
            append(journal, content)

        Journal._append = append_half
        evaluate_answers(config)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "out" / "figures.json").exists()
    kept = (tmp_path / "out" / JOURNAL).read_bytes().splitlines()[: dies_at - 1]

    other = EvaluateAnswersConfig(**{**vars(config), "limit": 3})
    with pytest.raises(ValueError, match=rf"{JOURNAL}: was started with another limit; repeat that command, or remove"):
        evaluate_answers(other)

    added = []
    add = Journal.add
    monkeypatch.setattr(Journal, "add", lambda journal, pieces: add(journal, [*map(keep, pieces)]))
    keep = lambda piece: added.append(piece[0]) or piece  # noqa: E731
    evaluate_answers(config)
    assert len(added) == 14 - (len(kept) - 1) and not (tmp_path / "out" / JOURNAL).exists()
    found = outputs(tmp_path / "out")
    config.output_dir = str(tmp_path / "whole")
    evaluate_answers(config)
    assert_same_outputs(found, outputs(tmp_path / "whole"))


def test_a_lost_reply_is_spoken_again(config, tmp_path, monkeypatch):
    config.conditions, config.latency_questions, config.limit = [], 0, 2
    monkeypatch.setattr(module, "write_results", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate_answers(config)
    monkeypatch.undo()
    lost = sorted((tmp_path / "out" / "replies").iterdir())[1]
    lost.unlink()
    evaluate_answers(config)
    assert lost.is_file()


def test_a_reply_that_became_silent_leaves_no_sound(config, tmp_path, tokenizer_folder):
    config.conditions, config.latency_questions, config.limit = [], 0, 1
    evaluate_answers(config)
    save_model(build(tokenizer_folder, speaks=False), tmp_path / "silent")
    config.model = str(tmp_path / "silent")
    result = evaluate_answers(config)
    assert all(answer.reply.waveform is None for answer in result.answers)
    assert list((tmp_path / "out" / "replies").iterdir()) == []


def test_conditions_are_reported(config, tmp_path, run):
    settings = {**vars(config), "conditions": [{"gain_db": 12}, {"name": "others", "manifest": "validation.jsonl"}]}
    settings["conditions"][1]["manifest"] = str(Path(config.questions).with_name("validation.jsonl"))
    (tmp_path / "answers.yaml").write_text(json.dumps(settings))
    code, printed, error = run("evaluate", "answers", "--config", tmp_path / "answers.yaml")
    assert code == 0, error
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert list(figures["conditions"]) == ["as recorded", "gain +12 dB", "others"]
    loud = figures["conditions"]["gain +12 dB"]
    assert loud["num_questions"] == loud["num_limited"] == 4  # their peak is 0.5 or more
    assert list(loud["recall"]) == ["happy", "sad"] and loud["chance"] == 0.5
    worst = figures["emotion recognised, worst condition"]
    assert worst == min(loud["heard"], figures["conditions"]["others"]["heard"])
    page = HTMLPage((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    page.assert_self_contained()
    header = ["condition", "emotion heard", "happy", "sad", "replies fit", "minimal pairs", "chance", "lowered"]
    rows = page.rows[page.rows.index(header) :]
    assert [row[0] for row in rows[1:4]] == ["as recorded", "gain +12 dB", "others"]
    assert "Measured on 2 of 4 questions, one session at a time." in page.text and "not timed" in page.text
    assert re.search(
        r"Worst: (gain \+12 dB|others) , where \d+ % of the emotions are recognised; guessing gets 50 %", page.text
    )
    assert len(page.all("circle", class_="mark heard")) == 3 + 1  # and the legend
    assert re.search(r"^gain \+12 dB +\d+ .* 4 by \d+\.\d dB$", printed, re.MULTILINE)


def test_scores_by_hand(tiny_corpus):
    grammar = DialogueGrammar(GRAMMAR)
    questions = read_questions(tiny_corpus.train, 4)[0]  # happy, sad, happy, sad
    happy, sad = grammar.replies("happy")[0], grammar.replies("sad")[0]
    said = [
        Recorded("happy", happy),
        Recorded("happy", sad.upper(), 3.0),
        Recorded("sad", "Words."),
        Recorded("sad", happy, 1.0),
    ]
    found = score("x", questions, said, grammar)
    assert (found.heard, dict(found.recall), found.chance) == (0.5, {"happy": 0.5, "sad": 0.5}, 0.5)
    assert (found.fits, found.pairs_fit, found.num_limited, found.limited_db) == (0.5, 0.5, 2, 2.0)
    better = score("y", questions[:1], said[:1], grammar)
    assert (better.heard, better.chance) == (1.0, 1.0) and worst_of([better, found, found]) is found
    assert worst_of([]) is None
