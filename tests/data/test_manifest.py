"""Manifest lines: what a row holds, and one clear error for each way to break a line."""

from __future__ import annotations

import gzip
import json
import pickle

import numpy as np
import pytest

from lightning_s2s.data.manifest import Manifest, ManifestError, parse_speaker, parse_units, read_manifest

USER = {"role": "user", "content": [{"text": "", "audio": "q.wav"}]}
ANSWER = {"role": "assistant", "content": [{"text": "Hi"}]}
GOOD = {"messages": [USER, ANSWER]}


def test_rows_keep_their_order_and_line_numbers(write_manifest):
    path = write_manifest([{"id": "a", **GOOD}, "", "   ", {"speaker": "s", **GOOD}, json.dumps(GOOD) + "\r"])
    rows = read_manifest(path)
    assert [(row["id"], row["line"]) for row in rows] == [("a", 1), ("rows:4", 4), ("rows:5", 5)]
    assert rows[1] == {
        "id": "rows:4", "speaker": "s", "messages": [USER, ANSWER], "manifest": str(path), "line": 4,
        "folder": str(path.parent),
    }  # fmt: skip


def test_text_is_kept_as_it_is(write_manifest):
    said = 'Grüße,\u2028"你好"\n\tand \\n'
    row = {"messages": [{"role": "user", "content": said}, ANSWER]}
    (read,) = read_manifest(write_manifest([json.dumps(row, ensure_ascii=False)]))
    assert read["messages"][0]["content"] == said


def test_lines_of_different_shapes_stay_as_they_are(write_manifest):
    rows = [GOOD, {"messages": [{"role": "user", "content": "b"}], "pair": 3}, {"messages": [ANSWER], "pair": "p"}]
    read = read_manifest(write_manifest(rows))
    assert ["pair" in row for row in read] == [False, True, True]
    assert [row["messages"] for row in read] == [row["messages"] for row in rows]


def test_a_manifest_written_anew_is_read_anew(write_manifest):
    assert len(read_manifest(write_manifest([GOOD]))) == 1
    assert len(read_manifest(write_manifest([GOOD, GOOD]))) == 2


def test_compressed_and_oddly_named_manifests(tmp_path):
    folder = tmp_path / "a [1] *"
    folder.mkdir()
    (folder / "m.jsonl").write_text(json.dumps(GOOD) + "\n")
    (folder / "m.jsonl.gz").write_bytes(gzip.compress(b"\n" + json.dumps(GOOD).encode() + b"\n"))
    assert [row["line"] for row in read_manifest(folder / "m.jsonl")] == [1]
    assert [row["line"] for row in read_manifest(folder / "m.jsonl.gz")] == [2]
    (folder / "broken.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode() * 50)[:60])
    with pytest.raises(ValueError, match=r"manifest: can't read '.*broken.jsonl.gz'"):
        read_manifest(folder / "broken.jsonl.gz")


def test_many_lines(write_manifest):
    manifest = Manifest(write_manifest([{"id": str(i), **GOOD} for i in range(2500)]))
    assert len(manifest.line_numbers) == 2500
    assert manifest.row(2500)["id"] == "2499"
    assert manifest.row(1)["id"] == "0"


def one(role: str, content) -> dict:
    return {"messages": [{"role": role, "content": content}]}


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        ("{broken", "not JSON", "is not JSON"),
        ('"text"', "not JSON", "is not a JSON object but 'text'"),
        ("[1]", "not JSON", r"is not a JSON object but \[1\]"),
        ({}, "no messages", "messages: got None"),
        ({"messages": []}, "no messages", r"messages: got \[\]; a list of at least one"),
        ({"messages": "hello"}, "no messages", "messages: got 'hello'"),
        ({"messages": ["hello"]}, "wrong message", r"messages\[0\]: got 'hello'"),
        (one("bot", "b"), "wrong role", r"messages\[0\].role: got 'bot'; allowed: system, user, assistant"),
        ({"messages": [{"content": "b"}]}, "wrong role", r"messages\[0\].role: got None"),
        ({"messages": [USER, {"role": "system", "content": "s"}]}, "wrong role", "at the beginning alone"),
        ({"messages": [USER, {"role": "assistant"}]}, "wrong content", r"messages\[1\].content: got None"),
        (one("user", [3]), "wrong content", r"messages\[0\].content: got \[3\]"),
        (one("user", []), "wrong content", r"messages\[0\].content: has no text and no audio"),
        (one("user", [{"audio": 3}]), "wrong content", r"content\[0\].audio: got 3; a string"),
        (one("user", [{"audio": "a.wav", "audio_sec": "long"}]), "wrong content", "audio_sec: got 'long'"),
        (one("assistant", [{"text": "", "audio": "a.wav"}]), "wrong content", r"content: has no text$"),
    ],
)
def test_broken_lines(write_manifest, line, reason, message):
    path = write_manifest([GOOD, "", line, GOOD])
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"messages": "\xfcber"}\n')
    with pytest.raises(ValueError, match=r"latin.jsonl:2: has bytes that are not UTF-8"):
        read_manifest(path)


def test_missing_and_empty_manifests(tmp_path):
    with pytest.raises(ValueError, match=r"manifest: there is no file '.*absent.jsonl'"):
        read_manifest(tmp_path / "absent.jsonl")
    for content in ("", "\n \n"):
        (tmp_path / "empty.jsonl").write_text(content)
        with pytest.raises(ValueError, match="one JSON object a line"):
            read_manifest(tmp_path / "empty.jsonl")


def test_an_error_survives_a_worker_process():
    error = pickle.loads(pickle.dumps(ManifestError("m.jsonl", 7, "not JSON", "is not JSON")))
    assert str(error) == "m.jsonl:7: is not JSON"
    assert (error.line, error.reason) == (7, "not JSON")


def test_units():
    assert parse_units("<|audio_12|><|audio_0|>\n<|audio_999|>", 1000) == [12, 0, 999]
    assert parse_units([3, 4], 5) == [3, 4]
    assert parse_units("", 5) == parse_units(None) == []
    assert parse_units("<|audio_70000|>") == [70000]


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ("<|audio_1000|>", r"unit 1000, outside the codebook; allowed: 0..999"),
        ([-1], r"unit -1, outside the codebook; allowed: 0..999"),
        ("<|audio_1|>junk", r"can't read 'junk'; allowed: <\|audio_N\|>"),
        ("12 13", "can't read '12 13'"),
        ([1.5], "list of integers"),
        ({"a": 1}, "list of integers"),
    ],
)
def test_wrong_units(units, message):
    with pytest.raises(ValueError, match=message):
        parse_units(units, 1000)


def test_speaker_embeddings(tmp_path):
    assert parse_speaker("", tmp_path) is None
    assert parse_speaker([0.5] * 512, tmp_path).tolist() == [0.5] * 512
    np.save(tmp_path / "s.npy", np.arange(512.0))
    assert parse_speaker("s.npy", tmp_path).tolist() == list(range(512))
    with pytest.raises(ValueError, match="512 finite numbers"):
        parse_speaker([1.0, 2.0], tmp_path)
    with pytest.raises(ValueError, match=r"spk_emb: can't read '.*none.npy'"):
        parse_speaker("none.npy", tmp_path)
