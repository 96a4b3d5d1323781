"""``cnnctl train`` as a whole: what a run leaves behind, where it starts from, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from cnnctl.commands import train as training
from cnnctl.data.digits import Digits
from cnnctl.engine import checkpoint
from cnnctl.engine.console import Console
from cnnctl.engine.distributed import Processes
from cnnctl.engine.signals import StopFlag, Stopped
from cnnctl.models.mlp import MLP
from cnnctl.tasks.classify import classify


def test_what_a_run_leaves_behind(trained):
    assert {path.name for path in trained.iterdir()} == {
        *("best.pt", "last.pt", "previous.pt", "manifest.json", "lock"),
        *("config.yaml", "metrics.jsonl", "summary.json", "eval-test.json"),
        "stage_seconds.json",
    }
    summary = json.loads((trained / "summary.json").read_text())
    scores = json.loads((trained / "eval-test.json").read_text())
    assert summary["steps"] == 20
    assert summary["test"] == {name: scores[name] for name in summary["test"]}
    assert summary["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    state = checkpoint.read(trained / "best.pt")
    assert summary["best_step"] == state["progress"]["total_steps"]
    assert state["classes"] == list("0123456789")
    assert (state["channels"], state["native"]) == (1, [8, 8])
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["widths"] == [16]
    assert {**config, "trust": []} == {**state["config"], "trust": []}


def test_the_same_seed_is_the_same_run(trained, train, tmp_path):
    assert train(tmp_path / "again", "trainer.test=true") == 0
    for name in ("metrics.jsonl", "eval-test.json"):
        assert (tmp_path / "again" / name).read_bytes() == (trained / name).read_bytes()
    digests = [set(checkpoint.read_manifest(run)) for run in (trained, tmp_path / "again")]
    assert digests[0] == digests[1], "the very same files"


def test_processes_that_wait_for_the_first_stop_with_it():
    class Second(Processes):
        def from_first(self, item):
            return signal.SIGTERM.value  # what the first hands on where it was stopped

    def learn(data, watch):
        raise AssertionError("the first alone looks at the data")

    task = replace(classify(), learn=learn)
    with pytest.raises(Stopped) as stopped:
        training._learnt(task, Digits("val"), Second(1, 2), Console(quiet=True), StopFlag())
    assert stopped.value.signum == signal.SIGTERM


def test_an_existing_directory_is_not_written_to(trained, train, capsys):
    before = {path: path.read_bytes() for path in trained.iterdir()}
    assert train(trained, "seed=3") == 0
    beside = trained.with_name("trained-2")
    assert f"run: {beside}" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in trained.iterdir()} == before


def test_layers_that_published_weights_left_out_are_named(
    trained, train, tmp_path, capsys, monkeypatch
):
    said = "the published weights are of other classes: head.0, head.1 start at random"
    monkeypatch.setattr(MLP, "rebuilt", ("head.0", "head.1"))
    assert train(tmp_path / "run", "trainer.steps=1") == 0
    assert said in capsys.readouterr().out
    assert train(tmp_path / "other", "trainer.steps=1", f"init_from={trained}") == 0
    assert said not in capsys.readouterr().out


def test_init_from_takes_the_weights_and_nothing_else(trained, train, tmp_path, capsys):
    run = tmp_path / "run"
    settings = ("optimizer.lr=1e-12", "optimizer.weight_decay=0", "trainer.steps=1", "seed=5")
    assert train(run, *settings, f"init_from={trained}") == 0
    out = capsys.readouterr().out
    assert f"init_from {trained / 'best.pt'}: 4 tensors taken" in out
    given, taken = (
        checkpoint.read(path)["model"] for path in (trained / "best.pt", run / "last.pt")
    )
    for name, weight in given.items():
        torch.testing.assert_close(taken[name], weight, rtol=0, atol=1e-6)


def test_init_from_another_shape_says_what_did_not_fit(trained, train, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run, "model.widths=[16,16]", "trainer.steps=1", f"init_from={trained}") == 0
    out = capsys.readouterr().out
    assert "tensors taken" in out
    assert "left as initialised: " in out
    assert train(tmp_path / "none", "model=lenet", f"init_from={trained}") == 4
    said = capsys.readouterr().err
    assert f"{trained / 'best.pt'}: init_from: holds no tensor that fits" in said
    assert not (tmp_path / "none").exists()


def test_more_steps_may_not_be_less_precise(train, tmp_path):
    """bf16 trains too, to about the same loss."""
    losses = {}
    for precision in ("fp32", "bf16"):
        run = tmp_path / precision
        assert train(run, f"trainer.precision={precision}") == 0
        lines = (run / "metrics.jsonl").read_text().splitlines()
        losses[precision] = json.loads(lines[-1])["val/loss"]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def test_a_deterministic_run(train, tmp_path):
    assert train(tmp_path / "run", "debug=deterministic", "trainer.steps=2") == 0


def test_no_validation_split(train, picture_folder, tmp_path):
    """Without one the newest weights are the best, and there is nothing to monitor."""
    run = tmp_path / "run"
    settings = (f"data.root={picture_folder}", "data=folder", "data.validation=0", "data.test=0")
    size = ("augmentation.size=16", "trainer.batch_size=16", "trainer.workers=0")
    assert train(run, *settings, *size, "trainer.test=true", "trainer.steps=3") == 0
    assert checkpoint.read(run / "best.pt")["progress"]["total_steps"] == 3
    assert json.loads((run / "summary.json").read_text())["best"] is None


def test_streamed_pictures_are_learnt(train, picture_folder, tmp_path):
    """Red, green and blue are told apart within three epochs."""
    run = tmp_path / "run"
    settings = (f"data.root={picture_folder}", "data=folder", "augmentation=none", "data.test=0.3")
    size = ("augmentation.size=8", "trainer.batch_size=8", "trainer.workers=1")
    assert train(run, *settings, *size, "trainer.test=true", "trainer.steps=30") == 0
    scores = json.loads((run / "eval-test.json").read_text())
    assert scores["images"] == 18
    assert scores["top1"] == 1.0


def test_a_broken_picture_is_named(train, picture_folder, tmp_path, capsys):
    import shutil

    pictures = tmp_path / "pictures"
    shutil.copytree(picture_folder, pictures)
    broken = pictures / "red" / "7.png"
    broken.write_bytes(broken.read_bytes()[:100])
    settings = (f"data.root={pictures}", "data=folder", "data.validation=0", "data.test=0")
    size = ("augmentation.size=8", "trainer.batch_size=60", "trainer.workers=1")
    assert train(tmp_path / "run", *settings, *size) == 3
    said = capsys.readouterr().err
    assert str(broken) in said
    assert "Traceback" not in said
    assert train(tmp_path / "second", *settings, "augmentation.size=8", "trainer.batch_size=59",
                 "trainer.workers=0", "trainer.steps=2", "data.skip_broken=true") == 0  # fmt: skip
    assert f"train: skipped: {broken}: " in capsys.readouterr().out


def test_a_fault_of_ours_leaves_its_traceback_in_the_run(train, tmp_path, capsys, monkeypatch):
    from cnnctl.models.mlp import MLP

    def forward(self, pixels):
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(MLP, "forward", forward)
    run = tmp_path / "run"
    assert train(run) == 1
    assert str(run / "crash.txt") in capsys.readouterr().err
    assert "ZeroDivisionError: a fault" in (run / "crash.txt").read_text()
    from cnnctl.engine.run import RunDirectory

    RunDirectory.reopen(run).release()  # the lock is gone with the run


def test_a_process_of_its_own_stopped_and_resumed(tmp_path, tiny, command, capsys):
    """By SIGTERM from outside; meanwhile the directory is busy."""
    settings = [name for name in tiny if not name.startswith("trainer.steps")]
    process = subprocess.Popen(
        [sys.executable, "-m", "cnnctl", "train", "hydra.run.dir=run", *settings,
         "trainer.steps=100000000", "trainer.save_every=1000"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 60
    while not (tmp_path / "run" / "last.pt").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert command("train", f"resume={tmp_path / 'run'}") == 7
    assert f"(process {process.pid} on " in capsys.readouterr().err
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (143, "")
    step = checkpoint.read(tmp_path / "run" / "last.pt")["progress"]["total_steps"]
    assert f"stopped at step {step}, saved; continue with:" in out
    assert f"  cnnctl train resume={tmp_path / 'run'}" in out.splitlines()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_fills_up(train, command, tmp_path, capsys):
    """A real one, of a megabyte: the last good checkpoint is kept, and resumes with more room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        run = disk / "run"
        code = train(run, "model.widths=[256]", "trainer.keep_every=2")
        assert code == 5
        said = capsys.readouterr().err
        assert "the disk is full" in said
        reached = checkpoint.Checkpoints(run, clean=False).load_last()[0]["progress"]["total_steps"]
        assert 0 < reached < 20
        assert not [path for path in run.glob(".*")]
        larger = ["mount", "-o", "remount,size=10m", str(disk)]
        subprocess.run(larger, check=True, capture_output=True)
        assert command("train", f"resume={run}") == 0
        assert checkpoint.read(run / "last.pt")["progress"]["total_steps"] == 20
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_closed_pipe_does_not_end_a_run(tmp_path, tiny):
    """``cnnctl train | head -1``: training goes on, silently."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cnnctl", "train", "hydra.run.dir=run", *tiny],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_every_path_may_be_relative_and_have_spaces(tmp_path, monkeypatch, train, command, capsys):
    monkeypatch.chdir(tmp_path)
    assert train(Path("my runs/first run"), "trainer.steps=2") == 0
    assert command("train", "resume=my runs/first run", "trainer.steps=4") == 0
    assert command("eval", "checkpoint=my runs/first run/last.pt") == 0
    assert (tmp_path / "my runs" / "first run" / "eval-test.json").exists()
