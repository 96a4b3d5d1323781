"""How long each training stage took. It is kept beside the checkpoints and not in them, because two
equal runs have equal checkpoints.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from cnnctl.engine.checkpoint import write_whole

FILE = "stage_seconds.json"


class StageTimes:
    """Adds up the seconds of each stage while it trains. A run that goes on adds to what it had
    taken at its last checkpoint; what was done after that and is done again counts once.

    Attributes:
        seconds: of each stage, by its name, evaluation and checkpoints left out.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stage = ""
        self._since: float | None = None  # None: nothing is counted now
        self._file: Path | None = None

    def open(self, directory: Path, goes_on: bool) -> None:
        """Keep them in ``directory``, and take from there what a run that goes on had taken."""
        self._file = directory / FILE
        if not goes_on:
            return
        try:
            before = json.loads(self._file.read_text())
            self.seconds = {str(stage): float(seconds) for stage, seconds in before.items()}
        except (OSError, ValueError, TypeError, AttributeError):  # a figure, no reason to stop
            self.seconds = {}

    def begin(self, stage: str) -> None:
        self.pause()
        self._stage = stage
        self.go_on()

    def pause(self) -> None:
        if self._since is not None:
            taken = time.monotonic() - self._since
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + taken
        self._since = None

    def go_on(self) -> None:
        self._since = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing counts within."""
        running = self._since is not None
        self.pause()
        try:
            yield
        finally:
            if running:
                self.go_on()

    def keep(self) -> None:
        """On the disk, as they belong to the checkpoint just written."""
        with self.paused():
            if self._file is not None:
                write_whole(self._file, json.dumps(self.seconds).encode())
