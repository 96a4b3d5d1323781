"""How a process ends: exit code, a sentence for a user's mistake, the traceback of one of ours."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from cnnctl.errors import Exit, UserError


def run(action: Callable[[], int], *, debug: bool = False) -> int:
    """The exit code of ``action``; a failure is reported and becomes one."""
    try:
        code = action()
    except UserError as error:
        report(error)
        if debug:
            traceback.print_exc()
        code = error.code
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    except BrokenPipeError:  # `| head` has read enough
        _silence()
        code = 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            code = _report_bug()
        else:
            report(UserError("no space left for the output", code=Exit.MACHINE))
            _silence()
            code = Exit.MACHINE
    except Exception:
        code = _report_bug()
    try:
        sys.stdout.flush()
    except OSError:
        _silence()
    return int(code)


def _silence() -> None:
    """What is still buffered goes nowhere: its reader has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report(error: UserError) -> None:
    """One sentence on stderr, and one line of advice."""
    print(f"error: {error}", file=sys.stderr)
    if error.advice:
        print(error.advice, file=sys.stderr)


def _report_bug() -> Exit:
    """Something is wrong in cnnctl: say so, and keep the traceback for the report."""
    text = traceback.format_exc()
    run = os.environ.get("CNNCTL_RUN")  # set once a run has its directory
    try:
        path = Path(run or ".").absolute() / ("crash.txt" if run else "cnnctl-crash.txt")
        path.write_text(text)
        where = f"the traceback is in {path}"
    except OSError:
        print(text, file=sys.stderr)
        where = "the traceback is above"
    last = text.strip().splitlines()[-1]
    print(f"error: a fault in cnnctl: {last}\n{where}; please report it", file=sys.stderr)
    return Exit.BUG
