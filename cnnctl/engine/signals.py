"""Stopping on request: a handler only sets a flag, which the loops read."""

from __future__ import annotations

import signal
import time
from types import FrameType

SAME_REQUEST = 1.0  # seconds: a launcher hands on the Ctrl-C that its processes get as well


class Stopped(Exception):
    """The run was asked to stop and has saved itself; ``signum`` says by which signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


class StopFlag:
    """Set by SIGINT, SIGTERM or SIGHUP. A later SIGINT interrupts at once, without saving."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._since = 0.0

    def install(self) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self._since = signum, time.monotonic()
        elif signum == signal.SIGINT and time.monotonic() - self._since > SAME_REQUEST:
            raise KeyboardInterrupt

    def wait(self, seconds: float) -> bool:
        """Whether a signal came, at the latest after ``seconds``."""
        until = time.monotonic() + seconds
        while self.signum is None and time.monotonic() < until:
            time.sleep(0.05)
        return self.signum is not None

    def __bool__(self) -> bool:
        return self.signum is not None
