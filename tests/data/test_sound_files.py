"""Sound files that break off, that state no length, or a wrong one: all of the sound, or a refusal by name."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lightning_s2s.data.audio import AudioError, AudioReference, audio_duration_sec, decode_audio
from lightning_s2s.data.mp3 import complete_mp3, read_frame, skip_id3

RATE = 16_000


def noise(seconds: float = 1.0, channels: int = 1, rate: int = RATE) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (int(seconds * rate), channels)).astype(np.float32)


def encode(samples: np.ndarray, rate: int = RATE, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **options)
    return file.getvalue()


def check(path: Path | str) -> tuple[float, int]:
    """Duration by the header, and samples decoded, of which the former must be made."""
    reference = AudioReference.parse(str(path))
    seconds = audio_duration_sec(reference)
    audio = decode_audio(reference)
    assert seconds == len(audio.waveform) / audio.sample_rate
    return seconds, len(audio.waveform)


FORMATS = {
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "float.wav": {"format": "WAV", "subtype": "FLOAT"},
    "wavex.wav": {"format": "WAVEX", "subtype": "PCM_24"},
    "rf64.wav": {"format": "RF64", "subtype": "PCM_16"},
    "adpcm.wav": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "w64": {"format": "W64", "subtype": "PCM_16"},
    "aiff": {"format": "AIFF", "subtype": "PCM_16"},
    "au": {"format": "AU", "subtype": "PCM_16"},
    "caf": {"format": "CAF", "subtype": "PCM_16"},
    "flac": {"format": "FLAC"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "cbr.mp3": {"format": "MP3", "bitrate_mode": "CONSTANT"},
    "vbr.mp3": {"format": "MP3", "bitrate_mode": "VARIABLE"},
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_anywhere_is_refused_by_name(tmp_path, name, zipped):
    content = encode(noise(), **FORMATS[name])
    path = tmp_path / f"a.{name}"
    ends = [1, 3, 4, 11, 12, 20, 30, 43, 44, 60, *np.linspace(100, len(content) - 3, 25, dtype=int), len(content) - 2]
    for end in (len(content), *ends):
        if zipped:
            with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as archive:
                archive.writestr("a", content[:end])
                archive.writestr("z", content)  # what follows must not fill in
            references = [f"{tmp_path / 'a.zip'}:31:{end}"]
        else:
            path.write_bytes(content[:end])
            references = [str(path), f"{path}:12000:1000"]
        for reference in map(AudioReference.parse, references):
            if end == len(content):
                assert audio_duration_sec(reference) > 0
                assert len(decode_audio(reference).waveform) > 0
                continue
            # A cut inside FLAC's last frame shows when that is decoded.
            last_frame = name == "flac" and end > len(content) - 9000
            if last_frame and reference.length == 1000:
                continue
            for use in (decode_audio,) if last_frame else (audio_duration_sec, decode_audio):
                with pytest.raises(AudioError, match=f"^audio '{references[0]}': |^audio '{reference}'") as caught:
                    use(reference)
                assert caught.value.reason == "unreadable audio" and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "problem"),
    [
        ("wav", r"it breaks off: its header states 32000 bytes of sound, 15978 are there"),
        ("flac", "it breaks off: its header states 16000 samples, and no frame brings the last of them"),
        ("ogg", "it breaks off inside a page"),
        ("opus", "it breaks off inside a page"),
        ("vbr.mp3", "it breaks off inside frame"),
    ],
)
def test_what_is_said_of_a_file_cut_at_half(tmp_path, suffix, problem):
    content = encode(noise(), **FORMATS[suffix])
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError, match=problem):
        audio_duration_sec(AudioReference.parse(str(path)))


def test_ogg_without_its_end(tmp_path):
    """Cut between two pages, or with a page missing."""
    content = encode(noise(3.0), **FORMATS["ogg"])
    pages = [b"OggS" + page for page in content.split(b"OggS")[1:]]
    assert len(pages) > 4
    for kept, problem in (
        (pages[:-1], "its last page isn't marked as the end of the stream"),
        (pages[:3] + pages[4:], "page 4 follows where page 3 should"),
        (pages + pages, "several streams|page 0 follows"),
        (pages[:3] + [b"\0" * 300] + pages[3:], "it is broken at byte"),
    ):
        (tmp_path / "a.ogg").write_bytes(b"".join(kept))
        with pytest.raises(AudioError, match=problem):
            audio_duration_sec(AudioReference.parse(str(tmp_path / "a.ogg")))


# --- wav of a pipe ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stated", [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFDB])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_wav_from_a_pipe_is_read_to_its_end(tmp_path, stated, order):
    samples = np.arange(-4000, 4000, dtype=np.int16)
    kind = b"RIFX" if order == ">" else b"RIFF"
    header = kind + struct.pack(f"{order}I", stated) + b"WAVEfmt " + struct.pack(
        f"{order}IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16
    )  # fmt: skip
    path = tmp_path / "a.wav"
    path.write_bytes(header + b"data" + struct.pack(f"{order}I", stated) + samples.astype(f"{order}i2").tobytes())
    assert check(path) == (0.5, 8000)
    np.testing.assert_array_equal(decode_audio(AudioReference(path)).waveform * 32768, samples)
    part = decode_audio(AudioReference.parse(f"{path}:100:50"))
    np.testing.assert_array_equal(part.waveform * 32768, np.arange(-3900, -3850))


def test_a_wav_that_is_truly_empty(tmp_path):
    content = bytearray(encode(np.zeros((0, 1), np.float32), format="WAV", subtype="PCM_16"))
    for more in (b"", b"LIST" + struct.pack("<I", 4) + b"INFO"):
        (tmp_path / "a.wav").write_bytes(bytes(content) + more)
        with pytest.raises(AudioError, match="has no samples"):
            audio_duration_sec(AudioReference(tmp_path / "a.wav"))


def test_a_chunk_behind_the_sound_is_no_sound(tmp_path):
    content = encode(noise(), **FORMATS["wav"])
    (tmp_path / "a.wav").write_bytes(content + b"LIST" + struct.pack("<I", 1000) + b"INFO")  # itself cut
    assert check(tmp_path / "a.wav") == (1.0, RATE)


@pytest.mark.parametrize("stated", [7, 1000, 31_000])
def test_a_wav_that_states_less_than_it_has(tmp_path, stated):
    """As a recorder leaves it that was ended between two updates of its header."""
    content = bytearray(encode(noise(), **FORMATS["wav"]))
    content[40:44] = struct.pack("<I", stated)
    (tmp_path / "a.wav").write_bytes(content)
    message = f"its header states {stated} bytes of sound, but {32_000 - stated} follow that are something else"
    with pytest.raises(AudioError, match=message):
        audio_duration_sec(AudioReference(tmp_path / "a.wav"))


@pytest.mark.parametrize(
    "behind", [b"", b"\0", bytes(1000), b"ID3\x03", b"TAG" + bytes(125), b"LIST\4\0\0\0INFO", b"id3 "]
)
def test_what_may_stand_behind_a_wav(tmp_path, behind):
    (tmp_path / "a.wav").write_bytes(encode(noise(), **FORMATS["wav"]) + behind)
    assert check(tmp_path / "a.wav") == (1.0, RATE)


def test_flac_of_a_pipe(tmp_path):
    content = bytearray(encode(noise(), **FORMATS["flac"]))
    content[21] &= 0xF0  # 36 bits of the number of samples
    content[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(content)
    assert check(tmp_path / "a.flac") == (1.0, RATE)
    reference = decode_audio(AudioReference(tmp_path / "a.flac")).waveform
    np.testing.assert_allclose(reference, noise()[:, 0], atol=1e-4)


# --- mp3 without a tag, or with a wrong one -------------------------------------------------------------------------


def frames_of(content: bytes) -> list[bytes]:
    """The frames of an mp3 file, its tag among them."""
    place, found = skip_id3(content), []
    while place < len(content):
        frame = read_frame(*struct.unpack_from(">I", content, place))
        found.append(content[place : place + frame.length])
        place += frame.length
    return found


@pytest.mark.parametrize(
    ("header", "expected"),
    [  # by the tables of ISO/IEC 11172-3: length, samples, rate, channels, layer
        (0xFFFB9064, (417, 1152, 44_100, 2, 3)),  # MPEG-1 layer III, 128 kbit/s
        (0xFFFB92C4, (418, 1152, 44_100, 1, 3)),  # the same, padded, mono
        (0xFFF388C4, (288, 576, 16_000, 1, 3)),  # MPEG-2, 64 kbit/s
        (0xFFFD8404, (384, 1152, 48_000, 2, 2)),  # layer II, 128 kbit/s
        (0xFFFB0064, None),  # free bit rate
        (0xFFFBF064, None),
        (0xFFFB9C64, None),
        (0x49443304, None),
    ],
)
def test_frames(header, expected):
    frame = read_frame(header)
    assert (frame and frame[:5]) == expected


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_mp3_without_its_tag_is_read_whole(tmp_path, rate, channels, mode):
    """It gives every frame; behind the encoder's delay of 576 samples, what the file with its tag gives."""
    loud_at_end = np.concatenate([noise(1.0, channels, rate) * 1e-4, noise(1.0, channels, rate)])
    content = encode(loud_at_end, rate, format="MP3", bitrate_mode=mode)
    (tmp_path / "tagged.mp3").write_bytes(content)
    seconds, num_samples = check(tmp_path / "tagged.mp3")
    assert seconds == 2.0
    frames = frames_of(content)[1:]
    (tmp_path / "bare.mp3").write_bytes(b"".join(frames))
    _, found = check(tmp_path / "bare.mp3")
    assert found == len(frames) * (1152 if rate == 44_100 else 576) and found >= num_samples + 576
    bare, tagged = (decode_audio(AudioReference(tmp_path / f"{name}.mp3")).waveform for name in ("bare", "tagged"))
    np.testing.assert_allclose(bare[576 : 576 + num_samples], tagged, atol=1e-6)


def test_mp3_between_other_tags(tmp_path):
    content = encode(noise(), format="MP3", bitrate_mode="VARIABLE")
    bare = b"".join(frames_of(content)[1:])
    id3 = b"ID3\x04\x00\x00" + bytes([0, 0, 2, 0]) + b"\xff\xfb\x90\x64" * 64  # 256 bytes that look like frames
    expected = len(frames_of(bare)) * 576
    for whole in (id3 + bare, bare + b"TAG" + bytes(125), id3 + id3 + bare + b"APETAGEX" + bytes(9000)):
        (tmp_path / "a.mp3").write_bytes(whole)
        assert check(tmp_path / "a.mp3")[1] == expected
    (tmp_path / "a.mp3").write_bytes(id3 + content)
    assert check(tmp_path / "a.mp3") == (1.0, RATE)


def test_two_mp3_files_in_one(tmp_path):
    """As `cat a.mp3 b.mp3` makes them; the tag of the first states half the sound."""
    content = encode(noise(), format="MP3", bitrate_mode="VARIABLE")
    (tmp_path / "a.mp3").write_bytes(content + content)
    num_frames = 2 * len(frames_of(content)) - 1  # the first tag gives no sound
    assert check(tmp_path / "a.mp3")[1] == num_frames * 576
    other = encode(noise(1.0, 1, 44_100), 44_100, format="MP3")
    (tmp_path / "a.mp3").write_bytes(content + other)
    with pytest.raises(AudioError, match="it changes its sample rate or channels|are no sound"):
        check(tmp_path / "a.mp3")


def test_mp3_cut_between_frames(tmp_path):
    """With a tag the missing frames are noticed; without one nobody could know."""
    frames = frames_of(encode(noise(), format="MP3"))
    (tmp_path / "a.mp3").write_bytes(b"".join(frames[:-1]))
    with pytest.raises(AudioError, match=f"its header states {len(frames) - 1} frames, {len(frames) - 2} are there"):
        check(tmp_path / "a.mp3")
    (tmp_path / "a.mp3").write_bytes(b"".join(frames[1:-1]))
    assert check(tmp_path / "a.mp3")[1] == (len(frames) - 2) * 576


def test_mp3_with_a_hole_of_zeros(tmp_path):
    content = bytearray(encode(noise(3.0), format="MP3"))
    bare = bytearray(b"".join(frames_of(bytes(content))[1:]))
    bare[len(bare) // 3 :] = bytes(len(bare) - len(bare) // 3)  # what wasn't uploaded of a file laid out before
    (tmp_path / "a.mp3").write_bytes(bare)
    with pytest.raises(AudioError, match="are no sound: it is broken or breaks off|breaks off inside frame"):
        check(tmp_path / "a.mp3")


def test_a_tag_that_is_right_is_left_alone():
    content = encode(noise(), format="MP3")
    assert complete_mp3(content) is content


# --- headers that lie -----------------------------------------------------------------------------------------------


def wav_header(rate: int = RATE, channels: int = 1, data: bytes = bytes(3200)) -> bytes:
    fmt = struct.pack("<IHHIIHH", 16, 1, channels, rate, min(rate * 2 * channels, 2**32 - 1), 2 * channels % 65536, 16)
    return (
        b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + fmt + b"data" + struct.pack("<I", len(data)) + data
    )


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (wav_header(rate=1), "unreadable audio", "a sample rate of 1 Hz; allowed: 1000 to 768000"),
        (wav_header(rate=999_999), "unreadable audio", "a sample rate of 999999 Hz"),
        (wav_header(rate=2**31 - 1), "unreadable audio", "a sample rate of|can't be read"),
        (wav_header(rate=0), "unreadable audio", "sample rate of 0 Hz|can't be read"),
        (wav_header(channels=65_535), "unreadable audio", "can't be read"),
        (wav_header(channels=0), "unreadable audio", "can't be read"),
        (b".snd" + struct.pack(">5I", 24, 3200, 3, RATE, 10**9) + bytes(3200), "unreadable audio", "can't be read"),
        (b"caff\0\1\0\0data" + struct.pack(">q", 2**62) + bytes(99), "unreadable audio", "breaks off"),
        (b"RF64\xff\xff\xff\xffWAVEds64" + struct.pack("<I3QI", 28, 2**62, 2**62, 2**61, 0)
         + wav_header()[12:40] + b"\xff\xff\xff\xff" + bytes(99), "unreadable audio", "breaks off"),
        (b"ID3\x04\0\0\x7f\x7f\x7f\x7f", "unreadable audio", "can't be read"),
        (b"\xff\xfb\x90\x64" + bytes(99), "unreadable audio", "breaks off inside frame 1"),
        (b"OggS", "unreadable audio", "it has 4 bytes, too few for any sound"),
        (b"OggS" + bytes(20), "unreadable audio", "breaks off inside a page"),
    ],
)  # fmt: skip
def test_headers_that_lie(tmp_path, content, reason, message):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    for use in (audio_duration_sec, decode_audio):
        with pytest.raises(AudioError, match=f"^audio '{path}': .*({message})") as caught:
            use(AudioReference(path))
        assert caught.value.reason == reason and "\n" not in str(caught.value)


def test_a_header_may_not_claim_memory(tmp_path):
    """FLAC of 36 bits of samples: refused by its last frame, or by the bound where that agrees."""
    content = bytearray(encode(noise(), **FORMATS["flac"]))
    content[21] |= 0x0F
    (tmp_path / "a.flac").write_bytes(content)
    with pytest.raises(AudioError, match="it breaks off: its header states 644245"):
        audio_duration_sec(AudioReference(tmp_path / "a.flac"))
    soundfile.write(tmp_path / "long.flac", np.zeros(7300 * 1000, np.int16), 1000)  # two hours of silence in few bytes
    assert (tmp_path / "long.flac").stat().st_size < 200_000
    for use in (audio_duration_sec, decode_audio):
        with pytest.raises(
            AudioError, match="states 7300 s of 1 channel.* at most 7200 s .* name parts of it"
        ) as caught:
            use(AudioReference(tmp_path / "long.flac"))
        assert caught.value.reason == "too long audio"
    assert len(decode_audio(AudioReference.parse(f"{tmp_path}/long.flac:7000000:2000")).waveform) == 2000


def test_random_bytes_behind_every_magic(tmp_path):
    draw, path = np.random.default_rng(1), tmp_path / "a.wav"
    starts = [encode(noise(0.1), **options)[:60] for options in FORMATS.values()]
    for number in range(200):
        start = starts[number % len(starts)]
        path.write_bytes(start[: int(draw.integers(4, 60))] + draw.bytes(int(draw.integers(0, 500))))
        for use in (audio_duration_sec, decode_audio):
            try:
                use(AudioReference(path))
            except AudioError as error:
                assert str(path) in str(error) and "\n" not in str(error)
