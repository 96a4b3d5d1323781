"""task=instance from the command line: train, score again, predict, and look at the data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnctl.engine import checkpoint
from cnnctl.metrics.instance import METRICS
from cnnctl.ops.run_lengths import decode

SCENES = (
    *("task=instance", "data=digit_scenes", "data.size=64", "data.digits=[1,3]"),
    *("data.scale=[0.3,0.6]", "data.train_images=8", "data.val_images=4", "data.test_images=5"),
)
SMALL = (
    *("model=mask_rcnn", "model.width=16", "model.hidden=16", "model.regions=8"),
    *("model.proposals_train=20", "model.proposals_test=10", "model.mask_width=8"),
    *("optimizer=sgd", "task.shown=0.02", "model.score=0.005"),
)


@pytest.fixture(scope="module")
def run(train, tmp_path_factory) -> Path:
    """Three steps on scenes of digits: it finds objects at random."""
    directory = tmp_path_factory.mktemp("instance") / "run"
    own = ("trainer.steps=3", "trainer.batch_size=4", "trainer.evaluate_every_steps=2")
    assert train(directory, *SCENES, *SMALL, *own, "trainer.test=true") == 0
    return directory


def scores(run: Path, split: str) -> dict:
    return json.loads((run / f"eval-{split}.json").read_text())


def test_eval_gives_what_training_logged(run, command, capsys):
    tested = scores(run, "test")
    assert command("eval", f"checkpoint={run}", "split=val") == 0
    out = capsys.readouterr().out
    found, step = scores(run, "val"), checkpoint.read(run / "best.pt")["progress"]["total_steps"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (logged,) = [line for line in lines if line["step"] == step and "val/loss" in line]
    logged = {key.removeprefix("val/"): v for key, v in logged.items() if key.startswith("val/")}
    assert {"loss", "coco_ap", "coco_mask_ap", "voc_mask_ap50"} <= logged.keys()
    assert {name: found[name] for name in logged} == logged
    rows = [[cell.strip() for cell in line.split("│")] for line in out.splitlines()]
    assert ["", "AP", f"{found['coco_ap']:.2%}", f"{found['coco_mask_ap']:.2%}", ""] in rows
    assert ["", "AP large", "", "", ""] in rows, "there is none of that size"
    assert any(row[1:2] == ["class"] for row in rows) or "mask AP50" in out
    assert f"written: {run / 'mistakes-val.png'}" in out
    with Image.open(run / "mistakes-val.png") as picture:
        assert picture.width > 1000
    assert command("eval", f"checkpoint={run}") == 0
    assert scores(run, "test") == tested


def test_other_programs_score_the_same(run, command):
    """What eval leaves for them, read back without the network, to the last digit."""
    rows = json.loads((run / "predictions-test.json").read_text())
    assert rows
    assert all(row["segmentation"]["size"] == [64, 64] for row in rows)
    given = [*SCENES, "task.shown=0.02"]
    assert command("eval", f"predictions={run / 'predictions-test.json'}", *given) == 0
    again = json.loads((run / "predictions-test.scores.json").read_text())
    before = scores(run, "test")
    figures = set(METRICS) & before.keys()
    assert {"coco_mask_ap", "coco_ap"} <= figures
    assert {key: again[key] for key in figures} == {key: before[key] for key in figures}


def test_predict_says_masks_in_pixels_of_the_image(run, command, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    generator = np.random.default_rng(0)
    sizes = {"wide.png": (200, 100), "small.jpg": (40, 60)}
    for name, (w, h) in sizes.items():
        Image.fromarray(generator.integers(0, 255, (h, w, 3), dtype=np.uint8)).save(own / name)
    out = tmp_path / "out"
    given = (f"checkpoint={run}", f"input={own}", f"output={out}", "task.maps=true")
    assert command("predict", *given, "task.shown=0.005", "top=1") == 0
    lines = (out / "predictions.jsonl").read_text().splitlines()
    records = {Path(record["file"]).name: record for record in map(json.loads, lines)}
    for name, (w, h) in sizes.items():
        found = records[name]["detections"]
        assert found
        assert set(found[0]) == {"class", "score", "box", "segmentation"}
        assert [set(row) for row in records[name]["top"]] == [{"class", "score", "box"}]
        numbers = torch.zeros(h, w, dtype=torch.int64)
        for number, row in reversed(list(enumerate(found, 1))):
            assert row["segmentation"]["size"] == [h, w]
            mask = decode(row["segmentation"]["counts"].encode(), (h, w))
            numbers[mask] = number
            y, x = mask.nonzero().unbind(1)
            x1, y1, x2, y2 = row["box"]
            if len(x):  # pixels whose centres are in the box
                assert x1 <= int(x.min()) + 0.5 < int(x.max()) + 0.5 <= x2 or len(x.unique()) == 1
                assert y1 <= int(y.min()) + 0.5 < int(y.max()) + 0.5 <= y2 or len(y.unique()) == 1
        assert records[name]["instance"] == f"instances/{Path(name).stem}.png"
        written = np.array(Image.open(out / "instances" / f"{Path(name).stem}.png"))
        assert written.tolist() == numbers.tolist(), "the most likely on top"
        assert (out / "pictures" / f"{name}.png").is_file()


def test_without_maps_no_map_is_written(run, command, tmp_path):
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "a.png")
    given = (f"checkpoint={run}", f"input={tmp_path / 'a.png'}", f"output={tmp_path / 'out'}")
    assert command("predict", *given) == 0
    assert not (tmp_path / "out" / "instances").exists()
    (line,) = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert "instance" not in json.loads(line)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["model=faster_rcnn"], "model=faster_rcnn does not do task=instance"),
        (["task.shown=1"], "shown must be at least 0 and below 1, got 1"),
        (["trainer.monitor=coco_mask_ap5"], 'task=instance has no metric "coco_mask_ap5"'),
        (["data=cifar10"], "data=cifar10"),
    ],
)
def test_refuses_in_one_sentence(given, sentence, command, capsys):
    code = command("train", *SCENES[:1], *given)
    assert code == 2
    assert sentence in capsys.readouterr().err


def test_boundary_ap_is_a_metric_that_is_asked_for(command, capsys, run):
    assert command("eval", f"checkpoint={run}", "task.boundary=true") == 0
    assert "coco_boundary_ap" in capsys.readouterr().out


def test_info_says_what_masks_take(command, capsys):
    assert command("info", *SCENES, *SMALL, "trainer.batch_size=4") == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("truth ")]
    assert "as bits of masks" in line
    assert line.endswith("as a byte for each pixel of 64 x 64 (a batch of 4)")
    bits, dense = (part.split()[0:2] for part in line.removeprefix("truth").split(","))
    assert dense[1].startswith("kB")
    assert float(bits[0]) * (1000 if bits[1] == "kB" else 1) < float(dense[0]) * 1000 / 4


def test_the_data_is_shown_with_its_objects(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, many = tmp_path / "data-digit_scenes-train.png", ["data.train_images=30"]
    sizes = {}
    for task in ("instance", "detect", "segment"):
        assert command("data", "show", f"task={task}", *SCENES[1:], *many) == 0
        sizes[task] = Image.open(path).size
        pixels = np.array(Image.open(path))
        magenta = int((pixels == (230, 60, 230)).all(-1).sum())
        assert task != "segment" or not magenta
    assert sizes["instance"] == sizes["detect"] == (150 + 6 * 144, 10 * 144)
    assert sizes["segment"] == (150 + 12 * 72, 11 * 72)
