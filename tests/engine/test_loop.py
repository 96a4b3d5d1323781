"""The loop: everything that changes is restored, and what goes wrong leaves the last good state."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

from cnnctl.engine import checkpoint, loop
from cnnctl.engine.averaging import weights
from cnnctl.engine.loop import Loop, Progress
from cnnctl.engine.trainer import parameter_groups


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# What changes while a run goes on and need not be restored, each with its reason.
OF_THE_CLOCK = {
    f"journal.{name}": "speed and drawing: never in metrics.jsonl"
    for name in (
        *("_images", "_since", "_drawn", "_note", "speed", "_training_images"),
        *("_training_seconds", "_means", "_seen", "_run", "_bar", "console"),
    )
} | {
    f"times.{name}": "how long stages took: in a file of its own"
    for name in ("_since", "seconds", "_stage")
}
OTHERS = {
    "journal.metrics": "the file itself: its length is progress.metrics_bytes",
    "checkpoints": "digests of the files on the disk, read from them",
    "resumed": "what is being restored",
    "journal.album": "pictures for TensorBoard",
    "train": "an order computed from the position",
    "val": "likewise",
}


def picture(value: Any, path: str = "", seen: frozenset[int] = frozenset()) -> dict[str, Any]:
    """Dotted path -> plain value for every attribute below ``value``."""
    if path in OF_THE_CLOCK or path in OTHERS or id(value) in seen:
        return {}
    if isinstance(value, torch.Tensor):
        return {path: (value.requires_grad, value.detach().clone().view(-1).tolist())}
    if isinstance(value, optim.Optimizer):
        value = value.state_dict()
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, nn.Module):
        value = {"training": value.training, **dict(value.named_parameters()), **value.state_dict()}
    elif hasattr(value, "__dict__") and type(value).__module__.startswith("cnnctl"):
        value = vars(value)
    if isinstance(value, dict):
        below = (
            picture(item, f"{path}.{key}".lstrip("."), seen | {id(value)})
            for key, item in value.items()
        )
        return {name: leaf for part in below for name, leaf in part.items()}
    plain = value is None or isinstance(value, (bool, int, float, str, torch.dtype, Path))
    return {path: repr(value)} if plain else {}


@pytest.fixture
def pictures(monkeypatch):
    """step -> the picture of the loop just before it, of whatever is run in this test."""
    taken: dict[int, dict[str, Any]] = {}
    original = Loop._step

    def step(self: Loop, *arguments):
        taken[self.progress.total_steps] = picture(self)
        original(self, *arguments)

    monkeypatch.setattr(Loop, "_step", step)
    return taken


def test_every_attribute_that_changes_is_restored(pictures, train, command, tmp_path, monkeypatch):
    settings = (
        *("model.batch_norm=true", "trainer.ema=0.9", "trainer.patience=3", "optimizer=adamw"),
        *("trainer.save_every=2", "trainer.accumulate=2", "trainer.clip=1"),
    )
    assert train(tmp_path / "whole", *settings) == 0
    whole = dict(pictures)
    moving = {name for name in whole[19] if whole[19][name] != whole[0].get(name)}
    for expected in (
        *("progress.step", "progress.total_steps", "progress.metrics_bytes", "progress.best"),
        *("model.", "average.averaged.module.", "average.averaged.n_averaged"),
        *("rate", "opt.state.0.exp_avg"),
    ):
        assert any(name.startswith(expected) for name in moving), expected
    pictures.clear()
    with monkeypatch.context() as patch:
        original, count = Loop._after_step, iter(range(13))

        def stop(self: Loop, *arguments):
            if next(count) == 12:
                raise KeyboardInterrupt
            original(self, *arguments)

        patch.setattr(Loop, "_after_step", stop)
        assert train(tmp_path / "resumed", *settings) == 130
    pictures.clear()
    assert command("train", f"resume={tmp_path / 'resumed'}") == 0
    assert min(pictures) == 12
    for step, resumed in pictures.items():
        here = {"journal.metrics", "rate"} if step == 12 else set()  # set within each step
        wrong = {
            name
            for name in moving
            if name not in here and resumed.get(name) != whole[step].get(name)
        }
        assert wrong == set(), step


def test_progress_is_saved_whole(trained):
    saved = checkpoint.read(trained / "last.pt")["progress"]
    assert saved.keys() == vars(Progress()).keys()
    assert saved["total_steps"] == saved["step"] == 20
    assert saved["metrics_bytes"] == (trained / "metrics.jsonl").stat().st_size


def test_what_is_logged(trained):
    """Points of the curve every third step and at evaluations, each a mean since the one before."""
    training = [record for record in records(trained) if "train/loss" in record]
    evaluations = [record for record in records(trained) if "val/loss" in record]
    assert [record["step"] for record in training] == [3, 6, 7, 9, 12, 14, 15, 18, 20]
    assert [record["step"] for record in evaluations] == [7, 14, 20]
    assert all(record["train/loss"] == record["train/cross_entropy"] for record in training)
    assert all(record["epoch"] == record["step"] / 16 for record in records(trained))
    assert {"val/top1", "val/top5", "val/nll", "val/loss"} <= evaluations[0].keys()
    assert training[-1]["train/loss"] < training[0]["train/loss"]


def test_logged_losses_are_those_of_the_steps(train, tmp_path):
    """A coarse log is the mean of a fine one."""
    assert train(tmp_path / "fine", "trainer.log_every=1") == 0
    assert train(tmp_path / "coarse", "trainer.log_every=20") == 0
    fine = [record["train/loss"] for record in records(tmp_path / "fine") if "lr" in record]
    coarse = [record["train/loss"] for record in records(tmp_path / "coarse") if "lr" in record]
    assert len(fine) == 20
    expected = [sum(fine[a:b]) / (b - a) for a, b in ((0, 7), (7, 14), (14, 20))]
    assert coarse == pytest.approx(expected, rel=1e-12)


def test_best_is_the_best(train, tmp_path):
    for monitor, better in (("top1", max), ("nll", min)):
        run = tmp_path / monitor
        assert train(run, f"trainer.monitor={monitor}", "trainer.evaluate_every_steps=2") == 0
        values = [(r["step"], r[f"val/{monitor}"]) for r in records(run) if "val/loss" in r]
        best = better(value for _, value in values)
        state = checkpoint.read(run / "best.pt")["progress"]
        assert state["best"] == best
        assert state["total_steps"] == max(step for step, value in values if value == best)
        assert json.loads((run / "summary.json").read_text())["best"] == best


def test_accumulated_parts_make_the_same_step(train, tmp_path):
    """Equal up to the order of additions (there is no batch norm)."""
    assert train(tmp_path / "one", "trainer.steps=3") == 0
    assert train(tmp_path / "four", "trainer.steps=3", "trainer.accumulate=4") == 0
    one, four = (checkpoint.read(tmp_path / name / "last.pt")["model"] for name in ("one", "four"))
    for name, weight in one.items():
        torch.testing.assert_close(four[name], weight, rtol=1e-5, atol=1e-6)


def test_the_average_follows_the_weights(train, tmp_path):
    """After one step the average is the weights; after two it is decay * first + rest * second."""
    states = []
    for steps in (1, 2):
        run = tmp_path / str(steps)
        settings = (f"trainer.steps={steps}", "trainer.ema=0.75", "schedule=constant")
        assert train(run, *settings, "schedule.warmup=0") == 0
        states.append(checkpoint.read(run / "last.pt"))
    first, second = states
    for name, weight in second["model"].items():
        average = 0.75 * first["model"][name] + 0.25 * weight
        torch.testing.assert_close(second["ema"][f"module.{name}"], average)
        torch.testing.assert_close(weights(second)[name], average)


def test_clipping_bounds_the_step(train, tmp_path):
    """Plain SGD moves by rate times gradient: with clip=c by no more than rate * c."""
    settings = ("trainer.steps=1", "optimizer.momentum=0", "optimizer.nesterov=false")
    settings += ("optimizer.lr=1", "optimizer.weight_decay=0", "schedule=constant")
    moved = {}
    for clip in ("null", "0.01"):
        with pytest.MonkeyPatch.context() as patch:
            starts: list[dict[str, torch.Tensor]] = []
            original = Loop._step

            def step(self, *rest, original=original, starts=starts):
                starts.append({k: v.clone() for k, v in self.model.state_dict().items()})
                original(self, *rest)

            patch.setattr(Loop, "_step", step)
            assert train(tmp_path / clip, *settings, f"trainer.clip={clip}") == 0
        after = checkpoint.read(tmp_path / clip / "last.pt")["model"]
        moved[clip] = float(sum(((after[k] - v) ** 2).sum() for k, v in starts[0].items())) ** 0.5
    assert moved["0.01"] == pytest.approx(0.01, rel=1e-4)
    assert moved["null"] > 0.1


def test_norms_and_biases_do_not_decay():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    decayed, kept = parameter_groups(list(model.parameters()), decay_all=False)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert [tuple(p.shape) for p in kept["params"]] == [(4,)] * 3
    assert kept["weight_decay"] == 0.0
    (everything,) = parameter_groups(list(model.parameters()), decay_all=True)
    assert len(everything["params"]) == 4
    model[0].weight.requires_grad_(False)
    assert len(parameter_groups(list(model.parameters()), decay_all=False)) == 1


def test_patience_stops(train, tmp_path):
    run = tmp_path / "run"
    settings = ("trainer.steps=300", "trainer.patience=2", "trainer.evaluate_every_steps=3")
    assert train(run, *settings, "optimizer.lr=1e-9") == 0
    progress = checkpoint.read(run / "last.pt")["progress"]
    assert progress["stopped_early"]
    assert progress["stale"] == 2
    assert progress["total_steps"] < 300
    assert (run / "summary.json").exists()


@pytest.mark.parametrize("save_every", [1, 7])
def test_a_loss_that_is_not_finite_stops_the_run(save_every, train, command, tmp_path, capsys):
    run = tmp_path / "run"
    settings = (f"trainer.save_every={save_every}", "schedule=constant", "schedule.warmup=0")
    assert train(run, *settings, "optimizer.lr=1e20") == 6
    said = capsys.readouterr().err
    assert "cross_entropy is " in said or "a weight is not finite" in said
    assert "step " in said
    assert "learning rate 1e+20" in said
    assert "lower optimizer.lr" in said
    assert "Traceback" not in said
    for path in run.glob("*.pt"):  # what there is, is good
        model = checkpoint.read(path)["model"]
        assert all(weight.isfinite().all() for weight in model.values())
    assert not (run / "summary.json").exists()


def test_the_offending_term_and_step_are_named(train, tmp_path, capsys, monkeypatch):
    from cnnctl.models.base import ClassificationModel

    original, calls = ClassificationModel.loss, 0

    def loss(self, images, targets):
        nonlocal calls
        calls += self.training
        named = original(self, images, targets)
        term = torch.tensor(float("inf") if calls == 9 else 0.0)
        return {**named, "regulariser": term}

    monkeypatch.setattr(ClassificationModel, "loss", loss)
    run = tmp_path / "run"
    assert train(run, "schedule=constant", "schedule.warmup=0") == 6
    said = capsys.readouterr().err
    assert "regulariser is inf at step 9, learning rate 0.05" in said
    assert checkpoint.read(run / "last.pt")["progress"]["total_steps"] == 7


def test_a_metric_that_is_nan_is_never_best(train, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"top1": float("nan"), "loss": 1.0})
    run = tmp_path / "run"
    assert train(run) == 0
    assert not (run / "best.pt").exists()
    assert json.loads((run / "summary.json").read_text())["best"] is None
    assert [r["val/top1"] for r in records(run) if "val/loss" in r] == [None] * 3


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    number, code, train, command, tmp_path, capsys, monkeypatch
):
    original = Loop._step

    def step(self: Loop, *arguments):
        if self.progress.total_steps == 4:
            os.kill(os.getpid(), number)
        original(self, *arguments)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", step)
        assert train(run) == code
    out = capsys.readouterr().out
    assert "stopped at step 5, saved" in out
    line = next(line for line in out.splitlines() if "resume=" in line)
    assert line.strip() == f"cnnctl train resume={run}"
    assert checkpoint.read(run / "last.pt")["progress"]["total_steps"] == 5
    assert command(*line.split()[1:]) == 0  # what was printed works
    assert checkpoint.read(run / "last.pt")["progress"]["total_steps"] == 20


def test_a_full_disk_ends_the_run_and_keeps_the_last_good_one(
    train, command, tmp_path, capsys, monkeypatch
):
    original, saves = checkpoint.write_whole, 0

    def full(path: Path, data) -> None:
        nonlocal saves
        saves += path.suffix == ".pt"
        if saves == 3:
            raise checkpoint.disk_error(OSError(28, "No space left on device"), path)
        original(path, data)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_whole", full)
        assert train(run) == 5
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert "free some space" in said
    assert checkpoint.read(run / "last.pt")["progress"]["total_steps"] == 7
    assert command("train", f"resume={run}") == 0


@pytest.mark.parametrize(
    ("where", "advice"),
    [("training", "trainer.batch_size=32"), ("evaluation", "trainer.eval_batch_size=32")],
)
def test_out_of_memory_is_a_sentence(where, advice, train, tmp_path, capsys, monkeypatch):
    from cnnctl.models.mlp import MLP

    original = MLP.forward

    def forward(self, pixels):
        if self.training == (where == "training"):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you ...")
        return original(self, pixels)

    monkeypatch.setattr(MLP, "forward", forward)
    assert train(tmp_path / "run", "trainer.eval_batch_size=65") == 5
    said = capsys.readouterr().err
    images = 64 if where == "training" else 65
    assert f"out of memory in {where} with {images} images of 8 x 8 at once" in said
    assert advice in said
    assert "Traceback" not in said
    # Where it is evaluation that does not fit, what was trained before is kept.
    steps = checkpoint.read(tmp_path / "run" / "last.pt")["progress"]["total_steps"]
    assert steps == (7 if where == "evaluation" else 0)


def test_a_batch_larger_than_the_data(train, tmp_path, capsys):
    assert train(tmp_path / "run", "trainer.batch_size=2000") == 2
    said = capsys.readouterr().err
    assert "a batch of 2000 is larger than the training data (1078 images)" in said
    assert "trainer.batch_size=1078" in said
    assert not (tmp_path / "run").exists()


def test_no_training_images(train, tmp_path, capsys, monkeypatch):
    from cnnctl.data.digits import Digits

    original = Digits.__init__

    def empty(self, split, root=None):
        original(self, split, root)
        if split == "train":
            self.pixels, self.labels = self.pixels[:0], self.labels[:0]

    monkeypatch.setattr(Digits, "__init__", empty)
    assert train(tmp_path / "run") == 3
    assert "there are no training images" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_log_that_fails_does_not_end_the_run(train, command, tmp_path, capsys, monkeypatch):
    """metrics.jsonl is off from there on, with one warning; what it had stays."""
    from cnnctl.engine.log import MetricsFile

    original, calls = os.fsync, 0
    run = tmp_path / "run"

    def fsync(descriptor: int) -> None:
        nonlocal calls
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("metrics.jsonl"):
            calls += 1
            if calls == 3:
                raise OSError(28, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert train(run) == 0
    assert capsys.readouterr().err.count("metrics.jsonl is off from here on") == 1
    assert checkpoint.read(run / "last.pt")["progress"]["metrics_bytes"] > 0
    assert records(run)[0]["step"] == 3
    assert MetricsFile(run / "metrics.jsonl", 10**9).sync() < 10**9  # never padded with zeros


def test_training_images_are_scored_beside_the_others_where_that_is_asked(
    train, command, tmp_path, capsys
):
    settings = ("trainer.score_train=true", "trainer.steps=14")
    assert train(tmp_path / "scored", *settings) == 0
    assert train(tmp_path / "plain", settings[1]) == 0

    def evaluations(run: Path) -> list[dict[str, float]]:
        return [record for record in records(run) if "val/top1" in record]

    scored, plain = evaluations(tmp_path / "scored"), evaluations(tmp_path / "plain")
    own = [{k: v for k, v in record.items() if not k.startswith("on_train/")} for record in scored]
    assert own == plain  # nothing else is another
    assert {k for k in scored[0] if k.startswith("on_train/")} == {
        f"on_train/{name}" for name in ("top1", "top5", "nll", "loss")
    }
    capsys.readouterr()
    assert command("eval", f"checkpoint={tmp_path / 'scored' / 'last.pt'}", "split=train") == 0
    written = json.loads((tmp_path / "scored" / "eval-train.json").read_text())
    assert scored[-1]["on_train/top1"] == written["top1"]
    assert scored[-1]["on_train/nll"] == pytest.approx(written["nll"], rel=1e-6)
