"""Can a detector learn eight scenes by heart? What cannot has a fault in its loss or its code."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import yaml

from cnnctl import compose
from cnnctl.models.detection import DetectionModel
from cnnctl.models.instance import InstanceModel
from cnnctl.models.pose import PoseModel

# 300 pixels and more; depthwise convolutions, with which 120 steps take six minutes on two cores;
# 271 million weights.
FOR_GPUS = {"ssd300", "ssd512", "ssdlite", "yolo_v1"}
ONE_OBJECT = {"localisation", "pose_regression"}  # in an image
# A scene of 96 pixels has 6 x 6 positions on a map of stride 16, fewer than R-FCN's bins need.
MORE = {"rfcn": ("data.size=192",)}
STEPS = {"rfcn": 200, "retinanet": 200, "faster_rcnn_c4": 160, "mask_rcnn_c4": 160}  # others: 120
# The task that asks most of a network, and the metric to learn by.
TASKS = (
    (InstanceModel, "instance", "coco_mask_ap50"),
    (PoseModel, "pose", "coco_oks_ap50"),
    (DetectionModel, "detect", "coco_ap50"),
)


def detectors() -> list:
    """Models, tasks and metrics, from the files alone: to compose them all would take its time."""
    found = []
    for model in compose.groups()["model"]:
        content = yaml.safe_load((compose.conf_dir() / "model" / f"{model}.yaml").read_text())
        module, _, name = content.get("model", {}).get("_target_", "").rpartition(".")
        cls = getattr(importlib.import_module(module), name) if module else None
        for kind, task, metric in TASKS:
            if isinstance(cls, type) and issubclass(cls, kind):
                mark = pytest.mark.gpu if model in FOR_GPUS else pytest.mark.slow
                found.append(pytest.param(model, task, metric, marks=mark, id=model))
                break
    return found


@pytest.mark.parametrize(("model", "task", "metric"), detectors())
def test_eight_scenes(model, task, metric, command, tmp_path):
    count = "[1,1]" if model in ONE_OBJECT else "[2,4]"
    settings = (
        *(f"task={task}", f"model={model}", f"data.digits={count}", "data.train_images=8"),
        *("augmentation=none", "trainer.learn_by_heart=8", "trainer.batch_size=8"),
        *("optimizer.lr=1e-3", f"trainer.steps={STEPS.get(model, 120)}", "trainer.patience=2"),
        *("trainer.evaluate_every_steps=40", f"trainer.monitor={metric}", "trainer.test=false"),
        *("trainer.tensorboard=false", "data.scale=[0.3,0.5]"),
        *MORE.get(model, ()),
    )
    assert command("train", f"hydra.run.dir={tmp_path / 'run'}", *settings) == 0
    summary = json.loads((Path(tmp_path) / "run" / "summary.json").read_text())
    assert summary["best"] > 0.95
