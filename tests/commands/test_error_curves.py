"""error_curves.png: from which runs of a sweep, with which names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cnnctl.commands import error_curves, sweep
from cnnctl.commands.jobs import DONE, WAITING, Job, Result
from cnnctl.errors import Exit

CLASSIFY = {"task": {"_target_": "cnnctl.tasks.classify.classify"}}


def result(folder: Path, number: int, varying: dict[str, str], **change: Any) -> Result:
    job = Job(f"{number}_job", varying, [], CLASSIFY, {})
    records = [
        {"epoch": epoch, "val/top1": 0.5 + epoch / 10, "on_train/top1": 0.6 + epoch / 10}
        for epoch in (1.0, 2.0)
    ]
    records.insert(1, {"epoch": 1.5, "train/loss": 0.3})
    (folder / job.name).mkdir()
    text = "".join(json.dumps(record) + "\n" for record in records[: change.pop("kept", 3)])
    (folder / job.name / "metrics.jsonl").write_text(text)
    return Result(job, DONE, {"monitor": "top1", "test": {"top1": 0.7}} | change)


def test_what_a_run_says(tmp_path):
    found = error_curves.curves_of(
        result(tmp_path, 0, {"model.plain": "true", "model.depth": "20"}), tmp_path
    )
    assert found is not None
    assert (found.panel, found.name, found.epochs) == ("plain true", "depth 20", [1.0, 2.0])
    assert found.train == pytest.approx([0.3, 0.2])
    assert found.held_out == pytest.approx([0.4, 0.3])
    assert found.test == pytest.approx(0.3)
    alone = error_curves.curves_of(result(tmp_path, 1, {"model": "mlp"}, test={}), tmp_path)
    assert alone is not None
    assert (alone.panel, alone.name, alone.test) == ("", "model mlp", None)
    assert error_curves.curves_of(result(tmp_path, 2, {}, kept=2), tmp_path) is None  # one point
    assert error_curves.curves_of(result(tmp_path, 3, {}, monitor="nll"), tmp_path) is None


def test_in_the_order_of_the_jobs_and_without_those_that_are_not_done(tmp_path, monkeypatch):
    results = [result(tmp_path, number, {"model.depth": str(number)}) for number in (10, 2, 1)]
    waiting = Result(Job("3_job", {}, [], CLASSIFY, {}), WAITING)
    seen = []
    original = error_curves.error_curves

    def drawn(runs, metric):
        seen.extend(run.name for run in runs)
        return original(runs, metric)

    monkeypatch.setattr(error_curves, "error_curves", drawn)
    path = error_curves.draw_errors([*results, waiting], tmp_path)
    assert path == tmp_path / "error_curves.png"
    assert Image.open(tmp_path / "error_curves.png").size == (620, 460)
    assert seen == ["depth 1", "depth 2", "depth 10"]
    assert error_curves.draw_errors(results[:1], tmp_path) is None


@pytest.mark.slow
def test_a_sweep_draws_them(tmp_path, capsys):
    settings = ["trainer.steps=6", "trainer.evaluate_every_steps=3", "trainer.score_train=true"]
    settings += ["trainer.tensorboard=false", "trainer.threads=1", "model=linear"]
    settings += ["optimizer.lr=0.01,0.1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    assert sweep.run(settings) == Exit.DONE
    picture = tmp_path / "sweep" / "error_curves.png"
    assert f"errors by epoch: {picture}" in capsys.readouterr().out
    assert Image.open(picture).size == (620, 460)
