"""Run directories: one owner each, whatever starts at the same moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cnnctl.engine.run import RunDirectory, newest
from cnnctl.errors import Exit, UserError

CLAIM = """
import sys, time
from pathlib import Path
from cnnctl.engine.run import RunDirectory
sys.stdin.readline()
run = RunDirectory.claim(Path(sys.argv[1]))
print(run.path.name, flush=True)
sys.stdin.readline()
"""


def test_eight_at_once_get_eight(tmp_path):
    """Threads race for the name as processes do: mkdir decides."""
    start, claimed = threading.Barrier(8), []

    def claim() -> None:
        start.wait()
        claimed.append(RunDirectory.claim(tmp_path / "now"))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {run.path.name for run in claimed}
    assert names == {"now", *(f"now-{count}" for count in range(2, 9))}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.slow
def test_eight_processes_at_once_get_eight(tmp_path):
    processes = [started(tmp_path / "now") for _ in range(8)]
    names = {claimed(process) for process in processes}
    assert len(names) == 8
    assert {path.name for path in tmp_path.iterdir()} == names
    for process in processes:
        process.communicate("\n")


def started(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def claimed(process: subprocess.Popen[str]) -> str:
    """The directory it has got; it keeps it until its input ends."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_a_live_run_cannot_be_opened(tmp_path):
    live = RunDirectory.claim(tmp_path / "run")
    with pytest.raises(
        UserError, match=rf"another run is writing here \(process {os.getpid()} on "
    ):
        RunDirectory.reopen(tmp_path / "run")
    live.release()
    again = RunDirectory.reopen(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "lock").read_text())["pid"] == os.getpid()
    again.release()


def test_a_lock_goes_with_its_process(tmp_path):
    """Killed -9, a run leaves its lock file and not its lock."""
    process = started(tmp_path / "run")
    assert claimed(process) == "run"
    with pytest.raises(UserError) as caught:
        RunDirectory.reopen(tmp_path / "run")
    assert caught.value.code == Exit.BUSY
    assert f"process {process.pid} on" in str(caught.value)
    process.kill()
    process.communicate()
    RunDirectory.reopen(tmp_path / "run").release()


def test_a_lock_file_that_makes_no_sense(tmp_path):
    live = RunDirectory.claim(tmp_path / "run")
    (tmp_path / "run" / "lock").write_text("half a li")
    with pytest.raises(UserError, match="owner unknown"):
        RunDirectory.reopen(tmp_path / "run")
    live.release()


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="is a file, not a directory"):
        RunDirectory.claim(tmp_path / "run")


def test_where_nothing_can_be_made(tmp_path):
    (tmp_path / "outputs").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="cannot be written") as caught:
        RunDirectory.claim(tmp_path / "outputs" / "run")
    assert caught.value.code == Exit.MACHINE
    with pytest.raises(UserError, match="cannot be written: File name too long"):
        RunDirectory.claim(tmp_path / ("x" * 300))


def test_newest(tmp_path):
    with pytest.raises(UserError, match="there is no run here") as caught:
        newest(tmp_path / "outputs")
    assert caught.value.code == Exit.CHECKPOINT
    for when, name in ((30, "a"), (10, "b"), (20, "c/d")):
        path = tmp_path / "outputs" / name / "last.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        os.utime(path, (when, when))
    assert newest(tmp_path / "outputs") == Path(tmp_path / "outputs" / "a")
