"""How long ``cnnctl`` takes to answer from nothing: help, a mistake, the first training step."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

from cnnctl.errors import Exit, UserError

HELP, MISTAKE, FIRST_STEP = "start: --help", "start: a mistake", "start: first training step"
_RUN = "import sys; from cnnctl import cli; cli.main(sys.argv[1:])"
# Ends the process once a step is made; a run that is cut off there has nothing to tidy up.
_TO_FIRST_STEP = """
import os, sys
from cnnctl import cli
import importlib.abc, importlib.util

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "cnnctl.engine.loop":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            step = module.Loop._step
            def first(self, *given):
                step(self, *given)
                os._exit(0)
            module.Loop._step = first
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
cli.main(sys.argv[1:])
"""


def answering() -> dict[str, Callable[[], None]]:
    """``HELP`` and ``MISTAKE``."""
    return {
        HELP: lambda: _run(_RUN, ["--help"], Exit.DONE),
        MISTAKE: lambda: _run(_RUN, ["train", "trainer.epoch=3"], Exit.CONFIG),
    }


def first_step(words: Sequence[str], config_dir: str | None) -> None:
    """``cnnctl train words`` in a folder that is thrown away, until its first step is made.

    Raises:
        UserError: it ends before.
    """
    kept = [word for word in words if word.partition("=")[0] not in ("outputs", "hydra.run.dir")]
    own = ["--config-dir", config_dir] if config_dir is not None else []
    with tempfile.TemporaryDirectory() as folder:
        _run(_TO_FIRST_STEP, ["train", *own, *kept, f"hydra.run.dir={folder}/run"], Exit.DONE)


def _run(program: str, arguments: Sequence[str], code: Exit) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != code:
        said = done.stderr.strip().splitlines()
        raise UserError(
            f"cnnctl {arguments[0]} ended with {done.returncode} in a process of its own"
            + (f": {said[0].removeprefix('error: ')}" if said else ""),
            field="parts",
            advice="leave start out",
            code=Exit.MACHINE,
        )
