"""Stopping on request: a handler only sets a flag, which the loops read."""

from __future__ import annotations

import signal
from types import FrameType


class Stopped(Exception):
    """The run was asked to stop and has saved itself; ``signum`` says by which signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


class StopFlag:
    """Set by SIGINT, SIGTERM or SIGHUP. A second SIGINT interrupts at once, without saving."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def install(self) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum

    def __bool__(self) -> bool:
        return self.signum is not None
