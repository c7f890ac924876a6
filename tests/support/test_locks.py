"""One owner at a time for a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from lightning_s2s.support.locks import LOCK, holding

HOLDER = """
import os, sys, time
from pathlib import Path
from lightning_s2s.support.locks import holding
with holding(Path(sys.argv[1]), "another run"):
    if not os.fork():
        print("held", flush=True)
        time.sleep(3600)
    time.sleep(3600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder, and a child of it that does not."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_second_owner_is_refused_and_a_dead_one_is_none(tmp_path, holder, capsys):
    with pytest.raises(ValueError) as refused, holding(tmp_path, "another run"):
        pass
    assert str(refused.value) == (
        f"{tmp_path}: another run (process {holder.pid}) is at work there; wait for its end, or give another folder"
    )
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    with holding(tmp_path, "another run"):  # though its child, such as a loader's worker, lives
        assert (tmp_path / LOCK).read_text().split()[0] == str(os.getpid())
        with (
            pytest.raises(ValueError, match=rf"another run \(process {os.getpid()}\)"),
            holding(tmp_path, "another run"),
        ):
            pass
    assert (tmp_path / LOCK).read_text() == ""
    assert capsys.readouterr().err == ""


def test_an_owner_on_another_machine_that_did_not_give_it_back_is_told(tmp_path, capsys):
    (tmp_path / LOCK).write_text("17 elsewhere\n")
    with holding(tmp_path, "another run"):
        pass
    assert "another run (process 17 on elsewhere) did not give this folder back" in capsys.readouterr().err


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
    import fcntl

    def refuse(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with holding(tmp_path, "another run"):
        pass
    assert "no lock (Function not implemented); see that nothing else writes there" in capsys.readouterr().err


def test_a_lock_is_held_until_the_last_command_that_inherits_it_ends(tmp_path, capsys):
    with holding(tmp_path, "another call") as held:
        left_behind = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[held])
    with pytest.raises(ValueError, match="another call is at work there"), holding(tmp_path, "another call"):
        pass
    left_behind.communicate()
    with holding(tmp_path, "another call", wait=True):
        pass
    assert capsys.readouterr().err == ""


def test_the_end_of_another_owner_is_waited_for(tmp_path):
    waiting = "import sys; from pathlib import Path; from lightning_s2s.support.locks import holding\n"
    waiting += "with holding(Path(sys.argv[1]), 'another call', wait=True): print('mine')"
    with holding(tmp_path, "another call"):
        waiter = subprocess.Popen(
            [sys.executable, "-c", waiting, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        line = waiter.stderr.readline().decode()
        assert line == f"{tmp_path}: another call (process {os.getpid()}) is at work; waiting\n"
        assert waiter.poll() is None
    assert waiter.communicate()[0] == b"mine\n"
