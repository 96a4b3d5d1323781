"""``cnnctl eval predictions=``: anybody's results against any data, without a network."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnctl.commands.eval_predictions import truth_rows
from cnnctl.data.digit_boxes import DigitBoxes
from cnnctl.data.part import Part
from cnnctl.errors import Exit
from cnnctl.metrics.detection import METRICS
from cnnctl.metrics.mask_ap import COCO_METRICS
from cnnctl.ops.run_lengths import encode

SMALL = ("data.size=32", "data.digits=[1,3]", "data.scale=[0.3,0.6]")
FEW = (*SMALL, "data.train_images=4", "data.val_images=3", "data.test_images=5")


@pytest.fixture
def truth(tmp_path) -> Path:
    """Two images (one without boxes) of three categories with gaps in their ids."""
    boxes = [(1, 7, [0, 0, 10, 10]), (1, 9, [20, 20, 40, 40]), (1, 9, [70, 0, 8, 8])]
    file = tmp_path / "instances.json"
    content = {
        "images": [
            {"id": number, "width": 100, "height": 80, "file_name": f"{number}.jpg"}
            for number in (1, 5)
        ],
        "categories": [{"id": i, "name": n} for i, n in ((7, "cat"), (9, "dog"), (30, "owl"))],
        "annotations": [
            {"id": i, "image_id": image, "category_id": k, "bbox": box, "area": box[2] * box[3]}
            | {"iscrowd": 0}
            for i, (image, k, box) in enumerate(boxes, 1)
        ],
    }
    file.write_text(json.dumps(content))
    return file


def result(image: int, category: int, box: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


FOUND = [
    result(1, 7, [0, 0, 10, 10], 0.9),
    result(5, 7, [0, 0, 10, 10], 0.8),  # nothing is there
    result(1, 9, [20, 20, 40, 20], 0.7),  # IoU .5 of the first dog
    result(1, 9, [70, 0, 8, 8], 0.6),
    result(1, 7, [70, 0, 8, 8], 0.55),  # that dog, called a cat
]


def written(tmp_path: Path, found: Any) -> Path:
    file = tmp_path / "found.json"
    file.write_text(found if isinstance(found, str) else json.dumps(found))
    return file


def test_figures_by_hand(command, truth, tmp_path, capsys):
    file = written(tmp_path, FOUND)
    given = ("data=coco", f"data.annotations={truth}")
    assert command("eval", f"predictions={file}", *given) == 0
    out = capsys.readouterr().out
    scores = json.loads((tmp_path / "found.scores.json").read_text())
    assert scores["images"] == 2
    assert scores["split"] is None
    assert scores["per_class"]["voc10_ap"] == {"cat": 1.0, "dog": 1.0}, "an owl is in no image"
    assert scores["coco_ap50"] == pytest.approx(1)
    # The dog of 40 x 40 is found at IoU .5 alone, as the first of two: from .55 on it is a false
    # one before the second, of 2: 51 of 101 recalls at precision 1/2.
    assert scores["coco_ap"] == pytest.approx((1 + (1 + 9 * 51 / 101 / 2) / 10) / 2)
    assert scores["errors"]["background"] == 1
    assert scores["errors"]["classification"] == 1
    assert scores["right"] == 3
    assert "found.json on coco, the whole file" in out
    assert f"{scores['coco_ap']:.2%}" in out
    assert f"written: {tmp_path / 'found.scores.json'}" in out
    for words in ("VOC07", "cat", "a score of at least 0.5", "classification"):
        assert words in out


def test_the_threshold_is_of_errors_alone(command, truth, tmp_path):
    file = written(tmp_path, FOUND)
    given = (f"predictions={file}", "data=coco", f"data.annotations={truth}")
    assert command("eval", *given) == 0
    before = json.loads((tmp_path / "found.scores.json").read_text())
    assert command("eval", *given, "task.shown=0.75") == 0
    after = json.loads((tmp_path / "found.scores.json").read_text())
    assert after["right"] == 1
    assert after["errors"]["missed"] == 2
    same = [name for name in before if name.startswith(("coco", "voc"))]
    assert {name: before[name] for name in same} == {name: after[name] for name in same}


def test_images_and_classes_count_from_one_where_data_has_no_ids(command, tmp_path, capsys):
    """Digit scenes: what is told of them is the truth itself."""
    from cnnctl.data.digit_boxes import DigitBoxes

    data = DigitBoxes("test", None, 32, (1, 3), (0.3, 0.6), 4, 3, 5)
    found = [
        result(i + 1, k + 1, [x1, y1, x2 - x1, y2 - y1], 0.5)
        for i in range(5)
        for k, (x1, y1, x2, y2) in zip(
            data[i][1]["labels"].tolist(), data[i][1]["boxes"].tolist(), strict=True
        )
    ]
    file = written(tmp_path, found)
    assert command("eval", f"predictions={file}", *FEW) == 0
    scores = json.loads((tmp_path / "found.scores.json").read_text())
    assert scores["images"] == 5
    assert scores["coco_ap"] == pytest.approx(1)
    assert scores["voc07_map"] == 1
    assert scores["split"] == "test"
    capsys.readouterr()
    assert command("eval", f"predictions={file}", "split=val", *FEW) == Exit.DATA
    assert "image_id: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([result(2, 7, [0, 0, 1, 1], 0.5)], "image_id: 2 is no id of an image of this split"),
        ([result(1, 8, [0, 0, 1, 1], 0.5)], "category_id: 8 is no id of a class"),
        ([result(1, 7, [0, 0, 1, 1], float("nan"))], "score: is not finite"),
        ([result(1, 7, [0, 0, -1, 1], 0.5)], "has a negative width or height"),
        ({"images": []}, "must hold a list of results"),
        ("[", "found.json"),
    ],
)
def test_what_is_wrong_is_one_sentence(found, words, command, truth, tmp_path, capsys):
    file = written(tmp_path, found)
    given = (f"predictions={file}", "data=coco", f"data.annotations={truth}")
    assert command("eval", *given) == Exit.DATA
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "found.scores.json").exists()


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (("model=lenet",), Exit.CONFIG, "model: has no part in scoring predictions"),
        (("trainer.device=cpu",), Exit.CONFIG, "trainer.device: has no part in scoring"),
        (("checkpoint=x.pt",), Exit.CONFIG, "a checkpoint makes its own"),
        (("task=segment",), Exit.CONFIG, "task=segment has no predictions in a file"),
        (("split=dev",), Exit.CONFIG, 'there is no split "dev"'),
        (("data=mnist",), Exit.CONFIG, "data=mnist has no boxes"),
        (("data=coco", "data.annotations=nothing.json"), Exit.DATA, "is not there"),
        (("data.sise=3",), Exit.CONFIG, "data.sise"),
    ],
)
def test_what_does_not_go_together(overrides, code, words, command, tmp_path, capsys):
    file = written(tmp_path, [])
    assert command("eval", f"predictions={file}", *overrides) == code
    assert words in capsys.readouterr().err


def test_a_file_that_is_not_there(command, tmp_path, capsys):
    assert command("eval", f"predictions={tmp_path / 'none.json'}", *FEW) == Exit.DATA
    assert "none.json: cannot be read: No such file" in capsys.readouterr().err


def test_training_still_needs_the_images(command, truth, tmp_path, capsys):
    own = ("task=detect", "model=retinanet", "data=coco", f"data.annotations={truth}")
    assert command("train", f"hydra.run.dir={tmp_path / 'run'}", *own) == Exit.CONFIG
    assert "annotations and images go together" in capsys.readouterr().err


def test_figures_are_said_where_nothing_can_be_written(
    command, truth, tmp_path, capsys, monkeypatch
):
    from cnnctl.engine import checkpoint

    def full(path: Path, data: bytes) -> None:
        raise checkpoint.disk_error(OSError(30, "Read-only file system"), path)

    monkeypatch.setattr(checkpoint, "write_whole", full)
    file = written(tmp_path, FOUND)
    given = (f"predictions={file}", "data=coco", f"data.annotations={truth}")
    assert command("eval", *given) == 0
    assert "not written: " in capsys.readouterr().out


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "truth", "found", "ap"),
    [
        (
            "coco_fake100",
            "instances_val2014_100.json",
            "instances_val2014_fakebbox100_results.json",
            0.505,
        ),
        ("coco_sampled", "sampled_gts_bbox_area.json", "sampled_bbox_results.json", 0.503647),
    ],
)
def test_published_figures(name, truth, found, ap, command, coco_api, tmp_path):
    """The twelve numbers of the COCO API to the last digit, from annotations alone."""
    root = os.environ.get("CNNCTL_DATA")
    folder = Path(root or "nowhere") / "eval_reference" / name
    if not folder.is_dir():
        pytest.skip("$CNNCTL_DATA does not hold eval_reference")
    file = Path(shutil.copy(folder / found, tmp_path / "found.json"))
    assert (
        command("eval", f"predictions={file}", "data=coco", f"data.annotations={folder / truth}")
        == 0
    )
    scores = json.loads((tmp_path / "found.scores.json").read_text())
    figures = [scores[name] for name in METRICS[:12]]
    assert figures == pytest.approx(coco_api(folder / truth, file), rel=0, abs=1e-12)
    assert figures[0] == pytest.approx(ap, abs=5e-4 if name == "coco_fake100" else 5e-7)


def test_masks_by_hand(command, truth, tmp_path, capsys):
    """A dog's whole mask, and 3/4 of the other's, with no boxes; the cat is called a dog."""
    content = json.loads(truth.read_text())
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    truth.write_text(json.dumps(content))
    masks = [
        (9, 0.9, [20, 20, 40, 40]),
        (9, 0.8, [70, 0, 8, 6]),
        (9, 0.7, [0, 0, 10, 10]),
    ]
    size = (80, 100)
    found = [
        {
            **{"image_id": 1, "category_id": category, "score": score},
            "segmentation": {
                "size": size,
                "counts": encode(np.ones((h, w), bool), x, y, size).decode(),
            },
        }
        for category, score, (x, y, w, h) in masks
    ]
    file = written(tmp_path, found)
    given = (f"predictions={file}", "task=instance", "data=coco", f"data.annotations={truth}")
    assert command("eval", *given) == 0
    scores = json.loads((tmp_path / "found.scores.json").read_text())
    assert scores["per_class"]["voc_mask_ap70"] == {"cat": 0, "dog": 1}
    assert scores["coco_mask_ap75"] == scores["coco_ap75"] == pytest.approx(0.5)
    # From .80 on the second dog is missed: 51 of 101 recalls, in 4 of 10 thresholds.
    assert scores["coco_mask_ap"] == pytest.approx((6 + 4 * 51 / 101) / 10 / 2)
    assert (scores["images"], scores["detections"]) == (2, 3)
    assert "mask" in capsys.readouterr().out
    del found[1]["segmentation"]
    written(tmp_path, found)
    assert command("eval", *given) == Exit.DATA
    assert "results[1]: segmentation: is missing" in capsys.readouterr().err


@pytest.mark.data
def test_published_figures_of_masks(command, tmp_path):
    root = os.environ.get("CNNCTL_DATA")
    folder = Path(root or "nowhere") / "eval_reference/coco_fake100"
    if not folder.is_dir():
        pytest.skip("$CNNCTL_DATA does not hold eval_reference")
    found = "instances_val2014_fakesegm100_results.json"
    file = Path(shutil.copy(folder / found, tmp_path / "found.json"))
    given = ("data=coco", f"data.annotations={folder / 'instances_val2014_100.json'}")
    assert command("eval", f"predictions={file}", "task=instance", *given) == 0
    scores = json.loads((tmp_path / "found.scores.json").read_text())
    published = "0.320 0.562 0.299 0.387 0.310 0.327 0.268 0.415 0.417 0.469 0.377 0.381"
    assert [f"{scores[name]:.3f}" for name in COCO_METRICS] == published.split()


def test_a_part_without_arrays_is_scored_by_its_samples():
    scenes = DigitBoxes("val", size=32, digits=(1, 3), scale=(0.3, 0.6), val_images=6)
    part = Part(scenes, 3)
    assert part.all_truth() is None
    found = truth_rows(part)
    targets = [scenes[index][1] for index in (0, 2, 4)]
    assert found.image.tolist() == [n for n, t in enumerate(targets) for _ in t["labels"]]
    assert found.boxes.tolist() == [box for t in targets for box in t["boxes"].tolist()]
    assert found.labels.tolist() == [label for t in targets for label in t["labels"].tolist()]
