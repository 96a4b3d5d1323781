"""task=detect from the command line: train, score again, predict, check and show the data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnctl import compose
from cnnctl.engine import checkpoint
from cnnctl.errors import Exit
from cnnctl.metrics.detection import METRICS

SCENES = (
    *("task=detect", "data=digit_scenes", "data.size=64", "data.digits=[1,3]"),
    *("data.scale=[0.3,0.6]", "data.train_images=8", "data.val_images=4", "data.test_images=5"),
)
SMALL = (
    *("model=faster_rcnn", "model.width=16", "model.hidden=16", "model.regions=8"),
    *("model.proposals_train=20", "model.proposals_test=10", "optimizer=sgd"),
)


@pytest.fixture(scope="module")
def run(train, tmp_path_factory) -> Path:
    """Three steps on scenes of digits: it detects at random."""
    directory = tmp_path_factory.mktemp("detect") / "run"
    own = ("trainer.steps=3", "trainer.batch_size=4", "trainer.evaluate_every_steps=2")
    assert train(directory, *SCENES, *SMALL, *own, "trainer.test=true") == 0
    return directory


def scores(run: Path, split: str) -> dict:
    return json.loads((run / f"eval-{split}.json").read_text())


def test_eval_gives_what_training_logged(run, command):
    tested = scores(run, "test")
    assert command("eval", f"checkpoint={run}", "split=val") == 0
    found, step = scores(run, "val"), checkpoint.read(run / "best.pt")["progress"]["total_steps"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (logged,) = [line for line in lines if line["step"] == step and "val/loss" in line]
    logged = {key.removeprefix("val/"): v for key, v in logged.items() if key.startswith("val/")}
    assert {"loss", "coco_ap", "voc07_map"} <= logged.keys()
    assert {name: found[name] for name in logged} == logged
    assert found["images"] == 4
    assert command("eval", f"checkpoint={run}") == 0
    assert scores(run, "test") == tested


def test_other_programs_score_the_same(run, command, capsys, tmp_path):
    """What eval leaves for them, read back without the network, to the last digit."""
    assert command("eval", f"checkpoint={run}") == 0
    out = capsys.readouterr().out
    assert f"written: {run / 'predictions-test.json'}" in out
    assert "detections with a score of at least 0.5" in out
    rows = json.loads((run / "predictions-test.json").read_text())
    assert rows
    assert {row["image_id"] for row in rows} <= set(range(1, 6))
    given = [text for text in SCENES if not text.startswith("task")]
    assert command("eval", f"predictions={run / 'predictions-test.json'}", *given) == 0
    again = json.loads((run / "predictions-test.scores.json").read_text())
    before = scores(run, "test")
    assert before["detections"] == again["detections"] == len(rows)
    figures = {key for key in before if key != "loss"}
    assert set(METRICS) & figures
    assert {key: again[key] for key in figures} == {key: before[key] for key in figures} | {
        "split": "test"
    }


def test_what_is_not_the_runs_own_is_not_written(run, command):
    before = (run / "predictions-test.json").read_bytes()
    assert command("eval", f"checkpoint={run}", "model.score=0.9") == 0
    assert (run / "predictions-test.json").read_bytes() == before


def test_predict_says_boxes_in_pixels_of_the_image(run, command, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    generator = np.random.default_rng(0)
    for name, (w, h) in {"wide.png": (200, 100), "small.jpg": (40, 60)}.items():
        Image.fromarray(generator.integers(0, 255, (h, w, 3), dtype=np.uint8)).save(own / name)
    out = tmp_path / "out"
    given = (f"checkpoint={run}", f"input={own}", f"output={out}", "task.shown=0.05")
    assert command("predict", *given) == 0
    lines = (out / "predictions.jsonl").read_text().splitlines()
    records = {Path(record["file"]).name: record for record in map(json.loads, lines)}
    beyond = 0
    for name, (w, h) in {"wide.png": (200, 100), "small.jpg": (40, 60)}.items():
        found = records[name]["detections"]
        assert found
        assert all(set(row) == {"class", "score", "box"} for row in found)
        ranked = [row["score"] for row in found]
        assert ranked == sorted(ranked, reverse=True)
        for x1, y1, x2, y2 in (row["box"] for row in found):
            assert 0 <= x1 <= x2 <= w
            assert 0 <= y1 <= y2 <= h
            beyond += x2 > 64 or y2 > 64
        assert (out / "pictures" / f"{name}.png").is_file()
    assert beyond, "of the image as it is, not of the network's input"


def test_the_data_is_checked_and_shown(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # Enough scenes that each class is in each split.
    many = [*SCENES[:-3], "data.train_images=30", "data.val_images=12", "data.test_images=12"]
    code = command("data", "check", *many)
    out = capsys.readouterr().out
    assert "read 30 train, 12 val, 12 test" in out
    assert (code == 0) == ("all whole" in out)
    assert code in (0, Exit.DATA)
    assert command("data", "show", *many) == 0
    out = capsys.readouterr().out
    assert "pictures: " in out
    assert (tmp_path / "data-digit_scenes-train.png").is_file()


def test_own_boxes_are_checked(box_folder, command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("data", "check", "task=detect", "data=boxes", f"data.root={box_folder}") == 0
    assert "all whole" in capsys.readouterr().out


def test_weights_that_are_no_numbers_are_said(run, command, tmp_path, capsys):
    state = torch.load(run / "best.pt", weights_only=True)
    state["model"]["roi_heads.box_predictor.cls_score.bias"] *= torch.nan
    torch.save(state, tmp_path / "broken.pt")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    given = (f"checkpoint={tmp_path / 'broken.pt'}", f"input={tmp_path / 'a.png'}")
    assert command("predict", *given, f"output={tmp_path / 'out'}") == Exit.CHECKPOINT
    assert "not a number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["augmentation=mixup"], "changes an image without its boxes"),
        (["augmentation=elastic"], "changes an image without its boxes"),
        (["data=mnist"], "data=mnist has no boxes"),
        (["model=lenet"], "model=lenet does not do task=detect"),
        (["task.shown=1"], "shown must be at least 0 and below 1"),
        (["model.anchor_scale=0"], "anchor_scale"),
        (["model.detections=0"], "detections must be at least 1"),
        (["model.score=2"], "score must be from 0 to 1"),
        (["trainer.monitor=top1"], 'task=detect has no metric "top1"'),
    ],
)
def test_what_does_not_go_together(overrides, said, command, capsys, tmp_path):
    given = SCENES[:1] if "data=mnist" in overrides else (*SCENES, "trainer.batch_size=4")
    place = f"hydra.run.dir={tmp_path / 'run'}"
    assert command("train", place, *given, *overrides) == Exit.CONFIG
    assert said in capsys.readouterr().err


def test_digits_are_scenes_with_boxes_for_detection():
    from cnnctl import build

    config = compose.settings(compose.compose("train", ["task=detect", "data=digits"]))
    assert build.data_class(config).__name__ == "DigitBoxes"
    assert build.data_class(config).classes == tuple("0123456789")
