"""How a process ends: what it says, where, and with which code."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cnnctl import outcome
from cnnctl.engine import checkpoint
from cnnctl.engine.loop import Loop
from cnnctl.errors import Exit, UserError


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_without_space_is_one_sentence(tmp_path):
    for arguments in (["--help"], ["train", "--help"], ["data", "list"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "cnnctl", *arguments],
                cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
        assert done.returncode == Exit.MACHINE, arguments
        assert done.stderr == "error: no space left for the output\n", arguments
    assert list(tmp_path.iterdir()) == []


def test_codes_and_sentences(capsys):
    def fails(error: BaseException):
        def action() -> int:
            raise error

        return action

    assert outcome.run(lambda: 7) == 7
    assert outcome.run(fails(UserError("is bad", advice="mend it", code=Exit.DATA))) == Exit.DATA
    assert capsys.readouterr().err == "error: is bad\nmend it\n"
    assert outcome.run(fails(KeyboardInterrupt())) == Exit.INTERRUPTED == 130
    assert capsys.readouterr().err == ""


def test_the_printed_command_resumes(train, command, tmp_path, monkeypatch, capfd):
    """As it stands, pasted into a shell, from a folder whose name a shell would take apart."""
    folder = tmp_path / "a (b's) $HOME, c=d"
    folder.mkdir()
    monkeypatch.chdir(folder)
    original = Loop._step

    def step(self: Loop, *arguments) -> None:
        original(self, *arguments)
        if self.progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", step)
        assert train(Path("run 1"), "trainer.steps=5") == 143
    lines = capfd.readouterr().out.splitlines()
    (line,) = [text.strip() for text in lines if text.startswith("  cnnctl train ")]
    assert shlex.split(line)[:2] == ["cnnctl", "train"]
    program = tmp_path / "bin" / "cnnctl"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')  # what the shell makes of it
    program.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert command(*done.stdout.splitlines()) == 0
    assert "resumed at step 3" in capfd.readouterr().out
    saved = checkpoint.read(folder / "run 1" / "last.pt")["progress"]
    assert saved["total_steps"] == 5
