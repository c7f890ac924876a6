"""Checkpoints of one and of several processes: nothing in them is run, and what is wrong is one line with the file."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed import checkpoint as dcp

from lightning_s2s.scale.plain_reader import PlainPlanner, PlainReader
from lightning_s2s.scale.run_checkpoint import AtomicCheckpointIO
from lightning_s2s.scale.sharded_checkpoint import META, check_checkpoint, read_consolidated, read_sharded
from lightning_s2s.support.plain import load_plain, save_plain
from parts.pickled_code import PickledCode


@pytest.fixture
def harm(tmp_path):
    """Something that must not be run; seen to afterwards."""
    place = tmp_path / "harm"
    yield PickledCode(place)
    assert not place.exists()


def pieces(folder: Path, tensors: dict[str, Any], content: dict[str, Any]) -> Path:
    """A checkpoint as several processes write it, by one."""
    dcp.save(tensors, checkpoint_id=folder, no_dist=True)
    torch.save(content, folder / META)
    return folder


def run_state(**other: Any) -> dict[str, Any]:
    """Weights and an optimiser, by names, as several processes keep them."""
    groups = [{"params": ["model.weight"], "lr": 0.1, "betas": (0.9, 0.95), **other}]
    state = {"model.weight": {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 3)}}
    return {
        "state_dict": {"model.weight": torch.full((2, 3), 2.0)},
        "optimizer_0": {"state": state, "param_groups": groups},
    }


READERS = [check_checkpoint, AtomicCheckpointIO().load_checkpoint]


def test_a_run_of_several_processes_is_read_whole(tmp_path):
    path = pieces(tmp_path / "last.ckpt", run_state(), {"global_step": 3})
    content = read_consolidated(path)
    assert content["global_step"] == 3
    assert content["state_dict"]["model.weight"].tolist() == [[2.0] * 3] * 2
    (optimizer,) = content["optimizer_states"]
    assert optimizer["param_groups"] == [{"params": [0], "lr": 0.1, "betas": (0.9, 0.95)}]
    assert optimizer["state"][0]["step"] == 3 and optimizer["state"][0]["exp_avg"].sum() == 6
    assert check_checkpoint(path) == {"global_step": 3}
    content, tensors = read_sharded(path)
    assert content == {"global_step": 3} and tensors["model.weight"].shape == (2, 3)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("place", [META, ".metadata", "bytes"])
def test_code_in_a_checkpoint_of_several_processes_is_not_run(tmp_path, harm, read, place):
    state = run_state(**{"note": harm} if place == "bytes" else {})
    path = pieces(tmp_path / "last.ckpt", state, {"callbacks": harm} if place == META else {})
    if place == ".metadata":
        (path / place).write_bytes(pickle.dumps(harm))
    with pytest.raises(ValueError, match=r"last\.ckpt.*: holds pickled code \(posix\.mkdir\), none of which was run"):
        read(path)


def test_code_in_a_checkpoint_of_several_processes_is_not_run_by_those_that_read_it_together(tmp_path, harm):
    path = pieces(tmp_path / "last.ckpt", run_state(note=harm), {})
    wanted = run_state(note=None)["optimizer_0"]
    with pytest.raises(dcp.api.CheckpointException, match=r"posix\.mkdir"):
        dcp.load({"optimizer_0": wanted}, storage_reader=PlainReader(path), planner=PlainPlanner(), no_dist=True)


def as_archive(path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", ["saved by torch", "an archive", "a bare pickle", "torch's old kind of file"])
def test_code_in_a_file_is_not_run(tmp_path, harm, read, kind):
    path = tmp_path / "last.ckpt"
    if kind == "saved by torch":
        torch.save({"state_dict": {}, "callbacks": {"x": harm}}, path)
    elif kind == "an archive":
        as_archive(path, pickle.dumps(harm, protocol=2))
    elif kind == "a bare pickle":
        path.write_bytes(pickle.dumps(harm))
    else:
        torch.save({"callbacks": harm}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"last\.ckpt: (holds pickled code \(posix\.mkdir\)|is no checkpoint)"):
        read(path)


def broken(kind: str, path: Path, whole: bytes) -> None:
    content = {
        "empty": b"", "cut at half": whole[: len(whole) // 2], "cut at the end": whole[:-1], "random": os.urandom(4096),
        "text": b"not a checkpoint\n", "random behind the magic": b"PK\x03\x04" + os.urandom(4096),
    }  # fmt: skip
    if kind == "a folder":
        path.mkdir()
    elif kind == "a list":
        torch.save([1, 2], path)
    elif kind == "damaged in the middle":
        middle = whole.index(b"data.pkl") + 200
        path.write_bytes(whole[:middle] + b"\xff" * 40 + whole[middle + 40 :])
    elif kind != "missing":
        path.write_bytes(content[kind])


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("missing", "no such file; expected a .ckpt file or folder that `lightning-s2s fit` wrote"),
        ("empty", "is empty; expected"), ("a folder", "is a folder without a checkpoint in it; expected"),
        ("cut at half", "is cut off after"), ("cut at the end", "is cut off after"), ("random", "is no checkpoint"),
        ("text", "is no checkpoint; expected"), ("random behind the magic", "is cut off after"),
        ("a list", "holds list; expected"), ("damaged in the middle", "can't be read ("),
    ],
)  # fmt: skip
def test_a_broken_file_is_one_line(tmp_path, read, kind, expected):
    torch.save(
        {"state_dict": {"model.weight": torch.arange(1000.0)}, "callbacks": {"a": list(range(300))}}, tmp_path / "x"
    )
    path = tmp_path / "last.ckpt"
    broken(kind, path, (tmp_path / "x").read_bytes())
    with pytest.raises(ValueError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: {expected}") and "\n" not in str(error.value)


def test_a_file_that_unpacks_to_more_than_it_is(tmp_path):
    path = tmp_path / "last.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 26))
        archive.writestr("archive/version", b"3\n")
    with pytest.raises(ValueError, match=r"last\.ckpt: can't be read \(\d+ bytes claim to be 67108866\)"):
        load_plain(path)


def change_index(path: Path, change: Any) -> None:
    index = pickle.loads((path / ".metadata").read_bytes())
    change(index)
    (path / ".metadata").write_bytes(pickle.dumps(index))


def claim_much(index: Any) -> None:
    index.state_dict_metadata["state_dict.model.weight"].size = torch.Size([10**9, 10**3])


def name_another_folder(index: Any) -> None:
    for entry in index.storage_data.values():
        entry.relative_path = "../other.distcp"


def long_list(index: Any) -> None:
    name = next(name for name, path in index.planner_data.items() if len(path) > 2)
    index.planner_data[name] = (*index.planner_data[name][:-1], 10**12)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (claim_much, r"\.metadata claims 4\d+ bytes of tensors; the files have \d+"),
        (name_another_folder, r"\.metadata names a file in another folder, '\.\./other\.distcp'"),
        (long_list, r"\.metadata holds the list index 1000000000000"),
        (lambda index: index.storage_data.clear(), "can't be read"),
    ],
)
def test_an_index_that_lies(tmp_path, change, expected):
    path = pieces(tmp_path / "last.ckpt", run_state(), {})
    change_index(path, change)
    with pytest.raises(ValueError, match=expected):
        read_consolidated(path)


@pytest.mark.parametrize("kind", ["cut", "missing", "random", "no index"])
def test_broken_pieces(tmp_path, kind):
    path = pieces(tmp_path / "last.ckpt", run_state(), {})
    (piece,) = path.glob("*.distcp")
    if kind == "cut":
        piece.write_bytes(piece.read_bytes()[:-100])
    elif kind == "random":
        piece.write_bytes(os.urandom(piece.stat().st_size))
    else:
        (piece if kind == "missing" else path / ".metadata").unlink()
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read_consolidated(path)
    assert "last.ckpt" in str(error.value) and "\n" not in str(error.value)


def test_what_would_not_be_read_again_is_not_written(tmp_path):
    path = tmp_path / "last.ckpt"
    plain = {
        "a": [1, 2.0, None, True, "x", b"y", (1,), {2}],
        "b": {"c": torch.ones(2), "d": nn.Parameter(torch.ones(1))},
    }
    save_plain(plain, path)
    assert load_plain(path)["a"] == plain["a"]
    for other, name in (
        (tmp_path, "pathlib"),
        (np.float64(1), "numpy"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ):
        with pytest.raises(ValueError, match=f"a checkpoint would hold .*{name}"):
            AtomicCheckpointIO().save_checkpoint({"callbacks": {"mine": other}}, path)
    assert load_plain(path)["a"] == plain["a"] and [place.name for place in tmp_path.iterdir()] == ["last.ckpt"]
