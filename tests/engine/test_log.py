"""Logs: exact where they resume, and off rather than in the way."""

from __future__ import annotations

import errno
import json
import os
import signal
import time

import pytest

from cnnctl.engine.log import Board, MetricsFile
from cnnctl.engine.signals import SAME_REQUEST, StopFlag


def test_what_came_after_the_checkpoint_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    metrics.write({"step": 1})
    length = metrics.sync()
    assert length == path.stat().st_size == len('{"step": 1}\n')
    metrics.write({"step": 2})
    metrics.sync()
    again = MetricsFile(path, length)
    again.write({"step": 2, "again": True})
    assert again.sync() == path.stat().st_size
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1}, {"step": 2, "again": True}]


@pytest.mark.parametrize("there", [True, False])
def test_a_shorter_file_is_not_padded(there, tmp_path):
    path = tmp_path / "metrics.jsonl"
    if there:
        path.write_text('{"step": 1}\n')
    metrics = MetricsFile(path, 1000)
    metrics.write({"step": 2})
    metrics.sync()
    assert b"\0" not in path.read_bytes()
    assert path.read_text().endswith('{"step": 2}\n')


def test_no_number_json_does_not_have(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    metrics.write({"a": float("nan"), "b": float("inf"), "c": 0.1, "d": 3, "e": "x"})
    metrics.sync()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = (tmp_path / "metrics.jsonl").read_text()
    read = json.loads(text, parse_constant=refuse)
    assert read == {"a": None, "b": None, "c": 0.1, "d": 3, "e": "x"}


@pytest.mark.parametrize("full", ["write", "sync"])
def test_a_full_disk_turns_it_off_with_one_warning(full, tmp_path, capsys, monkeypatch):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    metrics.write({"step": 1})
    whole = metrics.sync()

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if full == "sync":
        monkeypatch.setattr(os, "fsync", refuse)
    else:
        monkeypatch.setattr(metrics, "_file", type("File", (), {"write": refuse})())
    for step in (2, 3):
        metrics.write({"step": step})
        assert metrics.sync() == whole, "a resumed run starts from what is whole"
    assert capsys.readouterr().err.count("warning: metrics.jsonl is off from here on") == 1


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    metrics = MetricsFile(tmp_path / "file" / "metrics.jsonl", 0)
    metrics.write({"step": 1})
    assert metrics.sync() == 0
    board = Board(tmp_path / "file" / "tensorboard", 0)
    board.scalars({"loss": 1.0}, 1)
    board.text("config", "x")
    board.close()
    warned = capsys.readouterr().err
    assert warned.count("metrics.jsonl is off") == 1
    assert warned.count("TensorBoard is off") == 1


def test_a_board_whose_writer_fails_is_off(tmp_path, capsys):
    board = Board(tmp_path / "tensorboard", 0)

    class Full:
        def add_scalar(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

    board._writer = Full()
    board.scalars({"loss": 1.0, "accuracy": 0.5}, 1)
    board.scalars({"loss": 1.0}, 2)
    assert capsys.readouterr().err.count("TensorBoard is off from here on") == 1


def test_no_doubled_steps_after_a_resume(tmp_path):
    """What a killed run had logged beyond its checkpoint is hidden by the next writer."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, stop, value in ((0, 8, 1.0), (6, 10, 2.0)):
        board = Board(tmp_path, max(0, start - 1))  # saved at step 5
        for step in range(start, stop):
            board.scalars({"loss": value}, step)
        board.close()
        time.sleep(1.1)  # event files are named by the second
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    seen = [(event.step, event.value) for event in events.Scalars("loss")]
    assert seen == [(step, 1.0 if step < 6 else 2.0) for step in range(10)]


def test_the_first_signal_counts():
    flag = StopFlag()
    assert not flag
    flag.install()
    os.kill(os.getpid(), signal.SIGTERM)
    assert flag
    assert flag.wait(5)
    assert flag.signum == signal.SIGTERM
    os.kill(os.getpid(), signal.SIGINT)  # the same request, handed on by a launcher
    assert flag.signum == signal.SIGTERM


def test_a_later_ctrl_c_interrupts_at_once():
    flag = StopFlag()
    flag.install()
    os.kill(os.getpid(), signal.SIGINT)
    flag._since -= 2 * SAME_REQUEST
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert not StopFlag().wait(0.01)
