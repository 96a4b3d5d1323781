"""Sweeps: real ones, of tiny runs on the embedded digits."""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cnnctl import build, compose
from cnnctl.commands import jobs, sweep
from cnnctl.commands.combinations import NAME_LENGTH, config_loader, job_name, list_jobs
from cnnctl.commands.jobs import Job, Result
from cnnctl.engine.journal import Journal
from cnnctl.engine.run import RunDirectory
from cnnctl.errors import Exit, UserError

TINY = ["trainer.steps=6", "trainer.tensorboard=false", "trainer.threads=1"]
GRID = [*TINY, "optimizer.lr=0.001,0.5", "model=linear,mlp"]
NAMES = [
    "0_optimizer.lr-0.001_model-linear",
    "1_optimizer.lr-0.001_model-mlp",
    "2_optimizer.lr-0.5_model-linear",
    "3_optimizer.lr-0.5_model-mlp",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("sweep") / "one"
    assert sweep.run([*GRID, f"hydra.sweep.dir={directory}"]) == Exit.DONE
    return directory


def _table(directory: Path, name: str = "sweep.csv") -> list[dict[str, str]]:
    with (directory / name).open() as file:
        return list(csv.DictReader(file))


def _summary(directory: Path) -> dict:
    return json.loads((directory / "summary.json").read_text())


def _mtimes(directory: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(directory.glob("*_*/*"))}


def test_every_combination_has_its_own_run_and_the_table_ranks_them(finished):
    assert sorted(path.name for path in finished.iterdir() if path.is_dir()) == NAMES
    rows = _table(finished)
    bests = [float(row["best"]) for row in rows]
    assert bests == sorted(bests, reverse=True)
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert bests[0] > bests[-1]  # the rates do make a difference
    for row in rows:
        summary = _summary(finished / row["job"])
        assert float(row["best"]) == summary["best"]
        assert float(row["test/top1"]) == summary["test"]["top1"]
        assert (row["monitor"], row["steps"], row["status"]) == ("top1", "6", "done")
        assert row["job"].endswith(f"_optimizer.lr-{row['optimizer.lr']}_model-{row['model']}")


def test_a_job_is_the_run_that_its_overrides_alone_would_be(finished, command, tmp_path):
    alone = [*TINY, "optimizer.lr=0.5", "model=mlp", f"hydra.run.dir={tmp_path / 'alone'}"]
    assert command("train", *alone) == 0
    ours = (finished / NAMES[3] / "metrics.jsonl").read_bytes()
    assert ours == (tmp_path / "alone" / "metrics.jsonl").read_bytes()


def test_a_finished_sweep_is_not_done_again(finished, capfd):
    before = _mtimes(finished)
    assert sweep.run([*GRID, f"hydra.sweep.dir={finished}"]) == Exit.DONE
    assert _mtimes(finished) == before
    assert "4 jobs, 4 of them done before" in capfd.readouterr().out


def test_what_no_result_depends_on_may_change(finished):
    changed = [*GRID[:-2], "trainer.workers=0", *GRID[-2:], f"hydra.sweep.dir={finished}"]
    assert sweep.run(changed) == Exit.DONE


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ([*GRID[:-1], "model=linear"], "holds another sweep, of 4 jobs"),
        ([*GRID, "seed=1"], "seed was 0 there and would be 1"),
        ([*GRID, "optimizer=adam"], "holds another sweep: optimizer._target_"),
    ],
)
def test_another_sweep_into_the_same_directory_is_refused(finished, overrides, problem):
    before = (finished / "sweep.json").read_bytes()
    with pytest.raises(UserError, match=problem) as error:
        sweep.run([*overrides, f"hydra.sweep.dir={finished}"])
    assert error.value.code == Exit.CONFIG
    assert (finished / "sweep.json").read_bytes() == before


def test_a_live_sweep_is_left_alone(finished):
    lock = RunDirectory.reopen(finished)
    try:
        with pytest.raises(UserError, match="another run is writing here") as error:
            sweep.run([*GRID, f"hydra.sweep.dir={finished}"])
    finally:
        lock.release()
    assert error.value.code == Exit.BUSY


def test_a_directory_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"other things in it, and no sweep\.json"):
        sweep.run([*GRID, f"hydra.sweep.dir={tmp_path}"])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_sweeps_of_one_second_have_two_directories(tmp_path):
    first = sweep.claim(tmp_path / "now", given=False)
    second = sweep.claim(tmp_path / "now", given=False)
    assert [first.path.name, second.path.name] == ["now", "now-2"]
    first.release()
    second.release()


BAD = {
    "a value of the wrong type": (["optimizer.lr=0.1,abc"], r"job 2 of 2 \(optimizer.lr=abc\)"),
    "an option that is not there": (["model=mlp,lenett"], r'job 2 .*there is no model "lenett"'),
    "a key that is not there": (["optimiser.lr=1,2"], "optimiser"),
    "an interval": (["optimizer.lr=interval(0,1)"], "an interval has no list of values"),
    "Hydra's own settings": (["hydra.launcher.x=1,2"], "Hydra's own settings cannot be swept"),
    "another sweeper": (["hydra.sweep.subdir=x", "seed=1,2"], r"hydra\.sweep\.subdir"),
    "a run to resume": (["resume=/x", "seed=1,2"], "a sweep makes runs of its own"),
    "nothing that fits": (["model=glob(nothing*)"], "one of the sweeps has no value"),
    "a broken list": (["seed=1,"], "cannot be read"),
    "the environment": (["+hydra.job.env_set.A=1", "seed=1,2"], "cannot set the environment"),
    "a launcher that is not there": (
        ["hydra/launcher=mars", "seed=1,2"],
        'no hydra/launcher "mars"',
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_all_jobs_are_checked_before_anything_is_made(case, tmp_path):
    overrides, problem = BAD[case]
    with pytest.raises(UserError, match=problem) as error:
        sweep.run([*TINY, *overrides, f"outputs={tmp_path / 'outputs'}"])
    assert error.value.code == Exit.CONFIG
    assert not (tmp_path / "outputs").exists()


def test_a_callback_in_a_yaml_is_not_run(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "evil.yaml").write_text(
        "# @package _global_\nhydra:\n  callbacks:\n    bad:\n"
        f"      _target_: pathlib.Path.touch\n      self: {tmp_path / 'touched'}\n"
    )
    overrides = [*GRID, "experiment=evil", f"outputs={tmp_path / 'outputs'}"]
    with pytest.raises(UserError, match=r"hydra\.callbacks: a configuration cannot name code"):
        sweep.run(overrides, str(tmp_path))
    assert not (tmp_path / "touched").exists()
    assert not (tmp_path / "outputs").exists()


def test_joblib_that_is_not_installed_is_one_sentence(monkeypatch):
    monkeypatch.setattr(sweep.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="joblib is not installed") as error:
        sweep.run([*GRID, "hydra/launcher=joblib"])
    assert error.value.advice == "pip install 'cnnctl[joblib]'"


@pytest.mark.slow
def test_a_failed_job_is_recorded_and_tried_again(tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    directory = tmp_path / "sweep"
    overrides = [*TINY, "model=linear", "data=mnist,digits", f"hydra.sweep.dir={directory}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CNNCTL_DATA", str(tmp_path / "empty"))
        assert sweep.run(overrides) == Exit.DATA
        failed, done = _table(directory)[1], _table(directory)[0]
        assert (done["data"], done["status"], done["rank"]) == ("digits", "done", "1")
        assert (failed["data"], failed["status"], failed["rank"]) == ("mnist", "failed", "")
        error = json.loads((directory / "0_data-mnist" / "error.json").read_text())
        assert error["code"] == Exit.DATA
        assert "train-images-idx3-ubyte" in error["problem"] == failed["error"]
        out = capfd.readouterr()
        assert "error: " in out.err
        assert "0 jobs left, 1 failed; continue with:" in out.out
        before = _mtimes(directory / "1_data-digits")
        first_try = (directory / "0_data-mnist" / "error.json").stat().st_mtime_ns
        assert sweep.run(overrides) == Exit.DATA
    assert _mtimes(directory / "1_data-digits") == before
    assert (directory / "0_data-mnist" / "error.json").stat().st_mtime_ns > first_try


def test_a_fault_leaves_its_traceback_and_the_sweep_goes_on(tmp_path, monkeypatch):
    directory, model = tmp_path / "sweep", build.model

    def faulty(config, *given, **more):
        if "mlp" in config.model._target_:
            raise RuntimeError("a bolt is loose")
        return model(config, *given, **more)

    command = [*TINY, "model=mlp,linear", f"hydra.sweep.dir={directory}"]
    monkeypatch.setattr(build, "model", faulty)
    assert sweep.run(command) == Exit.BUG
    crash = (directory / "0_model-mlp" / "crash.txt").read_text()
    assert "a bolt is loose" in crash
    assert "Traceback" in crash
    assert [row["status"] for row in _table(directory)] == ["done", "failed"]
    monkeypatch.setattr(build, "model", model)
    assert sweep.run(command) == Exit.DONE
    assert [row["status"] for row in _table(directory)] == ["done", "done"]
    assert not (directory / "0_model-mlp" / "crash.txt").exists()


def _signal_at(step: int, signum: int, monkeypatch) -> Callable[[], None]:
    """Have this process sent ``signum`` when a run comes to ``step``; the result undoes it."""
    stepped = Journal.stepped

    def signalled(self, now: int, images: int) -> None:
        stepped(self, now, images)
        if now == step:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(Journal, "stepped", signalled)
    return lambda: monkeypatch.setattr(Journal, "stepped", stepped)


def test_an_interrupted_sweep_goes_on_where_it_was(finished, command, tmp_path, monkeypatch, capfd):
    directory = tmp_path / "with space"
    undo = _signal_at(3, signal.SIGTERM, monkeypatch)
    code = sweep.run([*GRID, f"hydra.sweep.dir='{directory}'"])
    assert code == Exit.TERMINATED
    status = {row["job"]: row["status"] for row in _table(directory)}
    assert [status[name] for name in NAMES] == ["stopped", *["not started"] * 3]
    printed = capfd.readouterr().out.splitlines()[-1]
    undo()
    assert command(*shlex.split(printed)[1:]) == 0
    assert [row["job"] for row in _table(directory)] == [row["job"] for row in _table(finished)]
    for name in NAMES:  # the same to the byte as without the interruption
        ours = (directory / name / "metrics.jsonl").read_bytes()
        assert ours == (finished / name / "metrics.jsonl").read_bytes()


def test_a_job_killed_before_its_first_checkpoint_starts_over(finished, tmp_path):
    directory = tmp_path / "sweep"
    killed = directory / "0_model-linear"
    (killed / "tensorboard").mkdir(parents=True)
    (killed / "metrics.jsonl").write_text('{"step": 1}\n')
    jobs.write_plan(
        directory / "sweep.json",
        list_jobs([*TINY, "model=linear,mlp", "optimizer.lr=0.5"], None, config_loader())[0],
    )
    command = [*TINY, "model=linear,mlp", "optimizer.lr=0.5", f"hydra.sweep.dir={directory}"]
    assert sweep.run(command) == Exit.DONE
    again = (killed / "metrics.jsonl").read_bytes()
    assert again == (finished / NAMES[2] / "metrics.jsonl").read_bytes()
    assert not (killed / "tensorboard").exists()


def test_ranges_choices_globs_and_shuffles_are_listed():
    def rows(*overrides: str) -> list[dict[str, str]]:
        return [job.varying for job in list_jobs([*TINY, *overrides], None, config_loader())[0]]

    assert rows("seed=range(1,6,2)") == [{"seed": "1"}, {"seed": "3"}, {"seed": "5"}]
    models = compose.groups()["model"]
    fitting = [{"model": name} for name in models if name == "lenet" or name.startswith("li")]
    assert {"model": "lenet"} in fitting
    assert rows("model=glob([lenet,li*])") == fitting
    assert rows("model=choice(mlp)") == [{}]
    first = rows("seed=shuffle(range(0,6))")
    assert first == rows("seed=shuffle(range(0,6))")
    assert sorted(row["seed"] for row in first) == list("012345")
    assert rows("hydra.sweeper.params={}", "seed=1,2") == [{"seed": "1"}, {"seed": "2"}]


def test_a_sweep_may_be_written_in_a_yaml_file(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "grid.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: 1,2\n      model: mlp\n"
    )
    loader = config_loader()
    plan, _ = list_jobs([*TINY, "experiment=grid"], str(tmp_path), loader)
    assert [job.varying for job in plan] == [{"seed": "1"}, {"seed": "2"}]
    plan, _ = list_jobs([*TINY, "experiment=grid", "seed=7"], str(tmp_path), loader)
    assert [job.config["seed"] for job in plan] == [7]


def test_names_can_be_typed_without_quotes_and_are_short():
    parser = OverridesParser.create()
    nasty = {"optimizer.betas": "[0.9,0.99]", "init_from": "/a b/'c'=d", "é": "x" * 300}
    for index in (0, 7, 999):
        name = job_name(index, 1000, nasty)
        assert name.startswith(f"{index:03d}_optimizer.betas-")
        assert len(name) <= NAME_LENGTH
        assert parser.parse_override(f"resume=out/{name}").value() == f"out/{name}"
    assert job_name(0, 1, {}) == "0"


def test_ranking_knows_which_way_is_better_and_puts_what_has_no_score_last():
    plan, _ = list_jobs([*TINY, "seed=range(0,5)", "trainer.monitor=loss"], None, config_loader())

    def result(job: Job, best: float | None) -> Result:
        return Result(job, jobs.DONE, {"monitor": "loss", "best": best})

    results = [
        Result(plan[0], jobs.FAILED, error={"code": 3}),
        result(plan[1], 2.0),
        result(plan[2], None),
        result(plan[3], 0.5),
        result(plan[4], math.nan),
    ]
    order = [item.job.config["seed"] for item in jobs.ranked(results)]
    assert order == [3, 1, 2, 4, 0]
    for item in results:
        item.job.config["trainer"]["monitor"] = item.summary["monitor"] = "top1"
    assert [item.job.config["seed"] for item in jobs.ranked(results)][:2] == [1, 3]


@pytest.mark.slow
def test_joblib_runs_two_at_a_time_and_a_signal_reaches_them(finished, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    directory = tmp_path / "sweep"
    overrides = ["trainer.steps=4000,6", "model=mlp,linear", "trainer.tensorboard=false"]
    overrides += ["optimizer.lr=0.5", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    command = [sys.executable, "-m", "cnnctl", "train", "-m", *overrides]
    command += [f"hydra.sweep.dir={directory}"]
    environment = {name: v for name, v in os.environ.items() if name != "OMP_NUM_THREADS"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    names = ("0_trainer.steps-4000_model-mlp", "1_trainer.steps-4000_model-linear")
    until = time.monotonic() + 60
    while not all((directory / name / "last.pt").exists() for name in names):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == Exit.TERMINATED
    assert "[1/4] trainer.steps=4000 model=mlp: stopped" in out.splitlines()
    assert "epoch" not in out  # it is in each job's own log
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert again.returncode == Exit.DONE
    assert {row["status"] for row in _table(directory)} == {"done"}
    log = (directory / names[0] / "log.txt").read_text()
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert f"cpu, {share} threads" in log
    assert "resumed at step" in log
    assert len([line for line in again.stdout.splitlines() if line.startswith("[")]) == 8
