"""Units for a manifest: what gets some, batches by length, a kill and what follows, paths, broken rows, the command."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lightning_s2s import cli
from lightning_s2s.components.contracts import Vocoder
from lightning_s2s.construction.units import Clip, add_units, batches_by_length
from lightning_s2s.data.manifest import ManifestError, read_manifest

RATE = 16_000


class LoudnessVocoder(Vocoder):
    """A unit for each half second: its peak in hundredths. Keeps the shapes of its batches."""

    sample_rate, samples_per_unit, num_units = 22_050, 11_025, 101
    tokenizer_sample_rate = RATE

    def __init__(self, dies_at: int | None = None):
        super().__init__()
        self.batches: list[tuple[int, ...]] = []
        self.dies_at = dies_at

    def tokenize(self, waveform, lengths):
        if len(self.batches) == self.dies_at:
            raise KeyboardInterrupt
        self.batches.append(tuple(lengths.tolist()))
        counts = lengths // 8000
        rows = [
            (clip[: count * 8000].view(-1, 8000).abs().amax(1) * 100).round().long()
            for clip, count in zip(waveform, counts.tolist(), strict=True)
        ]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), counts

    def synthesize(self, units):
        raise NotImplementedError

    start_stream = stream = synthesize


SETTINGS = {"class_path": "loudness"}


def row(*items: dict, question: dict | None = None) -> dict:
    user = {"text": "What?"} | (question or {})
    return {"messages": [{"role": "user", "content": [user]}, {"role": "assistant", "content": list(items)}]}


def said(audio: str, **more) -> dict:
    return {"text": "Well.", "audio": audio} | more


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Clips of 0.5 s to 2.5 s whose level rises by 0.1 each half second, and six rows."""
    for number in range(1, 6):
        levels = np.repeat(np.arange(1, number + 1) * 0.1, 8000)
        soundfile.write(tmp_path / f"{number}.wav", levels.astype(np.float32), RATE, subtype="FLOAT")
    rows = [
        row(said("3.wav")),
        row(said("1.wav"), said("5.wav:8000:16000")),
        {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]},
        row(said("2.wav", speech_units="<|audio_7|>"), question={"audio": "4.wav"}),
        row(said("5.wav", extra=[1])),
        row(said(str(tmp_path / "4.wav"))),
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in rows))
    return path


def units_of(path: Path, role: str = "assistant") -> list[list[str | None]]:
    """`speech_units` of every item of that role, by row."""
    return [
        [item.get("speech_units") for item in message["content"]]
        for found in read_manifest(path)
        for message in found["messages"]
        if message["role"] == role and isinstance(message["content"], list)
    ]


def tokens(*units: int) -> str:
    return "".join(f"<|audio_{unit}|>" for unit in units)


EXPECTED = [
    [tokens(10, 20, 30)],
    [tokens(10), tokens(20, 30)],
    [tokens(7)],
    [tokens(10, 20, 30, 40, 50)],
    [tokens(10, 20, 30, 40)],
]


def test_audio_of_the_assistant_gets_units_and_all_else_stays(corpus):
    out = corpus.with_name("out.jsonl")
    report = add_units(LoudnessVocoder(), corpus, out)
    assert units_of(out) == EXPECTED
    assert units_of(out, "user")[2] == [None]
    assert (report.num_clips, report.num_kept, report.num_rows, report.num_resumed) == (5, 1, 6, 0)
    before, after = read_manifest(corpus), read_manifest(out)
    for old, new in zip(before, after, strict=True):
        for part in (old, new):
            part.pop("manifest")
            for message in part["messages"]:
                for item in message["content"] if isinstance(message["content"], list) else ():
                    item.pop("speech_units", None)
        assert old == new
    assert sorted(path.name for path in corpus.parent.glob("*out*")) == ["out.jsonl"]


def test_roles_and_redo(corpus):
    out = corpus.with_name("out.jsonl")
    report = add_units(LoudnessVocoder(), corpus, out, roles=("user", "assistant"), redo=True)
    assert units_of(out, "user")[2] == [tokens(10, 20, 30, 40)]
    assert units_of(out)[2] == [tokens(10, 20)]
    assert (report.num_clips, report.num_kept) == (7, 0)


def test_batches_hold_clips_of_like_length(corpus):
    vocoder = LoudnessVocoder()
    add_units(vocoder, corpus, corpus.with_name("out.jsonl"), batch_duration_sec=4.0)
    assert vocoder.batches == [(40_000,), (32_000, 24_000), (16_000, 8000)]


def test_batches_by_length():
    clips = [Clip(line, 1, 0, sec) for line, sec in enumerate([1.0, 9.0, 3.0, 3.0, 2.0], start=1)]
    found = [[clip.duration_sec for clip in batch] for batch in batches_by_length(clips, 6.0, 8)]
    assert found == [[9.0], [3.0, 3.0], [2.0, 1.0]]
    assert [len(batch) for batch in batches_by_length(clips, 100.0, 2)] == [2, 2, 1]


def test_a_run_that_was_killed_goes_on_and_gives_the_same_file(corpus):
    whole, out = corpus.with_name("whole.jsonl"), corpus.with_name("out.jsonl")
    add_units(LoudnessVocoder(), corpus, whole, SETTINGS, batch_duration_sec=4.0)
    with pytest.raises(KeyboardInterrupt):
        add_units(LoudnessVocoder(dies_at=2), corpus, out, SETTINGS, batch_duration_sec=4.0)
    journal = out.with_name("out.jsonl.partial")
    assert not out.exists() and len(journal.read_text().splitlines()) == 1 + 3
    with journal.open("a") as file:
        file.write('{"place": [2, 1')  # a kill in the middle of a line
    again = LoudnessVocoder()
    report = add_units(again, corpus, out, SETTINGS, batch_duration_sec=4.0)
    assert again.batches == [(16_000, 8000)]  # only what was missing
    assert (report.num_resumed, report.num_clips) == (3, 5)
    assert out.read_bytes() == whole.read_bytes() and not journal.exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda arguments, corpus: arguments.update(settings={"class_path": "other"}), "started with another vocoder"),
        (lambda arguments, corpus: arguments.update(roles=["user"]), "started with another roles"),
        (lambda arguments, corpus: corpus.write_text(corpus.read_text() + "\n"), "started with another manifest_in"),
    ],
)
def test_unfinished_work_of_another_kind_is_not_gone_on_with(corpus, change, expected):
    out, arguments = corpus.with_name("out.jsonl"), {"settings": SETTINGS}
    with pytest.raises(KeyboardInterrupt):
        add_units(LoudnessVocoder(dies_at=0), corpus, out, **arguments)
    change(arguments, corpus)
    with pytest.raises(ValueError, match=rf"out\.jsonl\.partial: was {expected}; repeat that command, or remove"):
        add_units(LoudnessVocoder(), corpus, out, **arguments)
    out.with_name("out.jsonl.partial").write_text("something else\n")
    with pytest.raises(ValueError, match=r"partial: is no journal of `units`"):
        add_units(LoudnessVocoder(), corpus, out, SETTINGS)


def test_paths_hold_in_the_folder_of_the_new_manifest(corpus, tmp_path):
    (tmp_path / "far" / "away").mkdir(parents=True)
    np.save(tmp_path / "voice.npy", np.zeros(512, np.float32))
    corpus.write_text(json.dumps(row(said("5.wav:8000:16000", spk_emb="voice.npy"), said(str(tmp_path / "1.wav")))))
    out = tmp_path / "far" / "away" / "out.jsonl.gz"
    add_units(LoudnessVocoder(), corpus, out)
    (found,) = [json.loads(line) for line in gzip.decompress(out.read_bytes()).splitlines()]
    items = found["messages"][1]["content"]
    assert [item["audio"] for item in items] == ["../../5.wav:8000:16000", str(tmp_path / "1.wav")]
    assert items[0]["spk_emb"] == "../../voice.npy"
    twin = tmp_path / "far" / "away" / "twin.jsonl.gz"
    add_units(LoudnessVocoder(), corpus, twin)
    assert twin.read_bytes() == out.read_bytes()
    again = tmp_path / "far" / "again.jsonl"
    report = add_units(LoudnessVocoder(), out, again, redo=True)
    assert report.num_clips == 2 and units_of(again) == [[tokens(20, 30), tokens(10)]]


@pytest.fixture
def broken(corpus) -> Path:
    """The corpus with four rows more: no such file, no JSON, audio that is text, less than a unit."""
    (corpus.parent / "text.wav").write_text("no audio")
    soundfile.write(corpus.parent / "short.wav", np.zeros(1000, np.float32), RATE)
    more = [row(said("6.wav")), "{", row(said("text.wav", audio_sec=1.0)), row(said("short.wav"))]
    lines = [line if isinstance(line, str) else json.dumps(line) for line in more]
    corpus.write_text(corpus.read_text() + "\n".join(lines) + "\n")
    return corpus


def test_broken_rows_are_left_out_and_counted(broken, caplog):
    out = broken.with_name("out.jsonl")
    report = add_units(LoudnessVocoder(), broken, out, on_error="skip")
    assert units_of(out) == EXPECTED and report.num_rows == 6
    assert report.problems == {
        "missing audio": 1, "not JSON": 1, "unreadable audio": 1, "audio shorter than a unit": 1,
    }  # fmt: skip
    assert f"left out: {broken}:7: audio" in caplog.text and f"{broken}:10: lasts 0.062 s" in caplog.text


def test_a_broken_row_stops_by_default_with_file_and_line(broken):
    out = broken.with_name("out.jsonl")
    with pytest.raises(ManifestError, match=rf"{broken}:7: audio .*6\.wav': there is no file"):
        add_units(LoudnessVocoder(), broken, out)
    assert not out.exists()


def test_nothing_is_written_over_or_into_nowhere(corpus):
    out = corpus.with_name("out.jsonl")
    out.write_text("mine")
    with pytest.raises(ValueError, match=r"out\.jsonl: exists already; remove it"):
        add_units(LoudnessVocoder(), corpus, out)
    with pytest.raises(ValueError, match="the folder .*nowhere does not exist"):
        add_units(LoudnessVocoder(), corpus, corpus.parent / "nowhere" / "out.jsonl")
    with pytest.raises(ValueError, match="there is no file"):
        add_units(LoudnessVocoder(), corpus.with_name("none.jsonl"), corpus.with_name("new.jsonl"))
    assert out.read_text() == "mine"


def test_half_a_character_is_found_before_any_work(corpus):
    corpus.write_text(corpus.read_text() + r'{"messages": [{"role": "user", "content": "a\ud800"}]}' + "\n")
    vocoder = LoudnessVocoder()
    with pytest.raises(ManifestError, match=rf"{corpus}:7: messages\[0\].content: has half a character"):
        add_units(vocoder, corpus, corpus.with_name("out.jsonl"))
    assert vocoder.batches == []
    report = add_units(vocoder, corpus, corpus.with_name("out.jsonl"), on_error="skip")
    assert report.problems == {"not UTF-8": 1} and report.num_rows == 6


def test_a_wrong_duration_is_named(corpus, caplog):
    """Batches are made for what is stated."""
    corpus.write_text(corpus.read_text() + json.dumps(row(said("1.wav", audio_sec=7.0))) + "\n")
    with pytest.raises(ManifestError, match=rf"{corpus}:7: audio_sec: got 7, but '1.wav' lasts 0.500 s"):
        add_units(LoudnessVocoder(), corpus, corpus.with_name("out.jsonl"))


def test_odd_targets(corpus, tmp_path):
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    (tmp_path / "a.jsonl.partial").mkdir()
    for name, message in (
        ("link.jsonl", "link.jsonl: exists already"),
        ("in.jsonl", "in.jsonl: exists already"),
        (".", "exists already"),
        ("a.jsonl", r"a.jsonl.partial: is no file, and unfinished work would lie there"),
    ):
        with pytest.raises(ValueError, match=message):
            add_units(LoudnessVocoder(), corpus, tmp_path / name)
    assert len(read_manifest(corpus)) == 6


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


POCKET = ["--vocoder", "pocket", "--vocoder.encoder_width", "8", "--vocoder.decoder_width", "8", "--device", "cpu"]


def test_the_command_adds_units_of_any_vocoder(run, corpus):
    out = corpus.with_name("out.jsonl")
    torch.manual_seed(0)
    code, said_out, _ = run("units", *POCKET, corpus, out)
    assert code == 0
    assert said_out.splitlines() == [
        f"{out}: 6 rows, 5 clips with new units",
        "1 clips had units and keep them (--redo makes them anew)",
    ]
    assert [found[0].count("<|audio_") for found in units_of(out)] == [37, 12, 1, 62, 50]


def test_the_command_says_how_many_rows_it_left_out(run, broken):
    out = broken.with_name("out.jsonl")
    code, said_out, _ = run("units", *POCKET, "--on-error", "skip", "--roles", "[user,assistant]", broken, out)
    assert code == 0
    assert "3 rows left out: 1 x missing audio; 1 x not JSON; 1 x unreadable audio" in said_out


def test_messages_have_lines_of_their_own(run, corpus):
    """Not on that of the bar, whether they warn or end the run."""
    for name in ("nan", "nan2"):
        soundfile.write(corpus.parent / f"{name}.wav", np.full(8000, np.nan, np.float32), RATE, subtype="FLOAT")
    corpus.write_text("".join(json.dumps(row(said(name))) + "\n" for name in ("1.wav", "nan.wav", "nan2.wav")))
    out = corpus.with_name("out.jsonl")
    code, _, err = run("units", *POCKET, "--on-error", "skip", "--max_batch_size", "1", corpus, out)
    assert code == 0
    lines = re.split(r"[\r\n]", err)
    for number, name in ((2, "nan"), (3, "nan2")):
        expected = f"left out: {corpus}:{number}: audio '{corpus.parent}/{name}.wav': has NaN or infinite samples"
        assert [line for line in lines if expected in line and "s of audio" not in line], err
    code, _, err = run("units", *POCKET, "--max_batch_size", "1", corpus, corpus.with_name("other.jsonl"))
    assert code == 1
    assert err.split("\n")[-2] == f"error: {corpus}:2: audio '{corpus.parent}/nan.wav': has NaN or infinite samples"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--vocoder", "pockt"], "error: vocoder: unknown vocoder 'pockt'; did you mean pocket?"),
        (["--vocoder", "pocket", "--vocoder.chekpoint", "x"], "option of pocket 'chekpoint'; did you mean checkpoint?"),
        ([*POCKET, "--on-error", "ignore"], "error: on_error: "),
        ([*POCKET, "--roles", "[system]"], "error: roles: got 'system'; allowed: 'user', 'assistant'"),
        ([*POCKET, "--device", "toaster"], "error: --device must be a device of this machine (cpu"),
        ([], "error: missing: vocoder"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(run, corpus, arguments, expected):
    code, _, err = run("units", *arguments, corpus, corpus.with_name("out.jsonl"))
    assert code == 2 and expected in err
