"""What a run says while it runs: metrics.jsonl for programs, TensorBoard, and the console.

Logs may fail and checkpoints may not: a full disk or a closed pipe turns a log off with one
warning and the run goes on. metrics.jsonl holds nothing that depends on the clock, so that the
files of two equal runs are equal to the byte; speed and memory go to TensorBoard.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor


class MetricsFile:
    """metrics.jsonl: one record a line; a resumed run cuts it to where its checkpoint was."""

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        with contextlib.suppress(OSError):
            os.truncate(path, min(length, path.stat().st_size))
        self._file: Any = _guarded("metrics.jsonl", lambda: path.open("ab"))
        self._length = self._file.tell() if self._file is not None else length  # what is whole

    def write(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            line = json.dumps(_plain(record), allow_nan=False) + "\n"
            if _guarded("metrics.jsonl", lambda: self._file.write(line.encode())) is None:
                self._file = None

    def sync(self) -> int:
        """Bring the file to the disk and return the length of what is there, for the checkpoint."""
        if self._file is None:
            return self._length

        def flush() -> tuple[int]:
            self._file.flush()
            os.fsync(self._file.fileno())
            return (self._file.tell(),)

        if (length := _guarded("metrics.jsonl", flush)) is None:
            self._file = None
        else:
            (self._length,) = length
        return self._length


class Board:
    """TensorBoard; imported only when a run wants it."""

    def __init__(self, directory: Path | None, step: int) -> None:
        self._writer: Any = None
        if directory is not None:
            self._writer = _guarded("TensorBoard", lambda: _writer(directory, step))

    def scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._do(lambda w, name=name, value=value: w.add_scalar(name, value, step))

    def picture(self, name: str, picture: Tensor, step: int) -> None:
        """``picture`` is (H, W, 3) uint8."""
        self._do(lambda w: w.add_image(name, picture.numpy(), step, dataformats="HWC"))

    def text(self, name: str, text: str) -> None:
        self._do(lambda w: w.add_text(name, text))

    def hparams(self, settings: dict[str, Any]) -> None:
        """What TensorBoard's own table compares runs by; written when a run begins.

        Only the record of a session goes into the run's own file. ``add_hparams`` would open a
        second file, and TensorBoard then reads no further in the first; and it would add the record
        of an experiment, of which TensorBoard takes a single one: the keys of one run for all.
        Without it the columns are the keys of all runs, those that differ first.
        """
        self._do(lambda w: w.file_writer.add_summary(_hparams(settings)[1]))

    def finished(self, metrics: dict[str, float], step: int) -> None:
        """The scores a run comes to. TensorBoard's table shows the first five scalars by name."""
        self.scalars({f"best/{name}": value for name, value in metrics.items()}, step)
        self._do(lambda w: w.file_writer.add_summary(_hparams({})[2]))

    def flush(self) -> None:
        self._do(lambda w: w.flush())

    def close(self) -> None:
        self._do(lambda w: w.close())

    def _do(self, action: Callable[[Any], Any]) -> None:
        if self._writer is None:
            return
        if _guarded("TensorBoard", lambda: (action(self._writer),)) is None:
            self._writer = None


def _writer(directory: Path, step: int) -> Any:
    from torch.utils.tensorboard.writer import SummaryWriter

    # purge_step hides what a killed run had logged beyond its checkpoint: no doubled steps. It is
    # the first step that is hidden, and those of the checkpoint's own step are to stay.
    return SummaryWriter(str(directory), purge_step=step + 1 if step else None)


def _hparams(settings: dict[str, Any]) -> Any:
    """TensorBoard's records of an experiment, of a session's start, of its end."""
    from torch.utils.tensorboard.summary import hparams

    plain = {
        name: value if type(value) in (int, float) else "none" if value is None else str(value)
        for name, value in settings.items()
    }
    return hparams(plain, {})


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }


def _guarded(what: str, action: Callable[[], Any]) -> Any:
    """The result of ``action``; None, and one warning, where the disk or pipe refuses."""
    try:
        return action()
    except (OSError, ValueError) as error:  # ValueError: the file was closed by an earlier failure
        with contextlib.suppress(OSError):
            print(f"warning: {what} is off from here on: {error}", file=sys.stderr)
        return None
