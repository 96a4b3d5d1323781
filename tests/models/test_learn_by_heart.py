"""Can a detector learn eight scenes by heart? What cannot has a fault in its loss or its code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cnnctl import build, compose
from cnnctl.models.detection import DetectionModel

# For GPUs: 512 pixels; depthwise convolutions, with which 200 steps take ten minutes on two cores;
# 271 million weights.
LARGE = {"ssd512", "ssdlite", "yolo_v1"}
# A scene has 6 x 6 positions on a map of stride 16, fewer than R-FCN's bins need: a finer stem.
MORE = {"rfcn": ("backbone.small_input=true",)}


def detectors() -> list[str]:
    found = []
    for model in compose.groups()["model"]:
        config = compose.settings(compose.compose("train", ["task=detect", f"model={model}"]))
        cls = build.target(config, "model")
        if isinstance(cls, type) and issubclass(cls, DetectionModel) and model not in LARGE:
            found.append(model)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("model", detectors())
def test_eight_scenes(model, command, tmp_path):
    count = "[1,1]" if model == "localisation" else "[2,4]"
    settings = (
        *("task=detect", f"model={model}", f"data.digits={count}", "data.train_images=8"),
        *("augmentation=none", "trainer.learn_by_heart=8", "trainer.batch_size=8"),
        *("optimizer.lr=1e-3", "trainer.steps=200", "trainer.evaluate_every_steps=40"),
        *("trainer.patience=2", "trainer.monitor=coco_ap50", "trainer.test=false"),
        *("trainer.tensorboard=false", "data.scale=[0.3,0.5]"),
        *MORE.get(model, ()),
    )
    assert command("train", f"hydra.run.dir={tmp_path / 'run'}", *settings) == 0
    summary = json.loads((Path(tmp_path) / "run" / "summary.json").read_text())
    assert summary["best"] > 0.95
