"""Lines by their numbers: every kind of end, files that change, and files that are none of ours."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import pickle
import random
import re
import shutil

import pytest

from lightning_s2s.data import lines
from lightning_s2s.data.lines import LineError, LineFile


def read(path) -> list[tuple[int, str]]:
    file = LineFile(path)
    return [(line, file.text(line).rstrip("\r")) for line in file.line_numbers.tolist()]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\nb", [(1, "a"), (2, "b")]),
        (b"a\r\nb\r\n", [(1, "a"), (2, "b")]),
        (b"a\rb\r", [(1, "a"), (2, "b")]),
        (b"\n\r\n  \t\na\r\r\nb\n", [(4, "a"), (6, "b")]),
        (b"\xef\xbb\xbfa\r\nb\n", [(1, "a"), (2, "b")]),
        ("ü\n\u2028x\n".encode(), [(1, "ü"), (2, "\u2028x")]),
        (b"", []),
        (b"\xef\xbb\xbf\n", []),
    ],
)
def test_every_kind_of_line_end(tmp_path, content, expected):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert read(path) == expected
    path.write_bytes(gzip.compress(content))
    assert read(path) == expected


def test_blocks_of_any_size_give_the_same_lines(tmp_path, monkeypatch):
    """Against `re.split`, with block ends and the longest line at every place."""
    draw, path = random.Random(0), tmp_path / "a"
    for _ in range(300):
        longest = draw.choice([4, 10, 1000])
        monkeypatch.setattr(lines, "_BLOCK", draw.choice([1, 2, 3, 7, 64]))
        monkeypatch.setattr(lines, "LONGEST_LINE", longest)
        text = "".join(draw.choice(["a", "b", "\n", "\r\n", "\r", " ", "ü"]) for _ in range(draw.randrange(1, 60)))
        path.write_bytes(text.encode())
        file = LineFile(path)
        wanted = [(n, line) for n, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1) if line.strip()]
        assert file.line_numbers.tolist() == [number for number, _ in wanted]
        for number, line in wanted:
            if len(line.encode()) > longest:
                with pytest.raises(LineError, match="at most"):
                    file.text(number)
            elif len(line.encode()) < longest:  # a CR may count
                assert file.text(number).rstrip("\r") == line


def test_a_file_replaced_under_the_same_time_and_size_is_read_anew(tmp_path):
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    path.write_text("old 1\nold 2\n")
    other.write_text("new 1\nnew 2\n")
    for file in (path, other):
        os.utime(file, ns=(10**18, 10**18))
    assert read(path) == [(1, "old 1"), (2, "old 2")]
    shutil.copy2(other, path)  # as `cp -p`, in place
    assert path.stat().st_mtime_ns == 10**18
    assert read(path) == [(1, "new 1"), (2, "new 2")]
    other.write_text("third\n")
    os.utime(other, ns=(10**18, 10**18))
    os.replace(other, path)  # as rsync
    assert read(path) == [(1, "third")]


def test_a_file_that_is_in_use(tmp_path):
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    path.write_text("old 1\nold 2\n")
    file = LineFile(path)
    sent = pickle.dumps(file)
    other.write_text("new 1\nnew 2\n")
    os.replace(other, path)
    assert file.text(2) == "old 2"  # the old file is kept open
    with pytest.raises(ValueError, match=r"a.jsonl: was changed while it was in use"):
        pickle.loads(sent)
    file = LineFile(path)
    assert pickle.loads(pickle.dumps(file)).text(2) == "new 2"
    path.write_text("new 1\nNEW 2\n")  # in place
    assert file.text(1) == "new 1"
    with pytest.raises(ValueError, match=r"a.jsonl:2: was changed while it was in use; start again"):
        file.text(2)


def test_forked_workers_read_at_the_same_time(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"line {n}\n" for n in range(1, 401)))
    file = LineFile(path)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(file.text, range(1, 401), chunksize=7) == [f"line {n}" for n in range(1, 401)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}".encode("utf-16"), "is UTF-16 text; UTF-8 text with one JSON object a line is needed"),
        (b"\xfd7zXZ\x00\x00\x00", "is xz"),
        (b"BZh91AY&SY", "is bzip2"),
        (b"PK\x03\x04\x00\x00", "is a zip archive"),
        (b"RIFF\x00\x00\x00\x00WAVE", r"is sound \(wav\)"),
        (b"PAR1\x00", "is Parquet"),
        (b"\x1f\x8b\x08\x00broken", "can't read"),
        (gzip.compress(b"a\n" * 100, mtime=0)[:-9], "can't read"),
    ],
)
def test_files_of_another_kind(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=f"manifest: .*a.jsonl' {message}|manifest: {message} '.*a.jsonl'"):
        LineFile(tmp_path / "a.jsonl")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="manifest: '.*pipe' is a pipe or a device; a file is needed"):
        LineFile(tmp_path / "pipe")
    with pytest.raises(ValueError, match="manifest: '.*' is a folder; a file is needed"):
        LineFile(tmp_path)
    with pytest.raises(ValueError, match="manifest: there is no file '~/a.jsonl'; ~ isn't expanded here"):
        LineFile("~/a.jsonl")
    for name in ("a" * 300, "a\0b", "a\ud800"):
        with pytest.raises(ValueError, match="manifest: "):
            LineFile(tmp_path / name)


def test_a_gzip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "SMALLEST_BOMB", 2**16)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}\n" * 10_000))  # 30 kB from about 60 bytes: small enough to be harmless
    assert len(LineFile(path)) == 10_000
    path.write_bytes(gzip.compress(b"{}\n" * 1_000_000))
    with pytest.raises(ValueError, match="unpacks to more than 100 times its size"):
        LineFile(path)


def test_a_line_that_is_too_long_or_not_utf8_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 100)
    monkeypatch.setattr(lines, "_BLOCK", 64)
    (tmp_path / "a").write_bytes(b"a\n" + b"b" * 1000 + b"\nc\n\xfc\nd")
    file = LineFile(tmp_path / "a")
    assert file.line_numbers.tolist() == [1, 2, 3, 4, 5]
    assert [file.text(n) for n in (1, 3, 5)] == ["a", "c", "d"]
    with pytest.raises(LineError, match="has 1000 bytes; at most 100") as caught:
        file.text(2)
    assert caught.value.reason == "too long a line"
    with pytest.raises(LineError, match=r"has bytes that are not UTF-8 \(0xfc at byte 1\)"):
        file.text(4)
