"""Files that are written whole or not at all, and YAML whose mistakes are one line."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier

import pytest
import torch

from lightning_s2s.components.weights import write_tensors
from lightning_s2s.support.files import make_folder, remove_leftovers, replacing, write_text
from lightning_s2s.support.reading import read_yaml
from parts.waiting import SAFETY_LIMIT_SEC


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


@contextmanager
def full_disk(size=1 << 16):
    """Files can't grow beyond `size` bytes: the kernel refuses as it does on a full disk, with another number."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def write_by_torch(path: Path) -> None:
    with replacing(path) as temporary:
        torch.save({"weights": torch.zeros(1 << 18)}, temporary)


def write_by_safetensors(path: Path) -> None:
    write_tensors({"weights": torch.zeros(1 << 18)}, path)


def write_by_python(path: Path) -> None:
    write_text(path, "x" * (1 << 20))


@pytest.mark.parametrize("write", [write_by_torch, write_by_safetensors, write_by_python])
def test_a_full_disk_is_told_whatever_the_writer_says_and_what_was_there_stays(tmp_path, write):
    path = tmp_path / "last.ckpt"
    path.write_text("good")
    with full_disk(), pytest.raises(OSError, match="no space left") as raised:
        write(path)
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(path))
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("last.ckpt", "good")]


def test_a_writer_whose_message_alone_has_the_reason(tmp_path):
    with pytest.raises(OSError, match="no space left on device") as raised, replacing(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "x"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_on_a_full_disk(tmp_path):
    with full_disk(), pytest.raises(OSError, match="no space left") as raised:
        make_folder(tmp_path / "model", lambda folder: write_by_safetensors(folder / "model.safetensors"))
    assert raised.value.filename == str(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    done: list[tuple[str, str]] = []

    def record(what, function):
        def recording(place, *rest):
            done.append((what, Path(os.readlink(f"/proc/self/fd/{place}")).name if what == "sync" else place.name))
            return function(place, *rest)

        return recording

    monkeypatch.setattr(os, "fsync", record("sync", os.fsync))
    monkeypatch.setattr(Path, "replace", record("rename", Path.replace))
    write_text(tmp_path / "a" / "note.txt", "schön")
    temporary = done[0][1]
    assert done == [("sync", temporary), ("rename", temporary), ("sync", "a")] and temporary.endswith(".note.txt")


WRITER = """
import sys, time
from pathlib import Path
from lightning_s2s.support.files import make_folder, replacing
path = Path(sys.argv[1])
def fill(temporary):
    (temporary / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(3600)
if sys.argv[2] == "file":
    with replacing(path / "last.ckpt") as temporary:
        temporary.write_text("half")
        print("writing", flush=True)
        time.sleep(3600)
make_folder(path / "model", fill)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_leaves_is_removed_and_what_a_living_one_writes_is_not(tmp_path, kind):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), kind], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"writing\n"
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(f".{writer.pid}-")
    remove_leftovers(tmp_path)
    assert left.exists()
    writer.kill()
    os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has taken note
    remove_leftovers(tmp_path, "other")
    assert left.exists()
    remove_leftovers(tmp_path, "last.ckpt" if kind == "file" else "model")
    assert list(tmp_path.iterdir()) == []
    writer.communicate()


def test_leftovers_of_a_process_that_had_the_number_of_this_one_and_other_files(tmp_path):
    mine = tmp_path / f".{os.getpid()}-1.last.ckpt"
    mine.write_text("half")
    (tmp_path / f".{10**30}-1.last.ckpt").write_text("of no process")
    others = [".hidden", "1-2.last.ckpt", ".lock", "last.ckpt"]
    for name in others:
        (tmp_path / name).write_text("")
    with replacing(tmp_path / "note.txt") as temporary:
        temporary.write_text("in work")
        remove_leftovers(tmp_path)
        assert not mine.exists() and temporary.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "note.txt"])
