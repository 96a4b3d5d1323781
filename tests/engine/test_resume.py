"""Interrupted anywhere and resumed, a run ends as the uninterrupted one, bit for bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import comparing
import pytest
import torch

from cnnctl.engine import checkpoint, loop
from cnnctl.engine.checkpoint import Checkpoints
from cnnctl.engine.loop import Loop
from cnnctl.metrics.classification import ClassificationEvaluator
from cnnctl.metrics.detection import DetectionEvaluator
from cnnctl.metrics.instance import InstanceEvaluator
from cnnctl.metrics.segmentation import SegmentationEvaluator
from cnnctl.models.feature_cache import FeatureStore, features_folder

EVERYTHING = (  # that has a state
    "augmentation=mixup",
    "trainer.batch_size=32",
    "trainer.accumulate=2",
    "trainer.ema=0.9",
    "trainer.clip=1",
    "trainer.steps=12",
    "trainer.evaluate_every_steps=5",
    "trainer.save_every=3",
    "trainer.eval_batch_size=180",
)
SETTINGS = {
    "mlp": ("trainer.save_every=2",),
    "lenet": (
        "model=lenet",
        "augmentation=standard",
        "trainer.steps=12",
        "trainer.evaluate_every_steps=5",
        "trainer.save_every=2",
        "trainer.keep_every=4",
    ),
    "batch_norm": ("model.batch_norm=true", *EVERYTHING),
    "resnet": ("model=cifar_resnet", "model.depth=8", "model.plain=true", *EVERYTHING),
    "dropout_adamw": ("model.dropout=0.5", "optimizer=adamw", "augmentation=cutout"),
    "segment": (
        *("task=segment", "model=unet", "model.width=4", "model.depth=2", "model.dropout=0.2"),
        *("data.size=32", "data.digits=[1,3]", "data.scale=[0.3,0.6]", "data.val_images=20"),
        *("data.train_images=40", "augmentation=elastic", "task.class_weights=median"),
        *("trainer.batch_size=8", "trainer.eval_batch_size=8", "trainer.save_every=3"),
    ),
    "segment_files": (  # decoded, scaled and cropped in this process
        *("task=segment", "model=unet", "model.width=4", "model.depth=2", "data=masks"),
        *("data.channels=1", "augmentation.size=32", "augmentation.degrees=20", "task.dice=1"),
        *("trainer.batch_size=4", "trainer.save_every=3", "trainer.workers=0"),
    ),
    "detect": (  # which proposals are trained on is drawn
        *("task=detect", "model=faster_rcnn", "model.width=16", "model.hidden=16"),
        *("model.regions=8", "model.proposals_train=20", "model.proposals_test=10"),
        *("data.size=64", "data.digits=[1,3]", "data.scale=[0.3,0.6]", "data.train_images=12"),
        *("data.val_images=4", "trainer.batch_size=4", "optimizer=sgd"),
        *("optimizer.momentum=0", "optimizer.nesterov=false"),
        *("trainer.steps=4", "trainer.save_every=2", "trainer.evaluate_every_steps=4"),
    ),
    "rcnn": (  # a gradient stage, then two that are fitted, on features that are kept meanwhile
        *("task=detect", "model=rcnn", "proposals=sliding_windows", "proposals.count=20"),
        *("data.size=64", "data.digits=[1,3]", "data.scale=[0.3,0.6]", "data.train_images=12"),
        *("data.val_images=4", "model.crops=8", "model.dense=[16]", "model.side=16"),
        *("trainer.batch_size=4", "trainer.eval_batch_size=4", "optimizer=sgd"),
        *("optimizer.momentum=0", "optimizer.nesterov=false"),
        *("trainer.steps=4", "trainer.save_every=2", "trainer.evaluate_every_steps=4"),
    ),
    "detect_files": (  # decoded, zoomed out, cropped and coloured in this process
        *("task=detect", "model=ssdlite", "data=boxes", "augmentation=ssd", "augmentation.size=64"),
        *("trainer.batch_size=4", "trainer.steps=7", "trainer.save_every=2", "trainer.workers=0"),
        *("trainer.evaluate_every_steps=5",),
    ),
    "instance": (  # which regions' masks are trained on is drawn
        *("task=instance", "model=mask_rcnn", "model.width=16", "model.hidden=16"),
        *("model.regions=16", "model.mask_width=8", "model.mask_regions=2", "model.score=0.01"),
        *("model.proposals_train=20", "model.proposals_test=10", "augmentation.flip=true"),
        *("data.size=64", "data.digits=[1,3]", "data.scale=[0.3,0.6]", "data.train_images=12"),
        *("data.val_images=4", "trainer.batch_size=4", "optimizer=sgd"),
        *("optimizer.momentum=0", "optimizer.nesterov=false"),
        *("trainer.steps=4", "trainer.save_every=2", "trainer.evaluate_every_steps=3"),
    ),
    "early_stopping": ("trainer.patience=1", "trainer.steps=400", "trainer.monitor=top1"),
}
EVALUATORS = [
    ClassificationEvaluator,
    DetectionEvaluator,
    InstanceEvaluator,
    SegmentationEvaluator,
]
MOMENTS = (
    "step 2",
    "step 6",
    "step 11",
    "signal 4",
    "signal 5",  # on the way to an evaluation
    "signal in evaluation 2",
    "evaluation 2",
    "evaluated 1",
    "save 3",
    "saved 3",
)


class Crash(BaseException):
    """Not caught by anything, as a kill is not."""


def interrupt(patch: pytest.MonkeyPatch, moment: str) -> None:
    """Stop the next run in this process at ``moment``: before or after its n-th step, save..."""
    what, _, number = moment.rpartition(" ")
    owners, name, before = {
        "step": ([Loop], "_step", True),
        "signal": ([Loop], "_step", True),
        "signal in evaluation": (EVALUATORS, "update", True),
        "signal in fit": ([Loop], "_show_all", True),
        "evaluation": (EVALUATORS, "update", False),
        "evaluated": ([loop], "evaluate", False),
        "save": ([Checkpoints], "save", True),
        "saved": ([Checkpoints], "save", False),
        "features": ([FeatureStore], "add", True),
    }[what]
    for owner in owners:
        _interrupt_at(patch, owner, name, before, what, int(number))


def _interrupt_at(patch, owner, name: str, before: bool, what: str, number: int) -> None:
    original, calls = getattr(owner, name), 0

    def stop() -> None:
        if what.startswith("signal"):
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            raise Crash

    def patched(*arguments, **options):
        nonlocal calls
        calls += 1
        if before and calls == number:
            stop()
        result = original(*arguments, **options)
        if not before and calls == number:
            stop()
        return result

    patch.setattr(owner, name, patched)


@pytest.fixture(scope="module")
def references(train, tmp_path_factory):
    """Name of a setting -> the directory of its uninterrupted run, made when asked for."""
    made: dict[str, Path] = {}

    def reference(name: str, *overrides: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("reference") / name
            assert train(made[name], *overrides) == 0
        return made[name]

    return reference


def stopped_and_resumed(train, command, directory, overrides, moment, *resuming) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, moment)
        try:
            code = train(directory, *overrides)
        except Crash:
            code = None
    assert code == (143 if moment.startswith("signal") else None)
    if code is None and not (directory / "last.pt").exists():
        pytest.fail("the moment is before the first checkpoint")
    assert command("train", f"resume={directory}", *resuming) == 0


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        *(("batch_norm", moment) for moment in MOMENTS[1:]),
        *(("mlp", moment) for moment in MOMENTS[2:]),
        *((name, "step 11") for name in ("lenet", "resnet", "dropout_adamw", "early_stopping")),
        *((name, "signal in evaluation 2") for name in ("lenet", "early_stopping")),
        ("early_stopping", "saved 3"),
        *(("segment", moment) for moment in ("step 11", "signal in evaluation 2", "evaluated 1")),
        *(("segment_files", moment) for moment in ("step 11", "signal 5")),
        ("detect", "step 4"),
        ("instance", "step 4"),
        ("detect_files", "step 4"),
        pytest.param("instance", "evaluation 1", marks=pytest.mark.slow),
        pytest.param("detect_files", "signal in evaluation 1", marks=pytest.mark.slow),
    ],
)
def test_ends_as_if_never_interrupted(
    name, moment, train, command, references, tmp_path, mask_folder, box_folder
):
    overrides = SETTINGS[name]
    if name.endswith("_files"):
        root = mask_folder if name == "segment_files" else box_folder
        overrides = (*overrides, f"data.root={root}")
    reference = references(name, *overrides)
    stopped_and_resumed(train, command, tmp_path / "run", overrides, moment)
    assert comparing.runs_differ(reference, tmp_path / "run") == []


@pytest.mark.filterwarnings("ignore:no true box")
@pytest.mark.parametrize(
    "moment",
    [
        "features 5",  # the second batch of the third stage
        *(
            pytest.param(moment, marks=pytest.mark.slow)
            for moment in ("step 4", "features 2", "save 4", "evaluated 1")
        ),
    ],
)
def test_stages_that_keep_features(moment, train, command, references, tmp_path, monkeypatch):
    """Killed in any of R-CNN's stages; what is fitted is fitted anew, on the features there are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reference = references("rcnn", *SETTINGS["rcnn"])
    stopped_and_resumed(train, command, tmp_path / "run", SETTINGS["rcnn"], moment)
    assert comparing.runs_differ(reference, tmp_path / "run") == []
    assert list(features_folder().iterdir()) == []


def test_interrupted_again_and_again(train, command, references, tmp_path):
    reference = references("mlp", *SETTINGS["mlp"])
    run = tmp_path / "run"
    stopped_and_resumed(train, command, run, SETTINGS["mlp"], "signal 3", "trainer.save_every=2")
    run = tmp_path / "again"
    for count, moment in enumerate(("signal 3", "step 6", "evaluated 1", "save 2", "saved 1")):
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, moment)
            try:
                if count:
                    command("train", f"resume={run}")
                else:
                    train(run, *SETTINGS["mlp"])
            except Crash:
                pass
    assert command("train", f"resume={run}") == 0
    assert comparing.runs_differ(reference, run) == []


def test_the_comparison_sees_a_difference(train, references, tmp_path):
    """The negative control: another seed, and a single flipped bit."""
    reference = references("mlp", *SETTINGS["mlp"])
    assert train(tmp_path / "other", *SETTINGS["mlp"], "seed=1") == 0
    found = comparing.runs_differ(reference, tmp_path / "other")
    assert "metrics.jsonl" in found
    assert any("model" in path for path in found)
    assert any("momentum_buffer" in path for path in found)
    state, changed = (checkpoint.read(reference / "last.pt") for _ in range(2))
    weight = next(iter(changed["model"].values()))
    weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(torch.inf))
    assert len(comparing.differences(state, changed)) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_images(workers, train, command, references, picture_folder, tmp_path):
    """The number of workers changes nothing; sizes differ, so images are cropped in the workers."""
    overrides = (
        "data=folder",
        f"data.root={picture_folder}",
        "augmentation=standard",
        "augmentation.size=16",
        "trainer.batch_size=8",
        "trainer.steps=14",
        "trainer.save_every=3",
        "trainer.evaluate_every_steps=9",
    )
    reference = references("streamed", *overrides, "trainer.workers=0")
    overrides = (*overrides, f"trainer.workers={workers}")
    stopped_and_resumed(train, command, tmp_path / "run", overrides, "step 12")
    assert comparing.runs_differ(reference, tmp_path / "run") == []


@pytest.mark.parametrize(
    "moment",
    [
        *("step 1", "step 5", "saved 1", "saved 4", "step 12", "step 20"),
        *("signal in evaluation 3", "signal in fit 1"),
    ],
)
def test_stages(moment, train, command, references, tmp_path):
    """A fit without gradients, then two gradient stages over different parameters."""
    overrides = (
        "model._target_=staged.Staged",
        "~model.widths",
        "~model.activation",
        "~model.dropout",
        "~model.batch_norm",
        "trust=[staged]",
        "trainer.steps=10",
        "trainer.ema=0.9",
        "trainer.save_every=4",
        "trainer.evaluate_every_steps=6",
        "trainer.eval_batch_size=200",
        "model=mlp",
    )
    reference = references("stages", *overrides)
    records = (reference / "metrics.jsonl").read_text()
    for stage in ("whiten", "features", "head"):
        assert f'"stage": "{stage}"' in records
    stopped_and_resumed(train, command, tmp_path / "run", overrides, moment, "trust=[staged]")
    assert comparing.runs_differ(reference, tmp_path / "run") == []


def test_a_stage_leaves_what_it_does_not_train_as_it_was(train, tmp_path):
    """The head's stage moves neither the hidden layer nor its batch norm's statistics."""
    run = tmp_path / "run"
    staged = ("model=mlp", "model._target_=staged.Staged", "trust=[staged]", "trainer.steps=10")
    none = ("~model.widths", "~model.activation", "~model.dropout", "~model.batch_norm")
    assert train(run, *staged, *none, "trainer.keep_every=10") == 0
    before = checkpoint.read(run / "step-11.pt")["model"]  # one fit, ten steps of features
    after = checkpoint.read(run / "last.pt")["model"]
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved == {"head.weight", "head.bias"}


def test_two_epochs_and_two_are_four(train, command, tmp_path):
    settings = ("schedule=constant", "trainer.evaluate_every_steps=null", "trainer.patience=null")
    assert train(tmp_path / "four", *settings, "trainer.epochs=4") == 0
    assert train(tmp_path / "two", *settings, "trainer.epochs=2") == 0
    assert command("train", f"resume={tmp_path / 'two'}", "trainer.epochs=4") == 0
    assert comparing.runs_differ(tmp_path / "four", tmp_path / "two") == []
    # Killed between the extension and its end, the run is not complete: its summary is gone.
    assert command("train", f"resume={tmp_path / 'two'}", "trainer.epochs=4") == 0


def test_an_extended_run_is_not_complete_until_its_end(train, command, tmp_path):
    run = tmp_path / "run"
    assert train(run, "schedule=constant") == 0
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, "saved 1")
        with pytest.raises(Crash):
            command("train", f"resume={run}", "trainer.steps=40")
    assert not (run / "summary.json").exists()
    assert command("train", f"resume={run}") == 0
    assert checkpoint.read(run / "last.pt")["progress"]["total_steps"] == 40
    assert train(tmp_path / "whole", "schedule=constant", "trainer.steps=40") == 0
    # The run of 20 had an evaluation at its end that the run of 40 has not.
    one, other = (checkpoint.read(d / "last.pt") for d in (run, tmp_path / "whole"))
    assert comparing.differences(one["model"], other["model"]) == []
    assert comparing.differences(one["optimizer"], other["optimizer"]) == []


def test_more_patience_goes_on(train, command, tmp_path):
    run = tmp_path / "run"
    assert train(run, *SETTINGS["early_stopping"]) == 0
    steps = checkpoint.read(run / "last.pt")["progress"]["total_steps"]
    assert steps < 400
    assert command("train", f"resume={run}", "trainer.patience=1000", "trainer.steps=60") == 0
    assert checkpoint.read(run / "last.pt")["progress"]["total_steps"] >= max(steps, 60)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("trainer.batch_size=32", "trainer.batch_size: 64 -> 32"),
        ("optimizer.lr=0.5", "optimizer.lr: "),
        ("seed=1", "seed: 0 -> 1"),
        ("model.widths=[8]", "model.widths: [16] -> [8]"),
        ("model=linear", "cnnctl.models.linear.Linear"),
        ("trainer.accumulate=2", "trainer.accumulate: 1 -> 2"),
        ("trainer.devices=2", "trainer.devices: 1 -> 2"),
    ],
)
def test_a_change_that_matters_is_refused_by_name(change, named, trained, command, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained.iterdir()}
    assert command("train", f"resume={trained}", change) == 4
    said = capsys.readouterr().err
    assert named in said
    assert "init_from=" in said
    assert "Traceback" not in said
    assert {path: path.stat().st_mtime_ns for path in trained.iterdir() if path.name != "lock"} == {
        path: when for path, when in before.items() if path.name != "lock"
    }


def test_changed_data_is_refused(train, command, picture_folder, tmp_path, capsys):
    import shutil

    pictures = tmp_path / "pictures"
    shutil.copytree(picture_folder, pictures)
    settings = ("data=folder", f"data.root={pictures}", "augmentation.size=16")
    run = tmp_path / "run"
    assert (
        train(run, *settings, "trainer.batch_size=8", "trainer.workers=0", "trainer.steps=3") == 0
    )
    (pictures / "red" / "0.png").unlink()
    assert command("train", f"resume={run}", "trainer.steps=6") == 4
    assert "the train data is not what the run started with" in capsys.readouterr().err


def test_a_finished_run_says_so(trained, command, capsys):
    summary = (trained / "summary.json").read_bytes()
    assert command("train", f"resume={trained}") == 0
    assert f"already complete: {trained}" in capsys.readouterr().out
    assert (trained / "summary.json").read_bytes() == summary


@pytest.mark.parametrize("there", [True, False])
def test_without_a_checkpoint(there, command, tmp_path, capsys):
    if there:
        (tmp_path / "empty").mkdir()
    assert command("train", f"resume={tmp_path / 'empty'}") == 4
    said = capsys.readouterr().err
    assert str(tmp_path / "empty") in said
    assert ("there is no checkpoint" if there else "does not exist") in said


def test_a_live_run_is_busy(train, command, tmp_path, capsys):
    from cnnctl.engine.run import RunDirectory

    run = tmp_path / "run"
    live = RunDirectory.claim(run)  # not yet a checkpoint in it
    assert command("train", f"resume={run}") == 7
    assert f"process {os.getpid()} on" in capsys.readouterr().err
    live.release()
    assert command("train", f"resume={run}") == 4


def test_resumes_from_a_checkpoint_that_was_kept(train, command, references, tmp_path):
    """An older checkpoint of the same run: what came after it is done again."""
    reference = references("lenet", *SETTINGS["lenet"])
    run = tmp_path / "run"
    stopped_and_resumed(train, command, run, SETTINGS["lenet"], "signal 9")
    (run / "summary.json").unlink()
    assert command("train", f"resume={run / 'step-8.pt'}") == 0
    assert comparing.runs_differ(reference, run) == []


def test_a_moved_run_resumes_where_it_is(train, command, references, tmp_path):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, "signal 9")
        assert train(run, *SETTINGS["mlp"]) == 143
    run.rename(tmp_path / "moved")
    assert command("train", f"resume={tmp_path / 'moved'}") == 0
    assert not run.exists()
    assert comparing.runs_differ(references("mlp", *SETTINGS["mlp"]), tmp_path / "moved") == []


def test_a_damaged_last_falls_back_and_ends_the_same(train, command, references, tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, "signal 9")
        assert train(run, *SETTINGS["mlp"]) == 143
    damaged = bytearray((run / "last.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (run / "last.pt").unlink()  # it may share its bytes with best.pt
    (run / "last.pt").write_bytes(damaged)
    capsys.readouterr()
    assert command("train", f"resume={run}") == 0
    said = capsys.readouterr().err
    assert f"{run / 'last.pt'}: is damaged" in said
    assert "going on from the checkpoint before it" in said
    assert comparing.runs_differ(references("mlp", *SETTINGS["mlp"]), run) == []
