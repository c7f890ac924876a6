"""The report page and the table: what stands in them is read back."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import soundfile as sf
import torch

from lightning_s2s.evaluation.hardware import describe_hardware
from lightning_s2s.evaluation.results import AnswerResult, Metric, percentile, stage_durations
from lightning_s2s.evaluation.runs import TrainingRun, read_training_run
from lightning_s2s.reporting.answers_report import timeline, write_report
from lightning_s2s.reporting.emotion_pairs import group_pairs
from lightning_s2s.reporting.pictures import MelPainter, audio_uri, to_array
from lightning_s2s.reporting.tables import escape_markdown, format_table, markdown_table, print_table
from lightning_s2s.streaming.events import Reply
from parts.html_page import HTMLPage
from parts.sounds import tone

RATE = 16_000


def answer(number, emotion, *, pair="", heard=None, reply_emotion="", spoken=True, **changes):
    marks = {"encoder_done": 0.05, "first_text_token": 0.08}
    reply = Reply(text=f"Reply {number} <b>.", marks=marks)
    if spoken:
        marks |= {"first_hidden_states": 0.1, "first_units": 0.2, "first_audio": 0.2 + number / 100, "last_audio": 1.0}
        reply.waveform, reply.sample_rate, reply.real_time_factor = torch.from_numpy(tone(1.0, 200)), RATE, 0.25
    reply_emotion = emotion if reply_emotion == "" else reply_emotion
    values = {
        "id": f"q-{number}",
        "speaker": "ann & co",
        "pair": pair or f"p-{number}",
        "ambiguous": bool(pair),
        "said": "It's <late>.",
        "emotion_spoken": emotion,
        "emotion_heard": heard or emotion,
        "reply": reply,
        "reply_emotion": reply_emotion,
        "fits": reply_emotion == emotion,
        "waveform": tone(0.5 + number / 10),
        "sample_rate": RATE,
    }
    return AnswerResult(**(values | changes))


@pytest.fixture
def answers():
    """A pair of three emotions, out of order and apart, a lone question, and one that was answered in text alone."""
    return [
        answer(1, "sad", pair="x"),
        answer(2, "happy"),
        answer(3, "neutral", pair="x", heard="sad", reply_emotion="sad"),
        answer(4, "proud", pair="x", reply_emotion=None),
        answer(5, "angry", spoken=False, emotion_heard=None),
    ]


def read_page(path):
    return HTMLPage(path.read_text(encoding="utf-8"))


def decode(uri):
    return base64.b64decode(uri.partition("base64,")[2])


def test_page(tmp_path, answers):
    metrics = [
        Metric("emotion recognised", 0.75, 0.85, note="chance: 25 %"),
        Metric("first audio", 0.312, 0.5, at_most=True, unit="seconds"),
        Metric("bare", 3.0, unit=""),
    ]
    runs = [
        TrainingRun("stage 1", {"steps": "600"}, {"train/loss": [(0, 3.0), (10, 1.0), (20, 2.0)], "one": [(0, 1.0)]})
    ]
    chip = {"processor": "<chip>"}
    path = write_report(tmp_path / "new" / "report.html", "Title & more", answers, metrics, runs, chip)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]  # nothing temporary is left
    page = read_page(path)
    for words in (
        "Title & more",
        "<chip>",
        "75 %",
        "missed",
        "at least 85 %",
        "0.312 s",
        "met",
        "chance: 25 %",
        "train/loss 3 → 2",
        "“It's <late>.”",
        "ann & co",
        "Reply 1 <b>.",
        "heard sad",
        "heard no emotion",
        "reply is sad, does not fit",
        "reply is not well-formed",
        "first audio 0.210 s",
        "no audio",
    ):
        assert words in page.text, words
    assert len(page.all("svg")) == 1  # a single point is no curve

    cards = page.all("article", data_emotion="")
    # The pair comes first, its emotions in the fixed order and others behind; then the lone ones as they were asked.
    assert [card["data-emotion"] for card in cards] == ["neutral", "sad", "proud", "happy", "angry"]
    assert [card["data-order"] for card in cards] == ["2", "0", "3", "1", "4"]
    assert [card["data-heard"] for card in cards] == ["no", "yes", "yes", "yes", "no"]
    assert [card["data-fits"] for card in cards] == ["no", "yes", "no", "yes", "yes"]
    assert [card["data-audio"] for card in cards] == ["0.2300", "0.2100", "0.2400", "0.2200", "0.0000"]
    assert [box["value"] for box in page.all("input")] == ["neutral", "happy", "sad", "angry", "proud"]

    clips = page.all("audio")
    assert len(clips) == len(page.all("img")) == 9  # one reply has no sound
    played = [button["aria-label"] for button in page.all("button", aria_label="")]
    assert played[:3] == [
        "Play the question of q-3, neutral, 0.8 seconds",
        "Play the reply of q-3, sad, 1.0 seconds",
        "Play the question of q-1, sad, 0.6 seconds",
    ]
    assert "Play the reply of q-4, emotion unclear, 1.0 seconds" in played and len(played) == 9
    waveform, rate = sf.read(io.BytesIO(decode(clips[0]["src"])), dtype="float32")
    assert (rate, len(waveform)) == (RATE, round(0.8 * RATE))
    assert np.abs(waveform[2000:-2000]).max() == pytest.approx(0.3, abs=0.03)

    # Said in rows, heard in columns.
    assert page.rows[page.rows.index(["", "neutral", "happy", "sad", "angry", "proud", "none"]) + 1 :][:3] == [
        ["said neutral", "0", "0", "1", "0", "0", "0"],
        ["said happy", "0", "1", "0", "0", "0", "0"],
        ["said sad", "0", "0", "1", "0", "0", "0"],
    ]
    # First audio after 0.21, 0.22, 0.23 and 0.24 s.
    assert ["first audio", "0.225 s", "0.239 s"] in page.rows and ["real-time factor", "0.250", "0.250"] in page.rows
    labels = [found["aria-label"] for found in page.all("div", role="img")]
    assert len(labels) == 6 and labels[2].startswith("encoder done 0.050 s, ")
    assert labels[2].endswith("first audio 0.210 s")


def test_timeline():
    marks = answer(1, "sad").reply.marks  # 50, 30, 20, 100 and 10 ms
    assert [stage["width"] for stage in timeline(marks, 0.5)] == pytest.approx([10, 6, 4, 20, 2])
    assert timeline({}, 0.5) == []


def test_page_loads_nothing(tmp_path, answers):
    read_page(write_report(tmp_path / "report.html", "Title", answers)).assert_self_contained()


def test_what_strangers_wrote_stays_text(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>'\""
    wild = answer(1, "sad", said=evil, speaker=evil, id=evil, emotion_spoken=evil, emotion_heard=evil)
    wild.reply.text = evil
    path = write_report(
        tmp_path / "r.html", evil, [wild], [Metric(evil, 1, note=evil)], [TrainingRun(evil, {evil: evil})]
    )
    page = read_page(path)
    assert len(page.all("script")) == 1 and not page.all("img", src="x") and page.text.count(evil) > 8


def test_page_without_answers(tmp_path):
    page = read_page(write_report(tmp_path / "report.html", "Nothing", []))
    assert not page.all("article") and "0 spoken questions" in page.text


def test_page_of_answers_in_text_alone(tmp_path):
    alone = [answer(1, "sad", spoken=False, waveform=np.zeros(0, np.float32))]
    page = read_page(write_report(tmp_path / "report.html", "Text", alone))
    assert not page.all("audio") and ["first text token", "0.080 s", "0.080 s"] in page.rows


def test_pairs(answers):
    groups = group_pairs(answers, lambda a: a.pair, lambda a: a.emotion_spoken)
    assert [[a.id for a in group] for group in groups] == [["q-3", "q-1", "q-4"], ["q-2"], ["q-5"]]


@pytest.mark.parametrize("width", [60, 100, 160])
def test_table(answers, width):
    lines = format_table(answers, width).splitlines()
    assert max(map(len, lines)) <= max(width, 77)
    text = re.sub(r"\s+", " ", " ".join(lines))
    for words in ("said", "emotion heard", "0.210 s", "0.25"):
        assert words in text
    if width == 160:
        [line] = [line for line in lines if "Reply 3" in line]
        cells = ["It's <late>.", "sad, was", "Reply 3 <b>.", "sad (misfit)", "0.230 s", "0.25"]
        assert re.split(r"\s{2,}", line) == cells
        [line] = [line for line in lines if "Reply 5" in line]
        assert re.split(r"\s{2,}", line)[-2:] == ["-", "-"]


def test_markdown():
    assert escape_markdown("a\n b* `c*` <d>|\x00 e_f _g_ `") == r"a b\* `c*` \<d\>| e_f \_g\_ \`"
    assert markdown_table(["a", "b|c"], [["1", "2"]]) == "| a | b\\|c |\n| --- | --- |\n| 1 | 2 |"


def test_table_in_a_terminal_of_another_encoding(answers):
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding="ascii")
    print_table([answer(1, "sad", said="Café?")], file)
    file.flush()
    assert "Caf??" in buffer.getvalue().decode("ascii")


def test_audio_of_other_rates_and_levels():
    broken = np.concatenate([tone(0.5, rate=22_050), np.full(10, np.nan, np.float32), np.full(10, 7, np.float32)])
    for rate, stored in ((22_050, 22_050), (20_000, 24_000)):
        waveform, found = sf.read(io.BytesIO(decode(audio_uri(broken, rate))))
        assert found == stored and len(waveform) == pytest.approx(len(broken) * stored / rate, abs=2)
    assert to_array(broken).max() == 1.0 and not np.isnan(to_array(broken)).any()
    with pytest.raises(ValueError, match=r"waveform: must be \(T,\).*\(2, 3\)"):
        to_array(np.zeros((2, 3)))


def test_picture():
    from PIL import Image

    painter = MelPainter(loudest=0.0)
    picture = Image.open(io.BytesIO(decode(painter.png_uri(tone(1.0, 300), RATE)))).convert("RGBA")
    ink = np.asarray(picture)[..., 3]
    assert ink.shape == (64, 80)
    assert 63 - ink[:, 40].argmax() < 10  # a low tone is drawn at the bottom
    quiet = Image.open(io.BytesIO(decode(painter.png_uri(tone(1.0, 300, level=0.02), RATE)))).convert("RGBA")
    assert np.asarray(quiet)[..., 3].max() < ink.max()
    assert Image.open(io.BytesIO(decode(painter.png_uri(np.zeros(3, np.float32), RATE)))).size == (1, 64)


def test_metric():
    assert Metric("a", 0.85, 0.85).met and not Metric("a", 0.849, 0.85).met
    assert Metric("a", 0.5, 0.5, at_most=True).met and not Metric("a", 0.51, 0.5, at_most=True).met
    assert Metric("a", 1.0).met is None and Metric("a", float("nan"), 0.5).met is False
    assert Metric("a", 0.8751, 0.9).format(0.8751) == "87.5\xa0%" and Metric("a", 1.0).format(1.0) == "100\xa0%"
    assert Metric("a", 0.2, 0.5, True, "seconds").format_target() == "at most 0.5\xa0s"
    assert Metric("a", float("nan")).format(float("nan")) == "no value"
    with pytest.raises(ValueError, match="unit: got 'ms'"):
        Metric("a", 1.0, unit="ms")


def test_stages_and_percentiles():
    marks = {"encoder_done": 0.1, "first_text_token": 0.3, "first_audio": 0.25}
    # A stage that is missing is left out; one that came before its forerunner took no time.
    assert stage_durations(marks) == [
        ("encoder_done", 0.1),
        ("first_text_token", pytest.approx(0.2)),
        ("first_audio", 0.0),
    ]
    assert percentile([3, 1, 2], 50) == 2 and percentile([0, 10], 95) == pytest.approx(9.5)
    assert np.isnan(percentile([], 50))


def test_hardware():
    facts = describe_hardware()
    assert {"processor", "cores", "accelerator", "software"} <= set(facts) and torch.__version__ in facts["software"]


def test_control_characters_of_an_untrained_model(tmp_path):
    wild = answer(1, "sad")
    wild.reply.text = "a\x00b\x1b[31m\nc" + " word" * 300
    source = write_report(tmp_path / "report.html", "Wild", [wild]).read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x08\x0e-\x1f]", source) and "a b [31m c word" in source
    lines = format_table([wild], 100).splitlines()
    assert len(lines) == 2 + 1 + 4 and "..." in lines[-1]  # head of two lines, rule, four lines


def test_run_from_tensorboard(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    # A run that was stopped after step 300 and resumed from step 250: 90 s and 10 s.
    for version, (steps, start, pace) in enumerate([(range(0, 301), 1000.0, 0.3), (range(250, 351), 5000.0, 0.1)]):
        writer = SummaryWriter(str(tmp_path / "1_understanding" / f"version_{version}"))
        for step in steps:
            writer.add_scalar("train/loss", step + 1000 * version, step, start + pace * (step - steps[0]))
        writer.add_scalar("other", 1.0, 0, start)
        writer.close()
    run = read_training_run(tmp_path / "1_understanding")
    assert run.name == "1_understanding" and run.facts == {"last step": "350", "logged over": "1 min 40 s"}
    assert list(run.curves) == ["train/loss"]
    curve = run.curves["train/loss"]
    assert len(curve) <= 200 and curve[-1] == (350, 1350.0) and (250, 1250.0) in curve and (248, 248.0) in curve
    with pytest.raises(ValueError, match="no TensorBoard files .* below .*nowhere"):
        read_training_run(tmp_path / "nowhere")
