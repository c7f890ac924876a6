"""The report page and the table: what stands in them is read back."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import soundfile as sf
import torch

from lightning_s2s.evaluation.answer import Answer, Figure, Run, percentile, stage_durations
from lightning_s2s.evaluation.hardware import describe_hardware
from lightning_s2s.evaluation.runs import read_run
from lightning_s2s.reporting.answers_report import group_pairs, write_report
from lightning_s2s.reporting.pictures import MelPainter, audio_uri, to_array
from lightning_s2s.reporting.tables import format_table, print_table
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
    return Answer(**(values | changes))


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


class Page(HTMLPage):
    def all(self, tag, css_class=""):
        return [a for t, a in self.tags if t == tag and css_class in a.get("class", "")]


def decode(uri):
    return base64.b64decode(uri.partition("base64,")[2])


def test_page(tmp_path, answers):
    figures = [
        Figure("emotion recognised", 0.75, 0.85, note="chance: 25 %"),
        Figure("first audio", 0.312, 0.5, at_most=True, unit="seconds"),
        Figure("bare", 3.0, unit=""),
    ]
    runs = [Run("stage 1", {"steps": "600"}, {"train/loss": [(0, 3.0), (10, 1.0), (20, 2.0)], "one": [(0, 1.0)]})]
    chip = {"processor": "<chip>"}
    path = write_report(tmp_path / "new" / "report.html", "Title & more", answers, figures, runs, chip)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]  # nothing temporary is left
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    text = re.sub(r"\s+", " ", " ".join(page.words))

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
        assert words in text, words

    cards = page.all("article", "answer")
    # The pair comes first, its emotions in the fixed order and others behind; then the lone ones as they were asked.
    assert [card["data-emotion"] for card in cards] == ["neutral", "sad", "proud", "happy", "angry"]
    assert [card["data-order"] for card in cards] == ["2", "0", "3", "1", "4"]
    assert [card["data-heard"] for card in cards] == ["no", "yes", "yes", "yes", "no"]
    assert [card["data-fits"] for card in cards] == ["no", "yes", "no", "yes", "yes"]
    assert [card["data-audio"] for card in cards] == ["0.2300", "0.2100", "0.2400", "0.2200", "0.0000"]
    assert [card["class"] for card in cards] == ["answer"] * 3 + ["answer single"] * 2
    assert len(page.all("article", "pair")) == 1
    assert [box["value"] for box in page.all("input")] == ["neutral", "happy", "sad", "angry", "proud"]

    clips = page.all("audio")
    assert len(clips) == len(page.all("button", "play")) == len(page.all("img")) == 9  # one reply has no sound
    waveform, rate = sf.read(io.BytesIO(decode(clips[0]["src"])), dtype="float32")
    assert (rate, len(waveform)) == (RATE, round(0.8 * RATE))
    assert np.abs(waveform[2000:-2000]).max() == pytest.approx(0.3, abs=0.03)
    # Within a group a picture is as wide as its sound is long: 0.8, 0.6 and 0.9 s.
    widths = [tag["style"] for tag in page.all("span", "track")]
    assert [widths[0], widths[2], widths[4]] == ["--length:88.9%", "--length:66.7%", "--length:100.0%"]
    assert all(button["aria-label"] for button in page.all("button", "play"))

    # A bar of 5 stages on the page's scale (0.24 s): 50, 30, 20, 100 and 10 ms.
    timeline = page.all("div", "timeline")[2]
    assert timeline["aria-label"].endswith("first audio 0.210 s")
    spans = [a["style"] for t, a in page.tags if t == "span" and re.fullmatch(r"s\d", a.get("class", ""))]
    stages = [float(style.removeprefix("width:").removesuffix("%")) for style in spans]
    assert stages[10:15] == pytest.approx([20.83, 12.5, 8.33, 41.67, 4.17], abs=0.01)


def test_page_loads_nothing(tmp_path, answers):
    source = write_report(tmp_path / "report.html", "Title", answers).read_text(encoding="utf-8")
    page = Page(source)
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "poster", "srcset"):
            value = attributes.get(name) or "data:"
            assert value.startswith(("data:", "#")), value
    assert "http://" not in source and "https://" not in source and "@import" not in source and "url(" not in source
    [policy] = [tag["content"] for tag in page.all("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_page_without_answers(tmp_path):
    page = Page(write_report(tmp_path / "report.html", "Nothing", []).read_text(encoding="utf-8"))
    assert not page.all("article") and "0 spoken questions" in " ".join(page.words)


def test_page_of_answers_in_text_alone(tmp_path):
    alone = [answer(1, "sad", spoken=False, waveform=np.zeros(0, np.float32))]
    page = Page(write_report(tmp_path / "report.html", "Text", alone).read_text(encoding="utf-8"))
    assert not page.all("audio") and "first text token" in " ".join(page.words)


def test_pairs(answers):
    assert [[a.id for a in group] for group in group_pairs(answers)] == [["q-3", "q-1", "q-4"], ["q-2"], ["q-5"]]


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


def test_figure():
    assert Figure("a", 0.85, 0.85).met and not Figure("a", 0.849, 0.85).met
    assert Figure("a", 0.5, 0.5, at_most=True).met and not Figure("a", 0.51, 0.5, at_most=True).met
    assert Figure("a", 1.0).met is None and Figure("a", float("nan"), 0.5).met is False
    assert Figure("a", 0.8751, 0.9).format(0.8751) == "87.5\xa0%" and Figure("a", 1.0).format(1.0) == "100\xa0%"
    assert Figure("a", 0.2, 0.5, True, "seconds").format_target() == "at most 0.5\xa0s"
    assert Figure("a", float("nan")).format(float("nan")) == "no value"
    with pytest.raises(ValueError, match="unit: got 'ms'"):
        Figure("a", 1.0, unit="ms")


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
    run = read_run(tmp_path / "1_understanding")
    assert run.name == "1_understanding" and run.facts == {"last step": "350", "logged over": "1 min 40 s"}
    assert list(run.curves) == ["train/loss"]
    curve = run.curves["train/loss"]
    assert len(curve) <= 200 and curve[-1] == (350, 1350.0) and (250, 1250.0) in curve and (248, 248.0) in curve
    with pytest.raises(ValueError, match="no TensorBoard files .* below .*nowhere"):
        read_run(tmp_path / "nowhere")
