"""Every form and format of audio, and everything that can be wrong with it."""

from __future__ import annotations

import logging
import os
import unicodedata
import zipfile
from functools import partial

import numpy as np
import pytest
import soundfile
import torch

from lightning_s2s.data.audio import (
    CLIPPED,
    AudioError,
    AudioReference,
    as_waveform,
    audio_duration_sec,
    decode_audio,
    load_audio,
)
from parts import sounds

RATE = 16_000
tone = partial(sounds.tone, seconds=1.0, hz=440.0, level=0.5)


def loudest_hz(waveform: np.ndarray, rate: int = RATE) -> float:
    return float(np.abs(np.fft.rfft(waveform)).argmax()) * rate / len(waveform)


FORMATS = [
    ("wav", {"subtype": "PCM_16"}, 1e-4),
    ("wav", {"subtype": "FLOAT"}, 1e-7),
    ("flac", {}, 1e-4),
    ("ogg", {"format": "OGG", "subtype": "VORBIS"}, None),
    ("opus", {"format": "OGG", "subtype": "OPUS"}, None),
    ("mp3", {"format": "MP3"}, None),
]


@pytest.mark.parametrize(("suffix", "options", "tolerance"), FORMATS)
@pytest.mark.parametrize("zipped", [False, True])
def test_formats(tmp_path, suffix, options, tolerance, zipped):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(), RATE, **options)
    reference = path.name
    if zipped:
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("first.txt", "something else")
            archive.write(path, path.name)
            info = archive.getinfo(path.name)
        reference = f"a.zip:{info.header_offset + 30 + len(info.filename)}:{info.file_size}"
        path.unlink()
    waveform = load_audio(reference, tmp_path, RATE)
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    if tolerance is not None:
        np.testing.assert_allclose(waveform, tone(), atol=tolerance)
    else:  # lossy, so by ear: as long, as high and as loud
        assert abs(len(waveform) - RATE) <= 2304
        assert loudest_hz(waveform[2000:14000]) == pytest.approx(440, abs=2)
        assert np.sqrt((waveform[2000:14000] ** 2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    duration = audio_duration_sec(AudioReference.parse(reference, tmp_path))
    assert duration == pytest.approx(len(waveform) / RATE, abs=1e-6)


def test_a_part_of_a_file(tmp_path):
    soundfile.write(tmp_path / "ramp.wav", np.arange(1000, dtype=np.float32) / 1000, RATE, subtype="FLOAT")
    part = load_audio("ramp.wav:100:50", tmp_path, RATE)
    np.testing.assert_allclose(part, np.arange(100, 150) / 1000, atol=1e-7)
    assert audio_duration_sec(AudioReference.parse("ramp.wav:100:50", tmp_path)) == 50 / RATE


def test_an_absolute_path_needs_no_folder(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    assert len(load_audio(str(tmp_path / "a.wav"), "/elsewhere", RATE)) == RATE


def test_stereo_is_averaged(tmp_path):
    left_right = np.stack([np.full(RATE, 0.5), np.full(RATE, -0.1)], axis=1)
    soundfile.write(tmp_path / "a.wav", left_right, RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_audio("a.wav", tmp_path, RATE), np.full(RATE, 0.2), atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_other_rates_are_resampled(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate=rate), rate, subtype="FLOAT")
    waveform = load_audio("a.wav", tmp_path, RATE)
    assert waveform.dtype == np.float32
    assert len(waveform) == RATE
    np.testing.assert_allclose(waveform[1000:-1000], tone()[1000:-1000], atol=1e-3)
    assert audio_duration_sec(AudioReference.parse("a.wav", tmp_path)) == 1.0


def test_a_part_counts_samples_of_the_file(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(rate=8_000), 8_000)
    assert len(load_audio("a.wav:4000:2000", tmp_path, RATE)) == 4000
    assert audio_duration_sec(AudioReference.parse("a.wav:4000:2000", tmp_path)) == 0.25


def test_clipped_audio_is_warned_of_once(tmp_path, caplog):
    soundfile.write(tmp_path / "a.wav", np.clip(tone(level=2.0), -1, 1), RATE)
    soundfile.write(tmp_path / "loud.wav", tone(level=0.99), RATE)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert np.abs(load_audio("a.wav", tmp_path, RATE)).max() <= 1.0
            load_audio("loud.wav", tmp_path, RATE)
    assert [record.message.split(":")[0] for record in caplog.records] == [f"audio {tmp_path}/a.wav is clipped"]
    assert [remark.reason for remark in decode_audio(AudioReference.parse("a.wav", tmp_path)).remarks] == [CLIPPED]


def test_floats_beyond_full_scale_are_cut(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(level=3.0), RATE, subtype="FLOAT")
    audio = decode_audio(AudioReference.parse("a.wav", tmp_path))
    assert [remark.reason for remark in audio.remarks] == [CLIPPED]
    assert audio.waveform.max() == 1.0
    assert audio.waveform.min() == -1.0


def bad_files(folder):
    (folder / "text.wav").write_text("not audio")
    (folder / "nothing.wav").write_bytes(b"")
    soundfile.write(folder / "empty.wav", np.zeros(0, dtype=np.float32), RATE)
    soundfile.write(folder / "good.wav", tone(), RATE)
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        samples = tone()
        samples[100] = value
        soundfile.write(folder / f"{name}.wav", samples, RATE, subtype="FLOAT")
    with zipfile.ZipFile(folder / "deflated.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "good.wav", "good.wav")


@pytest.mark.parametrize(
    ("reference", "reason", "message"),
    [
        ("missing.wav", "missing audio", "there is no file .*missing.wav"),
        ("missing.zip:0:10", "missing audio", "there is no file .*missing.zip"),
        ("text.wav", "unreadable audio", "expected a wav, flac, ogg, opus or mp3 file"),
        ("nothing.wav", "unreadable audio", "can't be read"),
        ("empty.wav", "empty audio", "has no samples"),
        ("good.wav:0:0", "empty audio", "has no samples"),
        ("good.wav:15990:20", "unreadable audio", r"15990..16010 lie outside the file, which has 16000"),
        ("nan.wav", "not finite audio", "NaN or infinite"),
        ("inf.wav", "not finite audio", "NaN or infinite"),
        ("deflated.zip", "unreadable audio", r"allowed: FILE, FILE:start:frames or ARCHIVE.zip:offset:bytes"),
        ("deflated.zip:38:1000", "unreadable audio", r"one stored \(uncompressed\)"),
        ("deflated.zip:0:99999999", "unreadable audio", "lie outside the archive"),
    ],
)
def test_bad_audio(tmp_path, reference, reason, message):
    bad_files(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_audio(reference, tmp_path, RATE)
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)
    if reason != "not finite audio":  # a header can't tell that
        with pytest.raises(ValueError, match=message):
            audio_duration_sec(AudioReference.parse(reference, tmp_path))


# --- names --------------------------------------------------------------------------------------------------------


def test_a_file_of_this_very_name(tmp_path):
    """`take:12:30` is a file where there is no `take` that it could be a part of."""
    soundfile.write(tmp_path / "take:12:30", tone(seconds=0.5), RATE, format="WAV")
    assert len(load_audio("take:12:30", tmp_path, RATE)) == 8000
    assert audio_duration_sec(AudioReference.parse("take:12:30", tmp_path)) == 0.5
    soundfile.write(tmp_path / "take", tone(), RATE, format="WAV")
    assert len(load_audio("take:12:30", tmp_path, RATE)) == 30


@pytest.mark.parametrize(
    ("reference", "hint"),
    [
        ("~/q.wav", "~ isn't expanded here: write the whole path"),
        ("https://example.org/q.wav", "URLs aren't fetched: download it and name the file"),
        ("s3://bucket/q.wav", "URLs aren't fetched"),
        ("sub\\q.wav", "folders are separated by / here"),
        ("q.wav ", "there is one without the space around its name"),
        (unicodedata.normalize("NFD", "müde.wav"), "looks the same, in Unicode's form NFC: rename it, or write it so"),
        (unicodedata.normalize("NFC", "é.wav"), "looks the same, in Unicode's form NFD"),
    ],
)
def test_hints_at_what_is_meant(tmp_path, reference, hint):
    (tmp_path / "sub").mkdir()
    for name in ("q.wav", "sub/q.wav", unicodedata.normalize("NFC", "müde.wav"), unicodedata.normalize("NFD", "é.wav")):
        soundfile.write(tmp_path / name, tone(), RATE)
    for form in (reference, f"{reference}:0:10"):
        with pytest.raises(AudioError, match="there is no file ") as caught:
            load_audio(form, tmp_path, RATE)
        assert caught.value.reason == "missing audio" and hint in str(caught.value)


def test_names_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "raw.raw").write_bytes(bytes(100))
    for name, message in (
        ("pipe.wav", "is a pipe or a device; a file is needed"),
        ("folder.wav", "is a folder; a file is needed"),
        ("raw.raw", "it is raw samples, without a header"),
        ("a" * 5000 + ".wav", "can't be found"),
        ("a\0b.wav", "there is no file"),
        ("a\ud800.wav", "there is no file"),
        ("", "is a folder"),
    ):
        with pytest.raises(AudioError, match=message):
            load_audio(name, tmp_path, RATE)


@pytest.mark.parametrize("place", [f"0:{2**62}", f"{2**62}:10", f"0:{10**400}", f"{10**400}:1", f"{2**63}:{2**63}"])
def test_places_beyond_any_file(tmp_path, place):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", "b")
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    for name in ("a.zip", "a.wav"):
        for use in (audio_duration_sec, decode_audio):
            with pytest.raises(AudioError, match="lie outside the (archive|file), which has"):
                use(AudioReference.parse(f"{name}:{place}", tmp_path))


# --- samples of a program -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([0, 16384, -32768], np.int16), [0, 0.5, -1]),
        (np.array([0, 2**30, -(2**31)], np.int32), [0, 0.5, -1]),
        (np.array([128, 192, 0], np.uint8), [0, 0.5, -1]),
        (np.array([0, 64, -128], np.int8), [0, 0.5, -1]),
        (np.array([0, 0.5, -1], np.float64), [0, 0.5, -1]),
        (np.array([0, 0.5, -1], np.float16), [0, 0.5, -1]),
        (torch.tensor([0, 16384, -32768], dtype=torch.int16), [0, 0.5, -1]),
        (torch.tensor([0, 0.5, -1], dtype=torch.bfloat16), [0, 0.5, -1]),
        (torch.tensor([0, 0.5, -1], requires_grad=True), [0, 0.5, -1]),
        ([0, 0.5, -1], [0, 0.5, -1]),
        ([0, 1, -1], [0, 1, -1]),
        (np.zeros(0, np.float32), []),
        (np.zeros(0, np.int16), []),
        ([], []),
    ],
)
def test_samples_of_a_program(samples, expected):
    found = as_waveform(samples)
    assert found.dtype == np.float32
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.array([0, 20_000], np.int64), "got samples of type int64; allowed: floats in .* int16, int32 or uint8"),
        ([0, 20_000], "got samples of type int64"),
        (np.array([0, 1], np.uint16), "got samples of type uint16"),
        (np.array([True]), "got samples of type bool"),
        (np.array([1j]), "got samples of type complex128"),
        (torch.tensor([1j]), "got samples of type complex64"),
        (np.array(["a"]), "got samples of type"),
        ([None], "got samples of type object"),
        ("abc", r"must be \(T,\)"),
        ([[0.0], [0.0, 1.0]], "can't be read as an array"),
        (np.zeros((2, 100)), r"must be \(T,\), mono; got shape \(2, 100\)"),
        (np.float32(0), r"must be .* got shape \(\)"),
        (np.array([0, np.nan]), "holds NaN or infinite samples"),
        (np.array([0, np.inf]), "holds NaN or infinite samples"),
        (np.array([0.0, 20_000.0]), "reaches 20000, full scale is 1; divide .* by 32768"),
    ],
)
def test_samples_that_are_none(samples, message):
    with pytest.raises(ValueError, match=f"^waveform: {message}"):
        as_waveform(samples)
