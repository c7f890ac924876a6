"""Manifest lines: what a row holds, and one clear error for each way to break a line."""

from __future__ import annotations

import gzip
import io
import json
import os
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
        ("[" * 100_000, "not JSON", "more than 64 levels deep"),
        ('{"messages": ' + "[" * 100 + "]" * 100 + "}", "not JSON", "more than 64 levels deep"),
        ('{"messages": [], "messages": []}', "not JSON", "key 'messages' stands twice"),
        ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "not JSON", "key 'content' stands twice"),
        ("1" * 5000, "not JSON", "4300 digits"),
        ("NaN", "not JSON", "is not a JSON object but nan"),
        (r'{"messages": [{"role": "user", "content": "a\ud800b"}]}', "not UTF-8",
         r"messages\[0\].content: has half a character \(.ud800, a lone surrogate\)"),
        (r'{"id": "\uDFFF"}', "not UTF-8", r"id: has half a character \(.udfff"),
        (r'{"a": {"\udc00": 1}}', "not UTF-8", r"the key .* has half a character \(.udc00"),
        ({"messages": {"role": "user"}}, "no messages", "messages: got {'role': 'user'}"),
        ({"messages": [None]}, "wrong message", r"messages\[0\]: got None"),
        (one(["user"], "a"), "wrong role", r"role: got \['user'\]"),
        (one("user", 3), "wrong content", "content: got 3; a string or a list"),
        (one("user", {"text": "a"}), "wrong content", "content: got {'text': 'a'}; a string or a list"),
        (one("user", [["a"]]), "wrong content", r"content: got \[\['a'\]\]"),
        ({"id": ["a"], **GOOD}, "wrong type", r"id: got \['a'\]; a string"),
        ({"id": True, **GOOD}, "wrong type", "id: got True; a string"),
        ({"speaker": {}, **GOOD}, "wrong type", "speaker: got {}; a string"),
        ({"task": 1.5, **GOOD}, "wrong type", "task: got 1.5; a string"),
        ({"ambiguous": "yes", **GOOD}, "wrong type", "ambiguous: got 'yes'; true or false"),
        *[
            (one("user", [{"audio": "a.wav", "audio_sec": value}]), "wrong content",
             r"content\[0\].audio_sec: got .*; a positive number of seconds, at most 7200, is needed")
            for value in (0, -1, 1e308, 7201, 10**400, float("nan"), float("inf"), True, "1", [1.0], {})
        ],
        *[
            (one("user", [{"text": "a", key: value}]), "wrong content", rf"content\[0\].{key}: got .*; .* is needed")
            for key in ("text", "audio", "audio_text", "transcript", "emotion") for value in (0, 1, False, [], {})
        ],
        *[
            (one("assistant", [{"text": "a", key: value}]), "wrong content", rf"content\[0\].{key}: got .* is needed")
            for key, value in [("speech_units", 5), ("speech_units", {}), ("speech_units", False), ("spk_emb", 5),
                               ("spk_emb", {}), ("speak", "true"), ("speak", 1)]
        ],
    ],
)  # fmt: skip
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


def test_null_counts_as_absent(write_manifest):
    keys = ("audio", "transcript", "emotion", "audio_text", "audio_sec", "speech_units", "speak", "spk_emb")
    row = {"id": None, "speaker": None, "ambiguous": None, **one("user", [{"text": "a"} | dict.fromkeys(keys)])}
    assert [found["id"] for found in read_manifest(write_manifest([row, {"id": 7, **GOOD}]))] == ["rows:1", "7"]


def test_a_byte_order_mark_and_other_ends_of_lines(tmp_path):
    line = json.dumps(GOOD).encode()
    for content in (
        b"\xef\xbb\xbf" + line + b"\r\n" + line + b"\r\n",
        line + b"\n\xef\xbb\xbf" + line,
        line + b"\r" + line,
    ):
        (tmp_path / "a.jsonl").write_bytes(content)
        assert [row["line"] for row in read_manifest(tmp_path / "a.jsonl")] == [1, 2]


def test_keys_that_nothing_reads_are_warned_of_once(write_manifest, caplog):
    def line(item=None, message=None, **row):
        user = {"role": "user", "content": [{"text": "a"} | (item or {})]} | (message or {})
        return {"messages": [user, ANSWER]} | row

    path = write_manifest([
        line({"speech_unit": "<|audio_1|>"}), line({"audios": "q.wav", "speech_unit": ""}), line({"Text": "b"}),
        line(message={"contents": "b"}), line(message={"audio": "q.wav"}), line(speeker="s"), line(transcript="t"),
        line(role="user"), line(line=7), {"messages": [{"role": "user", "content": [{"input_audio": {}}]}]},
    ])  # fmt: skip
    errors = []
    rows = list(Manifest(path).scan(lambda row: row["line"], errors.append))
    assert rows == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [str(error) for error in errors] == [f"{path}:10: messages[0].content: has no text and no audio"]
    item, known = "the content item key", "the nearest known key is"
    assert [record.message for record in caplog.records] == [
        f"{path}:1: {item} 'speech_unit' is not read: {known} 'speech_units' (2 rows)",
        f"{path}:2: {item} 'audios' is not read: {known} 'audio' (1 row)",
        f"{path}:3: {item} 'Text' is not read: {known} 'text' (1 row)",
        f"{path}:4: the message key 'contents' is not read: {known} 'content' (1 row)",
        f"{path}:5: the message key 'audio' is not read: it is a key of a content item (1 row)",
        f"{path}:6: the row key 'speeker' is not read: {known} 'speaker' (1 row)",
        f"{path}:7: the row key 'transcript' is not read: it is a key of a content item (1 row)",
        f"{path}:8: the row key 'role' is not read: it is a key of a message (1 row)",
        f"{path}:9: the row key 'line' is not read: reading adds one of its own (1 row)",
        f"{path}:10: {item} 'input_audio' is not read: {known} 'audio' (1 row)",
    ]


def test_keys_that_construct_writes_and_those_of_the_user_are_no_mistakes(write_manifest, caplog):
    item = {"text": "a", "augmentation": {"room": 1}, "speech_units": "", "spk_emb": "", "emotion": "sad"}
    row = {"messages": [{"role": "user", "content": [item]}, ANSWER], "seed": "s", "figures": {"snr": 3}, "source": "x"}
    read_manifest(write_manifest([row]))
    assert not caplog.records


def test_many_unknown_keys_are_counted(write_manifest, caplog):
    read_manifest(write_manifest([{"messages": [USER | {f"key{i}": 1}, ANSWER]} for i in range(30)]))
    assert len(caplog.records) == 21
    assert caplog.records[-1].message.endswith("rows.jsonl: has 10 more keys that are not read")


def test_keys_are_warned_of_before_the_first_error(write_manifest, caplog):
    path = write_manifest([{"messages": [USER, ANSWER | {"name": "x"}]}, "{"])
    with pytest.raises(ManifestError):
        read_manifest(path)
    assert [record.message for record in caplog.records] == [
        f"{path}:1: the message key 'name' is not read: the nearest known key is 'content' (1 row)"
    ]


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
        ([10**400], r"got the unit 1000.*, outside the codebook; allowed: 0..999"),
        (f"<|audio_{'9' * 5000}|>", "outside the codebook"),
        ([True], "list of integers"),
        (["1"], "list of integers"),
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
    with pytest.raises(ValueError, match=r"spk_emb: can't read '.*none.npy' \(there is no file"):
        parse_speaker("none.npy", tmp_path)


def test_units_without_a_codebook_are_bounded():
    assert parse_units([2**31 - 1]) == [2**31 - 1]
    with pytest.raises(ValueError, match="got the unit 2147483648, outside the codebook; allowed: 0..2147483647"):
        parse_units([2**31])


@pytest.mark.parametrize(
    "value",
    [[float("nan")] * 512, [1e400] * 512, [10**400] * 512, [1e300] * 512, ["1"] * 512, [True] * 512, [[0.0]], [None]],
)
def test_numbers_that_are_no_speaker(tmp_path, value):
    with pytest.raises(ValueError, match=r"spk_emb: got \[.*; 512 finite numbers are needed"):
        parse_speaker(value, tmp_path)


def test_files_that_are_no_speaker(tmp_path):
    def save(array) -> bytes:
        file = io.BytesIO()
        np.save(file, array, allow_pickle=True)
        return file.getvalue()

    good = save(np.zeros(512, np.float32))
    archive = io.BytesIO()
    np.savez(archive, a=np.zeros(512))
    for content, message in (
        (b"", "can't read"),
        (good[:60], "can't read"),
        (good[:-1], "can't read"),
        (good.replace(b"(512,)", b"(9**9,)"), "can't read"),
        (good.replace(b"(512,), }   ", b"(10**9,), }"), "can't read"),
        (good.replace(b"(512,), }      ", b"(9999999999,)}"), "can't read"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "can't read"),
        (save(np.array([{"a": 1}], object)), "can't read"),
        (save(np.full(512, np.nan)), "512 finite numbers"),
        (save(np.zeros(512, complex)), "no array of real numbers"),
        (save(np.zeros(511)), "512 finite numbers"),
        (archive.getvalue(), "no array of real numbers"),
        (bytes(2**20 + 1), "it has 1048577 bytes, at most 1048576 are read"),
    ):
        (tmp_path / "s.npy").write_bytes(content)
        with pytest.raises(ValueError, match=f"^spk_emb: .*{message}") as caught:
            parse_speaker("s.npy", tmp_path)
        assert "s.npy" in str(caught.value)
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(ValueError, match="is a pipe or a device"):
        parse_speaker("pipe.npy", tmp_path)
