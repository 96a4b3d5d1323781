"""Where a prediction's time goes: the parts of every detector, and proposals from outside it."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from cnnctl import build, compose
from cnnctl.commands import speed
from cnnctl.commands.speed import medians
from cnnctl.data.base import ArrayDataset
from cnnctl.data.loaders import ResidentLoader, Share
from cnnctl.data.proposals.base import ProposalMethod
from cnnctl.engine.machine import Machine
from cnnctl.ops.clock import CONVOLUTION, POST_PROCESSING, PROPOSALS, REGIONS, Clock
from cnnctl.structures import Images

ONE, TWO = {CONVOLUTION, POST_PROCESSING}, {CONVOLUTION, PROPOSALS, REGIONS, POST_PROCESSING}
DETECTORS = {
    "ssd": ONE,
    "yolo": ONE,
    "retinanet": ONE,
    "fcos": ONE,
    "faster_rcnn": TWO,
    "faster_rcnn_c4": TWO,
    "rfcn": TWO,
    "mask_rcnn": TWO,
    "mask_rcnn_c4": TWO,
}


@pytest.mark.parametrize("name", DETECTORS)
def test_the_parts_of_a_prediction_have_names_and_marks_change_no_number(name):
    """Untrained and with a score of 0, so that there is something to say of what is found."""
    task = "instance" if name.startswith("mask") else "detect"
    overrides = [f"task={task}", "data=digit_scenes", f"model={name}", "model.score=0"]
    config = compose.settings(compose.compose("train", overrides))
    facts = SimpleNamespace(
        channels=3, classes=("a", "b"), size=(64, 64), mean=(0.5,) * 3, std=(0.2,) * 3
    )
    torch.manual_seed(0)
    model = build.model(config, facts, (64, 64)).eval()
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    images = Images(pixels, [(64, 64)], [(64, 64)])
    with torch.inference_mode():
        alone = model.predict(images)
        with Clock() as clock:
            timed = model.predict(images)
    assert set(clock.seconds) == DETECTORS[name]
    assert min(clock.seconds.values()) > 0
    assert alone.boxes is not None
    assert alone.boxes.shape[1] > 0
    for column in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(alone, column), getattr(timed, column))
    assert alone.masks == timed.masks


def test_medians_of_parts_by_hand():
    """A part that an image does not have took no time there; what has no name comes last."""
    images = [
        {"other": 0.5, "convolution": 0.001, "regions": 0.003},
        {"convolution": 0.002, "other": 0.1},
        {"convolution": 0.009, "regions": 0.004, "other": 0.2},
    ]
    said = medians(images)
    assert list(said) == ["convolution", "regions", "other"]
    assert list(said.values()) == pytest.approx([2.0, 3.0, 200.0])
    assert medians([{"other": 1.0}]) == {}  # a classifier: no split


@dataclass(frozen=True)
class Slow(ProposalMethod):
    """Two boxes of every image; to find them takes a second of a clock."""

    count: int = 2
    ticking: Any = None

    def propose(self, image):
        assert image.dtype == torch.uint8
        self.ticking.ticks += 1
        return torch.tensor([[0.0, 0, 4, 4], [2, 2, 8, 8]])


def test_proposals_from_outside_the_network_count(monkeypatch):
    """Two images of a clock that only ``propose`` moves: all of the time is theirs."""
    config = compose.settings(
        compose.compose("train", ["task=detect", "data=digit_scenes", "model=ssd", *SCENES])
    )
    data = cast(ArrayDataset, build.dataset(config, "test"))
    augmentation = build.augmentation(config, data)
    model = build.model(config, data, augmentation.size)
    machine = Machine(torch.device("cpu"), torch.float32, channels_last=False)
    loader = ResidentLoader(data, augmentation, machine.device, 0, Share())
    ticking = SimpleNamespace(ticks=0)
    ticking.perf_counter = lambda: float(ticking.ticks)
    monkeypatch.setattr(speed, "time", ticking)
    monkeypatch.setattr("cnnctl.ops.clock._now", lambda: 0.0)
    found = speed.measured(model, loader, machine, Slow(ticking=ticking))
    assert (found.images, found.median) == (2, 1000.0)
    assert found.parts == {PROPOSALS: 1000.0, CONVOLUTION: 0, POST_PROCESSING: 0, "other": 0}
    (what, total), (of_it, parts), *_ = found.rows()
    assert (what, of_it) == ("proposals and network, one image", "of it, ms")
    assert total.startswith("1e+03 ms")
    assert "proposals 1e+03" in parts


SCENES = ("data.size=64", "data.train_images=2", "data.val_images=2", "data.test_images=2")
