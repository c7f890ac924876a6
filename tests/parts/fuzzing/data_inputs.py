"""Manifests, sound and references into archives, spoilt."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import soundfile

from parts.fuzzing.mutations import WRITE, Case, Expect, Seeds, change_bytes, change_tree, deep_json
from parts.fuzzing.seeds import SOUND_SEC, SUFFIXES

# --- manifests ----------------------------------------------------------------------------------------------------


def _rows(seeds: Seeds) -> list[dict[str, Any]]:
    """The corpus's rows with absolute paths."""
    rows = [json.loads(line) for line in seeds.bytes("corpus/train.jsonl").splitlines()]
    for row in rows:
        item = row["messages"][0]["content"][0]
        item["audio"] = seeds.path(f"corpus/{item['audio']}")
    return rows


def _lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _manifest(
    seeds: Seeds, random: Random, content: bytes | None, what: str, names: tuple[str, ...] = (),
    expect: Expect = "either", name: str = "rows.jsonl",
) -> Case:  # fmt: skip
    """A command, or the data module, that reads a manifest."""
    stage = seeds.path("stage.yaml")
    commands: list[tuple[str, ...]] = [
        ("cli", "fit", "--config", stage, "--data.train", name),
        ("cli", "validate", "--config", stage, "--data.validation", name),
        ("cli", "units", "--vocoder", "pocket", "--vocoder.encoder_width", "8", "--roles", "[user]", name, "out.jsonl"),
        ("cli", "evaluate", "answers", "--config", seeds.path("answers.yaml"), "--questions", name),
        (
            "cli", "emotion-classifier", "--train", name, "--validation", seeds.path("corpus/judge_validation.jsonl"),
            "--test", seeds.path("corpus/judge_test.jsonl"), "--output_dir", "judge", "--max_epochs", "1",
        ),
    ]  # fmt: skip
    loads = ("load_rows", seeds.path("tokenizer"), name)
    call = random.choice(commands) if expect == "either" and random.random() < 0.4 else loads
    return Case(call, f"manifest: {what}", {name: content}, names=(name, *names), expect=expect)


def changed_row(seeds: Seeds, random: Random) -> Case:
    rows = _rows(seeds)
    number = random.randrange(len(rows))
    change = change_tree(rows[number], random)
    rows[number] = change.tree
    return _manifest(seeds, random, _lines(rows), f"line {number + 1}: {change.what}", change.names)


def wrong_item_key(seeds: Seeds, random: Random) -> Case:
    rows = _rows(seeds)
    row, message = random.choice(rows), random.randrange(2)
    item = row["messages"][message]["content"][0]
    known = random.choice(sorted(item))
    wrong = random.choice([known + "s", known[:-1], known.capitalize(), f"input_{known}", f"{known}_"])
    item[wrong] = item.pop(known) if random.random() < 0.5 else item[known]
    return _manifest(seeds, random, _lines(rows), f"item key {wrong!r} for {known!r}", (wrong,), "said")


def good_encoding(seeds: Seeds, random: Random) -> Case:
    rows, name = _rows(seeds), "rows.jsonl"
    rows[0]["messages"][1]["content"][0]["text"] = "a\u2028b\u0085c\x0bd\x0ce"
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    ways = ["a BOM", "CRLF", "blank lines", "no last line end", "line separators in text", "gz", "BOM, gz"]
    way = random.choice(ways)
    if "BOM" in way:
        content = b"\xef\xbb\xbf" + content
    if way == "CRLF":
        content = content.replace(b"\n", b"\r\n")
    if way == "blank lines":
        content = b"\n \n" + content.replace(b"\n", b"\n\n")
    if way == "no last line end":
        content = content.rstrip()
    if "gz" in way:
        content, name = gzip.compress(content), "rows.jsonl.gz"
    return _manifest(seeds, random, content, f"good, with {way}", expect="accepted", name=name)


def bad_encoding(seeds: Seeds, random: Random) -> Case:
    content, name = _lines(_rows(seeds)), "rows.jsonl"
    way = random.choice(["utf-16", "latin-1", "bytes", "cut gz", "gz bomb", "gz garbage", "no gz", "hidden gz", "pipe"])
    wrong: bytes | None = content
    if way == "utf-16":
        wrong = content.decode().encode("utf-16")
    elif way == "latin-1":
        wrong = content.replace(b"It is", "Es wäre".encode("latin-1"))
    elif way == "bytes":
        wrong, way = change_bytes(content, random)
    elif way == "hidden gz":
        wrong = gzip.compress(content)
    elif way == "pipe":
        wrong = None
    else:
        name = "rows.jsonl.gz"
    if way == "cut gz":
        wrong = gzip.compress(content)[: -random.choice([1, 8, 100])]
    elif way == "gz bomb":
        line = random.choice([b" " * 2**20, b"\n" * 2**20, b"x" * 2**20])
        wrong = gzip.compress(line * 2000, 1)
    elif way == "gz garbage":
        wrong = gzip.compress(content) + random.randbytes(50)
    return _manifest(seeds, random, wrong, way, name=name)


def odd_json(seeds: Seeds, random: Random) -> Case:
    lines = _lines(_rows(seeds)).splitlines(keepends=True)
    bad = random.choice([
        deep_json(random), b"9" * 10_000, b'{"messages": ' + b"9" * 10_000 + b"}", b'{"messages": 1e999}', b"NaN",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b'{"a": 1} {"b": 2}', b"{'messages': []}",
        b'{"messages": [], "messages": [{"role": "user", "content": "x"}]}', b'"' + b"x" * 10**7 + b'"',
        b'{"messages": [{"role": "user", "content": ' + deep_json(random) + b"}]}",
    ])  # fmt: skip
    number = random.randrange(len(lines))
    lines[number] = bad + b"\n"
    return _manifest(seeds, random, b"".join(lines), f"line {number + 1} is {bad[:60]!r}")


def odd_audio(seeds: Seeds, random: Random) -> Case:
    rows = _rows(seeds)
    wrong = random.choice([
        "missing.wav", ".", "/", "/dev/zero", "/dev/stdin", "http://127.0.0.1:9/q.wav", "file:///etc/passwd", "~/q.wav",
        "x" * 5000, "q\x00.wav", "q\n.wav", "*.wav", "../" * 300 + "q.wav", "cafe\u0301.wav", "take:12:30", ":1:2",
        "rows.jsonl", "q.wav:0:" + "9" * 5000, "q.wav:1e3:2", "\ud800.wav", "-", "|touch canary", "$(touch canary)",
    ])  # fmt: skip
    rows[0]["messages"][0]["content"][0]["audio"] = wrong
    return _manifest(seeds, random, _lines(rows), f"audio {wrong[:60]!r}", expect="refused")


def odd_number(seeds: Seeds, random: Random) -> Case:
    rows = _rows(seeds)
    key = random.choice(["audio_sec", "speech_units", "spk_emb"])
    values: dict[str, list[Any]] = {
        "audio_sec": [1e308, -1, 0, float("nan"), float("inf"), True, "3", 1e-300, 10**400, [1]],
        "speech_units": [
            f"<|audio_{'9' * 5000}|>", "<|audio_1000|>", "<|audio_-1|>", [True], [-1], [2**70], [1.0], "units", 3,
            "<|audio_1|>" * 200_000, "<|audio_１|>", [[1]], {"0": 1}, [None],
        ],
        "spk_emb": [[0.0] * 511, [float("nan")] * 512, [1e308] * 512, "none.npy", "/dev/zero", "rows.jsonl", "..",
                    ["x"] * 512, [[0.0] * 512], {}, 1.0, "code.npy", [0.0] * 10**6],
    }  # fmt: skip
    wrong = random.choice(values[key])
    rows[0]["messages"][0 if key == "audio_sec" else 1]["content"][0][key] = wrong
    case = _manifest(seeds, random, _lines(rows), f"{key}: {repr(wrong)[:60]}", (key,))
    npy = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return replace(case, files={**case.files, "code.npy": npy + _pickled()})


class _Code:
    def __reduce__(self) -> Any:
        return exec, (WRITE,)


def _pickled() -> bytes:
    return pickle.dumps(_Code())


MANIFESTS = (
    changed_row, changed_row, changed_row, wrong_item_key, good_encoding, bad_encoding, odd_json, odd_audio, odd_number,
)  # fmt: skip

# --- sound --------------------------------------------------------------------------------------------------------


def _sound(
    seeds: Seeds, random: Random, name: str, content: bytes, what: str, expect: Expect = "either", reference: str = "",
) -> Case:  # fmt: skip
    reference = reference or name
    calls: list[tuple[str, ...]] = [("load_sound", reference)] * 4
    files: dict[str, bytes | None] = {name: content}
    if expect in ("either", "refused"):
        calls.append(("cli", "respond", seeds.path("run/model"), reference, "--greedy", "--no-audio"))
        item = {"audio": reference, "text": ""}
        reply = {"role": "assistant", "content": [{"text": "Yes.", "speech_units": [1, 2]}]}
        files["rows.jsonl"] = _lines([{"messages": [{"role": "user", "content": [item]}, reply]}])
        calls.append(("load_rows", seeds.path("tokenizer"), "rows.jsonl"))
    return Case(random.choice(calls), f"sound: {what}", files, names=(name, reference), expect=expect)


def cut_sound(seeds: Seeds, random: Random) -> Case:
    suffix = random.choice(SUFFIXES)
    content, share = seeds.bytes(f"sounds/speech.{suffix}"), random.uniform(0.02, 0.9)
    what = f"{suffix} cut at {share:.0%}"
    return _sound(seeds, random, f"cut.{suffix}", content[: int(share * len(content))], what, "refused")


def changed_sound(seeds: Seeds, random: Random) -> Case:
    suffix, named = random.choice(SUFFIXES), random.choice(SUFFIXES)
    content, what = change_bytes(seeds.bytes(f"sounds/speech.{suffix}"), random)
    return _sound(seeds, random, f"spoilt.{named}", content, f"{suffix} {what}")


def wav_header(seeds: Seeds, random: Random) -> Case:
    content = bytearray(seeds.bytes("sounds/speech.wav"))
    fields = {"format": (20, "<H"), "channels": (22, "<H"), "rate": (24, "<I"), "bytes a second": (28, "<I"),
              "block": (32, "<H"), "bits": (34, "<H"), "size": (40, "<I"), "whole size": (4, "<I"),
              "length of fmt": (16, "<I")}  # fmt: skip
    name = random.choice(sorted(fields))
    place, form = fields[name]
    largest = 2 ** (8 * struct.calcsize(form)) - 1
    value = random.choice([0, 1, 2, 3, 7, 100, 32_000, largest // 2, largest // 2 + 1, largest - 1, largest])
    struct.pack_into(form, content, place, value)
    return _sound(seeds, random, "header.wav", bytes(content), f"wav with {name} {value}")


def made_sound(seeds: Seeds, random: Random) -> Case:
    tone = 0.5 * np.sin(np.arange(16_000) * 0.1)
    ways: dict[str, tuple[Any, int, str, Expect]] = {
        "1 Hz": (tone[:100], 1, "PCM_16", "refused"),
        "a huge rate": (tone, 2**31 - 1, "PCM_16", "either"),
        "one sample": (tone[:1], 16_000, "PCM_16", "either"),
        "no sample": (tone[:0], 16_000, "PCM_16", "refused"),
        "NaN": (np.where(np.arange(16_000) == 9, np.nan, tone), 16_000, "FLOAT", "refused"),
        "infinity": (np.where(np.arange(16_000) == 9, np.inf, tone), 16_000, "DOUBLE", "refused"),
        "1e30": (tone * 1e30, 16_000, "FLOAT", "either"),
        "x, -x": (np.stack([tone, -tone], 1), 16_000, "PCM_16", "said"),
        "x, -0.999 x": (np.stack([tone, -0.999 * tone], 1), 16_000, "FLOAT", "said"),
        "silence": (tone * 0, 16_000, "PCM_16", "either"),
        "1,000 channels": (np.tile(tone[:100, None], 1000), 16_000, "PCM_16", "either"),
        "8 bits": (tone, 16_000, "PCM_U8", "accepted"),
        "24 bits": (tone, 44_100, "PCM_24", "accepted"),
        "mu law": (tone, 8000, "ULAW", "accepted"),
    }
    way = random.choice(sorted(ways))
    samples, rate, subtype, expect = ways[way]
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype=subtype)
    return _sound(seeds, random, "made.wav", file.getvalue(), way, expect)


def streamed_wav(seeds: Seeds, random: Random) -> Case:
    content = bytearray(seeds.bytes("sounds/speech.wav"))
    size = random.choice([0, 2**32 - 1, 2**31 - 1])
    struct.pack_into("<I", content, 40, size)
    struct.pack_into("<I", content, 4, size)
    return _sound(seeds, random, "streamed.wav", bytes(content), f"wav from a pipe, sizes {size}")


def part_of_sound(seeds: Seeds, random: Random) -> Case:
    suffix, whole = random.choice(SUFFIXES), int(SOUND_SEC * 16_000)
    numbers = ["0", "1", "-1", str(whole), str(whole + 1), "8000", str(2**31), str(2**62), str(2**64), "9" * 300, "",
               "１", "1.5", " 1", "00", "x"]  # fmt: skip
    reference = f"speech.{suffix}:{random.choice(numbers)}:{random.choice(numbers)}"
    content = seeds.bytes(f"sounds/speech.{suffix}")
    return _sound(seeds, random, f"speech.{suffix}", content, reference[:60], reference=reference)


def random_sound(seeds: Seeds, random: Random) -> Case:
    heads = (b"RIFF", b"fLaC", b"OggS", b"ID3\x04", b"\xff\xfb\x90", b"FORM", b".snd", b"caff", b"RF64", b"riff")
    head = random.choice(heads)
    content = head + random.randbytes(random.choice([0, 4, 40, 4000]))
    return _sound(seeds, random, f"random.{random.choice(SUFFIXES)}", content, f"random after {head!r}", "refused")


SOUND = (cut_sound, changed_sound, changed_sound, wav_header, made_sound, streamed_wav, part_of_sound, random_sound)

# --- archives -----------------------------------------------------------------------------------------------------


def zip_reference(seeds: Seeds, random: Random) -> Case:
    """A member by its place; the archive, the place or the member is wrong."""
    suffix = random.choice(SUFFIXES)
    member, file = seeds.bytes(f"sounds/speech.{suffix}"), io.BytesIO()
    stored = random.random() < 0.8
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"q.{suffix}", member)
        info = archive.getinfo(f"q.{suffix}")
    start, size, content = info.header_offset + 30 + len(info.filename), info.compress_size, file.getvalue()
    first, length, what = str(start), str(size), "good"
    way = random.choice(["start", "length", "both", "archive", "cut"])
    numbers = ["0", "1", str(start), str(start - 1), str(size), str(size + 1), str(size // 2), str(len(content)), "-1",
               str(2**31), str(2**62), str(2**63), str(2**64), "9" * 300, "9" * 5000, "", "1.5", "x", "１"]  # fmt: skip
    if way in ("start", "both"):
        first = random.choice(numbers)
    if way in ("length", "both"):
        length = random.choice(numbers)
    if way == "archive":
        content, what = change_bytes(content, random)
    if way == "cut":
        content, what = content[: random.randrange(start + size)], "cut inside the member"
    name = random.choice(["sounds.zip", "sounds.ZIP", "a b.zip"])
    form = random.choice(["{0}:{1}:{2}"] * 8 + ["{0}", "{0}:{1}", "{0}:{1}:{2}:{2}", "./{0}:{1}:{2}", "{0}/q.wav"])
    reference = form.format(name, first, length)
    expect: Expect = "refused" if way == "cut" or not stored else "either"
    return _sound(seeds, random, name, content, f"{reference[:60]} ({suffix}, {what})", expect, reference)


ZIP = (zip_reference,)
