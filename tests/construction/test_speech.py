"""The engines that speak, and renderings that are kept: real ones where they are installed, stand-ins elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from lightning_s2s.construction.speech import Espeak, Kokoro, Piper, SpeechError
from lightning_s2s.construction.speech.base import decode
from lightning_s2s.construction.speech.renderings import Renderings, trim_silence
from lightning_s2s.support.extras import MissingPackageError
from parts.sounds import as_file, tone

# --- sound files in memory -------------------------------------------------------------------------------------------


def test_decoding_averages_channels_and_keeps_the_rate():
    stereo = np.stack([tone(), 0 * tone()], axis=1)
    waveform, sample_rate = decode(as_file(stereo, 22_050, subtype="FLOAT"))
    assert sample_rate == 22_050 and waveform.dtype == np.float32
    np.testing.assert_allclose(waveform, tone() / 2, atol=1e-6)
    assert decode(as_file(tone(), 24_000, format="FLAC"))[1] == 24_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got no audio"),
        (b'{"error": "overloaded"}', "got no audio that can be read"),
        (as_file(tone(), 16_000)[:-1000], "got 15000 of 16000 bytes of audio"),
    ],
)
def test_broken_sound(content, message):
    with pytest.raises(SpeechError, match=f"^{message}"):
        decode(content)


def test_a_stream_that_did_not_know_its_size_is_whole():
    content = bytearray(as_file(tone(), 16_000))
    content[40:44] = b"\xff\xff\xff\x7f"
    assert len(decode(bytes(content))[0]) == 8000


# --- kept renderings -------------------------------------------------------------------------------------------------


class Counting(Kokoro):
    """Speaks a tone between silences, and counts."""

    def __init__(self, has_emotions=False):
        self.has_emotions, self.times = has_emotions, 0

    def synthesise(self, text, voice, emotion="neutral", style="", speed=1.0):
        self.times += 1
        if text == "":
            raise SpeechError("nothing to say")
        quiet = np.zeros(4000, np.float32)
        return np.concatenate([quiet, tone() * (text != "hush"), quiet]), 16_000


def test_a_rendering_is_made_once(tmp_path):
    engine = Counting()
    renderings = Renderings(engine, tmp_path / "kept")
    first, sample_rate = renderings.speak("hello", "ann")
    assert sample_rate == 16_000 and len(first) == 8000 + 2 * 800  # 50 ms of silence stay at both ends
    again, _ = Renderings(engine, tmp_path / "kept").speak("hello", "ann", emotion="sad")
    assert engine.times == 1 and np.array_equal(first, again)
    for other in ({"text": "bye"}, {"voice": "bob"}, {"speed": 1.1}):
        renderings.speak(**({"text": "hello", "voice": "ann"} | other))
    assert engine.times == 4 and len(list((tmp_path / "kept").iterdir())) == 4


def test_emotion_and_style_tell_the_renderings_of_an_engine_that_has_them_apart(tmp_path):
    renderings = Renderings(Counting(has_emotions=True), tmp_path)
    paths = {renderings.path("hello", "ann", emotion=e, style=s) for e in ("sad", "happy") for s in ("", "slowly")}
    assert len(paths) == 4


@pytest.mark.parametrize(("text", "message"), [("", "nothing to say"), ("hush", "got silence")])
def test_a_failure_names_the_text_and_keeps_nothing(text, message, tmp_path):
    with pytest.raises(SpeechError, match=f"'{text}' in the voice ann: {message}"):
        Renderings(Counting(), tmp_path).speak(text, "ann")
    assert list(tmp_path.iterdir()) == []


def test_silence_is_trimmed_to_its_margin():
    waveform = np.concatenate([np.zeros(4800), np.ones(2400), np.zeros(9600)]).astype(np.float32)
    assert len(trim_silence(waveform, 24_000)) == 2400 + 2 * 1200
    assert len(trim_silence(np.zeros(100, np.float32), 24_000)) == 100


# --- engines ---------------------------------------------------------------------------------------------------------


def kokoro_folder(folder: Path) -> Kokoro:
    for name in ("kokoro.onnx", "vocab.json"):
        (folder / name).touch()
    (folder / "voices").mkdir()
    (folder / "voices" / "af_sky.bin").touch()
    return Kokoro(str(folder))


def test_kokoro_names_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="not a Kokoro folder, kokoro.onnx is missing"):
        Kokoro(str(tmp_path)).check(["af_sky"])
    engine = kokoro_folder(tmp_path)
    engine.check(["af_sky"])
    with pytest.raises(ValueError, match="unknown voice 'af_ski'; did you mean af_sky"):
        engine.check(["af_sky", "af_ski"])


def test_espeak_gets_the_text_by_standard_input(tmp_path):
    """A program in its place notes how it was called: text that looks like an option is none."""
    program = tmp_path / "espeak-ng"
    sf.write(tmp_path / "sound.wav", tone(), 22_050)
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\ncat > {tmp_path}/text\ncat {tmp_path}/sound.wav\n')
    program.chmod(0o755)
    engine = Espeak(str(program))
    waveform, sample_rate = engine.synthesise("--version & more", "de+f2", speed=1.2)
    assert (len(waveform), sample_rate) == (8000, 22_050)
    assert (tmp_path / "called").read_text().split() == ["-v", "de+f2", "-s", "210", "--stdin", "--stdout"]
    assert (tmp_path / "text").read_text() == "--version & more"


def test_what_espeak_refuses(tmp_path):
    with pytest.raises(ValueError, match="the program no-such-program is not installed"):
        Espeak("no-such-program").check(["en"])
    program = tmp_path / "espeak-ng"
    program.write_text("#!/bin/sh\necho 'no such voice' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(ValueError, match="voice 'xx': no such voice"):
        Espeak(str(program)).check(["xx"])
    program.write_text("#!/bin/sh\nexec sleep 86400\n")
    with pytest.raises(SpeechError, match="took over 0.1 s"):
        Espeak(str(program), timeout_sec=0.1).synthesise("hello", "en")


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="the program espeak-ng is not installed")
def test_the_real_espeak():
    engine = Espeak()
    engine.check(["en-us", "de+f2"])
    slow, fast = (engine.synthesise("How are you today?", "en-us", speed=speed)[0] for speed in (0.8, 1.6))
    assert len(slow) > 1.5 * len(fast) > 8000
    with pytest.raises(ValueError, match="voice 'xx-nowhere'"):
        engine.check(["xx-nowhere"])


@pytest.fixture
def piper(monkeypatch, tmp_path):
    """The package's interface, as Piper uses it; settings of each call come back in `calls`."""
    calls = []

    class Voice:
        def __init__(self, path):
            speakers = {"ann": 0, "bob": 1} if "many" in str(path) else {}
            self.config = types.SimpleNamespace(
                length_scale=1.5, sample_rate=22_050, speaker_id_map=speakers, num_speakers=max(1, len(speakers))
            )

        load = classmethod(lambda cls, path: cls(path))

        def synthesize(self, text, settings):
            calls.append(settings)
            return [types.SimpleNamespace(audio_float_array=tone()) for _ in text.split()]

    module = types.ModuleType("piper")
    module.PiperVoice, module.SynthesisConfig = Voice, types.SimpleNamespace
    monkeypatch.setitem(sys.modules, "piper", module)
    for name in ("one", "many", "bare"):
        (tmp_path / f"{name}.onnx").touch()
        if name != "bare":
            (tmp_path / f"{name}.onnx.json").touch()
    engine = Piper(str(tmp_path), noise_scale=0.0)
    engine.calls = calls
    return engine


def test_piper_joins_chunks_and_knows_speakers(piper):
    piper.check(["one", "many#bob", "many#0"])
    waveform, sample_rate = piper.synthesise("two words", "many#bob", speed=1.25)
    assert (len(waveform), sample_rate) == (16_000, 22_050)
    assert vars(piper.calls[0]) == {"speaker_id": 1, "length_scale": 1.2, "noise_scale": 0.0, "noise_w_scale": None}
    piper.synthesise("word", "one")
    assert piper.calls[1].speaker_id is None and piper.calls[1].length_scale == 1.5
    with pytest.raises(SpeechError, match="nothing to say"):
        piper.synthesise("", "one")


@pytest.mark.parametrize(
    ("voice", "message"),
    [
        ("won", "unknown voice 'won'; did you mean one"),
        ("many#rob", "voice many: unknown speaker 'rob'; did you mean bob"),
        ("bare", r"its configuration bare.onnx.json is missing"),
    ],
)
def test_what_piper_refuses(piper, voice, message):
    with pytest.raises(ValueError, match=message):
        piper.check([voice])


def test_piper_says_how_to_install_its_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "piper", None)
    with pytest.raises(
        MissingPackageError, match=r"piper-tts is missing; install it with pip install 'lightning-s2s\[pi"
    ):
        Piper(str(tmp_path)).check(["one"])


def test_a_real_piper_voice():
    folder = os.environ.get("PIPER_VOICES")
    if not folder:
        pytest.skip("PIPER_VOICES names no folder with a Piper voice (.onnx and .onnx.json)")
    pytest.importorskip("piper", reason="the package piper-tts is not installed")
    engine = Piper(folder, noise_scale=0.0, noise_w_scale=0.0)
    voice = min(path.stem for path in Path(folder).glob("*.onnx"))
    first, second = (engine.synthesise("How are you today?", voice)[0] for _ in range(2))
    assert np.array_equal(first, second) and 0.5 < len(first) / 22_050 < 4
