"""Files that are written whole or not at all, and YAML whose mistakes are one line."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from waiting import SAFETY_LIMIT_SEC

from lightning_s2s.files import read_yaml, replacing, write_text


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "reply.json"
    path.write_text("before")
    with replacing(path) as temporary:
        assert temporary.suffix == ".json"
        temporary.write_text("after")
        assert path.read_text() == "before"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("reply.json", "after")]


def test_nothing_half_written_is_left(tmp_path):
    path = tmp_path / "reply.json"
    path.write_text("before")
    with pytest.raises(ValueError, match="disk full"), replacing(path) as temporary:
        temporary.write_text("half")
        raise ValueError("disk full")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("reply.json", "before")]


def test_threads_that_write_the_same_file_do_not_disturb_each_other(tmp_path):
    path, both = tmp_path / "clip.flac", Barrier(2, timeout=SAFETY_LIMIT_SEC)

    def write(content):
        with replacing(path) as temporary:
            temporary.write_text(content)
            both.wait()  # each has its own file open
            assert temporary.read_text() == content

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(write, ["one", "two"])) == [None, None]
    assert path.read_text() in ("one", "two") and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_made_where_it_is_missing(tmp_path):
    write_text(tmp_path / "deep" / "note.txt", "schön\n")
    assert (tmp_path / "deep" / "note.txt").read_bytes() == "schön\n".encode()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: 1\nb: [2", r"x\.yaml: line \d: not valid YAML"),
        (b"a: \xff", r"x\.yaml: not valid YAML: .utf-8. codec"),
    ],
)
def test_yaml_that_cannot_be_read_is_named(tmp_path, content, expected):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        read_yaml(path)
